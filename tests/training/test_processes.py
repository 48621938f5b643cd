"""Runs of two and of eight processes that talk through gloo, and what is true of any number.

Two processes are started once and do all of `SCENES` one after the other; a process that waits for
the others in vain is killed, and the test fails.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from loraudit.base.files import folder_fingerprint, read_json
from loraudit.data.batches import sorted_batches
from loraudit.studies.method_settings import ALoRASettings
from loraudit.studies.record import read_record
from loraudit.studies.spec import RunSpec
from loraudit.training import loop, run
from loraudit.training import state as state_module
from loraudit.training.loop import EVALUATED, share_of
from tiny import changed, make_spec

SECONDS = 300
ALORA = ALoRASettings(rows=8, first=0.5, between=0.5, pruned=3)
SPEC = make_spec(epochs=2, learning_rate=1e-2, train_rows=17, micro_batch=4)
"""The last of an epoch's batches has one row, for two processes."""

SCENES = {
    "few rows": SPEC.model_copy(update={"validation_rows": 16}),  # one batch of evaluation
    "whole": SPEC,
    "cut": SPEC.model_copy(update={"recompute": "blocks"}),  # which changes no bit
    "alora": changed(SPEC, method="alora", alora=ALORA, validation_rows=16),
}
SCENES_OF_EIGHT = {"eight": SPEC.model_copy(update={"validation_rows": 16, "micro_batch": 1})}


def play(scene: str, spec: RunSpec, folders: list[Path]) -> None:
    """Do one scene in one of the processes."""
    rank = int(os.environ["RANK"])
    if scene != "cut":
        run.train(spec, *folders)
        return
    step, make = loop.optimizer_step, run.make_accelerator

    def signalled(state, *rest):
        if rank == 1 and state.journal.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # one process is told, and both stop
        return step(state, *rest)

    loop.optimizer_step, state_module.LOOKS = signalled, {"cpu": 3}  # at the next common look
    try:
        run.train(spec, *folders)
    except SystemExit:
        print("stopped", flush=True)
    loop.optimizer_step = step

    def numbered(spec):
        """As GPUs are: cuda:0 in one process, cuda:1 in the other."""
        accelerator = make(spec)
        accelerator.state._shared_state["device"] = torch.device("cpu", rank)
        return accelerator

    facts = run.environment()
    run.make_accelerator = numbered
    run.environment = lambda: {**facts, "python": facts["python"] if rank == 0 else "other"}
    run.train(spec, *folders)


def main() -> None:
    """Do scenes; the arguments are the folders of tokens, model and results, and their names."""
    tokens, model, out = map(Path, sys.argv[1:4])
    for scene in sys.argv[4:]:
        play(scene, (SCENES | SCENES_OF_EIGHT)[scene], [tokens, model, out / scene])


@pytest.fixture(scope="module")
def played(tiny, tmp_path_factory):
    """Return the folder of the scenes, and what the main process said."""
    folder = tmp_path_factory.mktemp("played")
    model = without_dropout(tiny, folder / "model")
    said = together([tiny / "tokens", model, folder], SCENES, processes=2)
    return folder, said[0]


def together(folders: list[Path], scenes: Iterable[str], processes: int) -> list[str]:
    """Do scenes in so many processes; returns what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    paths = os.pathsep.join(["tests", "src", os.environ.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *folders, *scenes],
            env={**os.environ, **shared, "PYTHONPATH": paths, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
        )
        for rank in map(str, range(processes))
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, said
    return said


def without_dropout(tiny, folder: Path) -> Path:
    """Copy the tiny model with dropout 0: its masks depend on how a batch is cut."""
    shutil.copytree(tiny / "model", folder)
    config = read_json(folder / "config.json")
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def logits(out: Path) -> np.ndarray:
    return pd.read_parquet(out / "predictions.parquet").filter(like="logit_").to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["few rows", "alora"])
def test_fewer_batches_than_processes_end_as_in_one_process(scene, played, tiny, tmp_path):
    """With one batch of evaluation a process has none, and must not be waited for."""
    folder, _ = played
    run.train(SCENES[scene], tiny / "tokens", folder / "model", tmp_path)
    assert read_record(folder / scene / "record.json").environment["processes"] == 2
    assert np.abs(logits(folder / scene) - logits(tmp_path)).max() < 1e-4


@pytest.mark.long
def test_eight_processes_end_as_one_where_half_have_no_batch_of_evaluation(tiny, tmp_path):
    """The released code has eight; the last batch of an epoch has a row for one of them."""
    folder, alone = tmp_path / "eight", tmp_path / "alone"
    model = without_dropout(tiny, tmp_path / "model")
    together([tiny / "tokens", model, folder], ["eight"], processes=8)
    run.train(SCENES_OF_EIGHT["eight"], tiny / "tokens", model, alone)
    assert read_record(folder / "eight/record.json").environment["processes"] == 8
    assert np.abs(logits(folder / "eight") - logits(alone)).max() < 1e-4


@pytest.mark.slow
def test_the_main_process_chooses_the_checkpoint_that_all_go_on_from(played):
    """The other process has another device number and finds the checkpoint not to be its own."""
    folder, said = played
    assert "stopped by SIGTERM at step 3" in said and "going on after step 3" in said
    (resumed,) = read_record(folder / "cut/record.json").environment["resumed"]
    assert resumed["step"] == 3
    for name in ("history.csv", "predictions.parquet"):
        assert (folder / "cut" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    adapters = [folder_fingerprint(folder / scene / "adapter") for scene in ("cut", "whole")]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 31, 32])
def test_the_processes_micro_batches_make_up_the_gradient_of_the_mean(rows, processes):
    """DDP averages the processes' gradients, so weights over processes count for each row."""
    batch = np.arange(100, 100 + rows)
    counted = dict.fromkeys(batch.tolist(), 0.0)
    for process in range(processes):
        cuts, weight = share_of(batch, process, processes, micro=4, counted=len(batch))
        assert cuts and all(0 < len(cut) <= 4 for cut in cuts)  # all take part in the reduction
        for row in np.concatenate(cuts).tolist():
            counted[row] += weight / processes
    assert list(counted.values()) == pytest.approx([1 / rows] * rows)


@pytest.mark.parametrize("rows", [1, 20, 277, 408])
def test_the_released_codes_eight_processes_evaluate_every_row_once(rows):
    """RTE has 277 rows of validation: 5 batches of 16 x 4, so three of the eight have none."""
    lengths = np.random.default_rng(0).integers(4, 128, rows)
    batches = sorted_batches(lengths, EVALUATED * 16)
    mine = [batches[process::8] for process in range(8)]
    seen = np.concatenate([index for own in mine for index in own])
    assert sorted(seen) == list(range(rows))
    if rows == 277:
        assert [len(own) for own in mine] == [1, 1, 1, 1, 1, 0, 0, 0]


if __name__ == "__main__":
    main()
