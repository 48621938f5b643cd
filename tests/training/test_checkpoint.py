"""Checkpoints: a run that was stopped, at whatever point, ends in the bits of one that was not.

On the same machine, with the same number of threads.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint, read_json
from loraudit.studies.method_settings import AdaLoRASettings, ALoRASettings
from loraudit.studies.record import read_record
from loraudit.training import checkpoint, loop
from loraudit.training.methods import alora
from loraudit.training.run import train
from tiny import changed, make_spec
from warm_python import programs

pytestmark = pytest.mark.slow

SPEC = make_spec(epochs=3, learning_rate=1e-2, train_rows=61, targets=("q", "v"))
STEPS = 3 * 8
EVERY_STEP = 0.0
KINDS: dict[str, dict] = {
    "lora": {},
    "peft": {"method": "peft"},
    "full": {"method": "full"},
    "4 bits": {"base_bits": 4, "base_group": 8, "ranks": "error", "init": "loftq"},
    "alora": {"method": "alora", "alora": ALoRASettings(rows=8, first=0.3, between=0.3, pruned=3)},
    "adalora": {"method": "adalora", "adalora": AdaLoRASettings(deltaT=2), "init": None},
}
SPECS = {kind: changed(SPEC, **changes) for kind, changes in KINDS.items()}


def arguments(tiny, out, spec=SPEC):
    return spec, tiny / "tokens", tiny / "model", out


def bits(out) -> dict:
    """Everything that must not depend on interruptions."""
    result = read_record(out / "record.json").train
    scores = result.epochs, result.steps, result.tokens
    counts = {name: n for name, n in result.counts.items() if not name.endswith("seconds")}
    names = ("history.csv", "predictions.parquet", "ranks.csv")
    files = {name: (out / name).read_bytes() for name in names if (out / name).exists()}
    adapter = folder_fingerprint(out / "adapter")
    return {"scores": scores, "counts": counts, "adapter": adapter, **files}


def signalled(monkeypatch, number: int, step: int | None = None, evaluation: int | None = None):
    """Send this process a signal in one optimizer step, or in one evaluation."""
    calls = {"step": 0, "evaluation": 0}

    def wrap(function, what, at):
        def called(*args):
            calls[what] += 1
            if calls[what] == at:
                os.kill(os.getpid(), number)
            return function(*args)

        return called

    monkeypatch.setattr(loop, "optimizer_step", wrap(loop.optimizer_step, "step", step))
    monkeypatch.setattr(loop, "evaluate", wrap(loop.evaluate, "evaluation", evaluation))


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """Return {kind: bits}, trained at one go."""

    def make(spec):
        out = tmp_path_factory.mktemp("run")
        train(*arguments(tiny, out, spec))
        return bits(out)

    return {kind: make(spec) for kind, spec in SPECS.items()}


CUT = [("step", kind) for kind in SPECS]
CUT += [("evaluation", kind) for kind in ("lora", "alora", "adalora")]
# What an evaluation leaves is theirs too, and what they have to themselves is cut in a step.
CUT += [
    pytest.param("evaluation", kind, marks=pytest.mark.long) for kind in ("peft", "full", "4 bits")
]


@pytest.mark.numerics
@pytest.mark.parametrize(("at", "kind"), CUT)
def test_a_signal_at_any_point_changes_no_bit(kind, at, uninterrupted, tiny, tmp_path, monkeypatch):
    spec, where = SPECS[kind], random.randint(1, STEPS - 1)
    chosen = {"step": where} if at == "step" else {"evaluation": 2}
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, **chosen)
        with pytest.raises(SystemExit) as stopped:
            train(*arguments(tiny, tmp_path, spec))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "record.json").exists()
    torch.manual_seed(99)  # what ran before must not matter
    train(*arguments(tiny, tmp_path, spec))
    assert bits(tmp_path) == uninterrupted[kind], where
    assert not (tmp_path / "checkpoint").exists()
    (resumed,) = read_record(tmp_path / "record.json").environment["resumed"]
    assert resumed["step"] == (where if at == "step" else 16)


@pytest.mark.numerics
@pytest.mark.parametrize("evaluation", [4, 5])
def test_a_signal_while_the_chosen_epochs_are_scored_changes_no_bit(
    evaluation, tiny, tmp_path, monkeypatch
):
    """After three epochs' selection rows, validation is scored at the last and selected epoch."""
    spec = changed(SPEC, selection_rows=100, validate_epochs="chosen", learning_rate=1e-9)
    train(*arguments(tiny, tmp_path / "whole", spec))
    whole = read_record(tmp_path / "whole/record.json").train
    assert whole.epochs["selected"].epoch == 1  # scores hardly move, and the first of equals counts
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, evaluation=evaluation)
        with pytest.raises(SystemExit):
            train(*arguments(tiny, tmp_path / "cut", spec))
    train(*arguments(tiny, tmp_path / "cut", spec))
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


@pytest.mark.numerics
def test_a_signal_while_the_last_epoch_is_scored_changes_no_bit(tiny, tmp_path, monkeypatch):
    spec = changed(SPEC, validate_epochs="last")
    train(*arguments(tiny, tmp_path / "whole", spec))
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, evaluation=1)
        with pytest.raises(SystemExit):
            train(*arguments(tiny, tmp_path / "cut", spec))
    train(*arguments(tiny, tmp_path / "cut", spec))
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_a_signal_while_ranks_are_scored_stops_there_and_changes_no_bit(
    tiny, tmp_path, monkeypatch
):
    settings = ALoRASettings(first=0.5, between=0.5, rows=8, pruned=2)
    spec = changed(SPEC, method="alora", alora=settings)
    train(*arguments(tiny, tmp_path / "whole", spec))
    inner, calls = alora.ALoRAController.score, []

    def score(self):
        calls.append(1)
        if len(calls) == 70:  # in the second of the rounds, of 2 + 2 x 16 passes each
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self)

    with monkeypatch.context() as patch:
        patch.setattr(alora.ALoRAController, "score", score)
        with pytest.raises(SystemExit):
            train(*arguments(tiny, tmp_path / "stopped", spec))
    assert len(calls) <= 72
    train(*arguments(tiny, tmp_path / "stopped", spec))
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")
    ranks = [(tmp_path / name / "ranks.csv").read_text() for name in ("stopped", "whole")]
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_devices_random_state_is_saved_and_taken_up(kind, monkeypatch):
    """The device's generator is played by another one of the CPU."""
    played = torch.Generator()
    module = SimpleNamespace(get_rng_state=played.get_state, set_rng_state=played.set_state)
    monkeypatch.setattr(torch, "get_device_module", {kind: module}.__getitem__)
    state = checkpoint.random_state(torch.device(kind))
    drawn = torch.rand(3), torch.rand(3, generator=played)
    checkpoint.restore_random_state(state)
    assert torch.equal(torch.rand(3), drawn[0])
    assert torch.equal(torch.rand(3, generator=played), drawn[1])
    assert set(state) == {"cpu", kind}
    assert set(checkpoint.random_state(torch.device("cpu"))) == {"cpu"}


def test_signals_are_given_back(tiny, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(*arguments(tiny, tmp_path, changed(SPEC, epochs=1)))
    assert signal.getsignal(signal.SIGTERM) is before


def start_process(tiny, out, *more: str, python=sys.executable) -> subprocess.Popen:
    """Start scripts/train.py, a checkpoint after every step."""
    (out.parent / "spec.json").write_text(SPEC.model_dump_json())
    folders = {"tokens": tiny / "tokens", "model": tiny / "model", "out": out}
    command = [python, "scripts/train.py", "--spec", out.parent / "spec.json"]
    command += [part for name, folder in folders.items() for part in (f"--{name}", folder)]
    return subprocess.Popen(
        [*map(str, command), "--checkpoint-minutes", "0", *more],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def left_alone(tiny, tmp_path_factory):
    """Return the bits of a run in a process of its own, which nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert start_process(tiny, out).wait() == 0
    return bits(out)


@pytest.mark.long
def test_kill_9_at_a_random_step_changes_no_bit(left_alone, tiny, tmp_path):
    """Killed twice on the way; compared with a process that was left alone."""
    killed, reached = tmp_path / "run", 0
    for _ in range(2):
        process = start_process(tiny, killed)
        target = reached + random.randint(1, 8)
        while reached < target and process.poll() is None:
            steps = [int(f.name[5:]) for f in killed.glob("checkpoint/step-*")]
            reached = max(steps, default=reached)
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert not (killed / "record.json").exists()
    process = start_process(tiny, killed)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "going on after step" in said
    assert bits(killed) == left_alone
    assert not list(killed.glob("checkpoint"))


@pytest.fixture
def stopped(tiny, tmp_path, monkeypatch):
    """Return the folder of a run that was stopped after step 11."""
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT, step=11)
        with pytest.raises(SystemExit):
            train(*arguments(tiny, tmp_path))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("state.pt", cut),
        ("state.pt", flip),
        ("random-0.pt", flip),
        ("manifest.json", cut),
        ("random-0.pt", os.remove),
        ("manifest.json", os.remove),
    ],
)
def test_a_damaged_checkpoint_is_not_used(name, fault, stopped, uninterrupted, tiny, capfd):
    fault(stopped / "checkpoint/step-11" / name)
    train(*arguments(tiny, stopped))
    assert "step-11 is not used" in capfd.readouterr().err
    assert bits(stopped) == uninterrupted["lora"]
    assert read_record(stopped / "record.json").environment["resumed"] == []


def test_a_checkpoint_of_other_code_or_settings_is_not_used(stopped, tiny, capfd):
    train(*arguments(tiny, stopped), code="f" * 64)
    assert "code was None and is 'ffff" in capfd.readouterr().err
    assert read_record(stopped / "record.json").environment["resumed"] == []


def test_another_seed_does_not_take_it_up(stopped, tiny, capfd):
    spec = changed(SPEC, seed=1)
    train(*arguments(tiny, stopped, spec))
    assert "step-11 is not used: spec was" in capfd.readouterr().err


def waiting(process: subprocess.Popen) -> None:
    """Read a process's stderr until it says that it waits."""
    for line in process.stderr:
        if "another process is training this run; waiting" in line:
            return
    raise AssertionError("it did not wait")


@pytest.mark.long
@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_and_keeps_the_result_or_goes_on(killed, left_alone, tiny, tmp_path):
    """The first is killed or completes the run; in neither case is anything trained twice."""
    out = tmp_path / "run"
    first = start_process(tiny, out)
    while not list(out.glob("checkpoint/step-*")):
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # until the second one waits
    second = start_process(tiny, out)
    waiting(second)
    first.send_signal(signal.SIGKILL if killed else signal.SIGCONT)
    said = second.communicate()[1]
    assert second.returncode == 0, said
    assert ("going on after step" if killed else "its result is kept") in said
    first.communicate()
    resumed = read_record(out / "record.json").environment["resumed"]
    assert len(resumed) == killed
    assert bits(out) == left_alone
    assert not (out / "checkpoint").exists()


def test_without_room_for_a_checkpoint_the_run_goes_on(
    uninterrupted, tiny, tmp_path, monkeypatch, capfd
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    train(*arguments(tiny, tmp_path), checkpoint_minutes=EVERY_STEP)
    assert "no checkpoint at step 1: [Errno 28] No space left" in capfd.readouterr().err
    assert bits(tmp_path) == uninterrupted["lora"]


def test_only_the_newest_is_kept_and_nothing_of_it_is_code(stopped):
    assert [path.name for path in (stopped / "checkpoint").iterdir()] == ["step-11"]
    content = torch.load(stopped / "checkpoint/step-11/state.pt", weights_only=True)
    assert content["journal"]["step"] == 11
    manifest = read_json(stopped / "checkpoint/step-11/manifest.json")
    assert json.dumps(manifest["belongs"])
    assert pd.DataFrame(content["journal"]["history"]).epoch.tolist() == [1]


def test_a_run_that_was_planned_with_other_code_does_not_start(tiny, tmp_path):
    process = start_process(
        tiny, tmp_path / "run", "--code", "0" * 64, python=programs() / "python"
    )
    said = process.communicate()[1]
    assert process.returncode == 1
    assert said == "error: the code was edited since this run was planned; start snakemake again\n"


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_lack_of_memory_names_the_batch(where, tiny, tmp_path, monkeypatch):
    forward = loop.forward

    def lacking(state, examples, index):
        if state.model.training == (where == "training"):
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
            )
        return forward(state, examples, index)

    monkeypatch.setattr(loop, "forward", lacking)
    with pytest.raises(UserError, match=rf"in {where}, on a batch of \d+ rows of \d+ tokens"):
        train(*arguments(tiny, tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_in_the_runs_folder_is_deleted(tiny, tmp_path, capsys):
    """For full fine-tuning that would be a whole model each time."""
    (tmp_path / ".adapter.a1b2c3d4").mkdir()
    (tmp_path / ".4711.record.json").touch()
    (tmp_path / "checkpoint/.step-3").mkdir(parents=True)
    train(*arguments(tiny, tmp_path, changed(SPEC, epochs=1)))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    said = capsys.readouterr().err
    assert "deleted what a killed process had left: .4711.record.json, .adapter.a1b2c3d4" in said


@pytest.mark.parametrize("kind", ["lora", "peft"])
def test_resources_and_the_runs_folder_removed_in_the_middle_lose_no_bit(
    kind, uninterrupted, tiny, tmp_path, monkeypatch
):
    """All is read before the first step, and what is written makes its folder."""
    for name in ("tokens", "model"):
        shutil.copytree(tiny / name, tmp_path / name)
    step = loop.optimizer_step

    def removing(state, *rest):
        if state.journal.step == 5:
            for path in tmp_path.iterdir():
                shutil.rmtree(path)
        return step(state, *rest)

    monkeypatch.setattr(loop, "optimizer_step", removing)
    train(*arguments(tmp_path, tmp_path / "out", SPECS[kind]), checkpoint_minutes=EVERY_STEP)
    assert bits(tmp_path / "out") == uninterrupted[kind]


def test_resources_removed_before_a_restart_are_one_sentence_and_the_checkpoint_stays(
    tiny, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    shutil.copytree(tiny / "tokens", tmp_path / "tokens")
    spec, _, model, _ = arguments(tiny, out)
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, step=4)
        with pytest.raises(SystemExit):
            train(spec, tmp_path / "tokens", model, out)
    (tmp_path / "tokens/train.arrow").unlink()
    with pytest.raises(UserError, match=r"tokens: train\.arrow: missing, so removed since"):
        train(spec, tmp_path / "tokens", model, out)
    shutil.rmtree(tmp_path / "tokens")
    with pytest.raises(UserError, match=r"tokens: manifest\.json: missing"):
        train(spec, tmp_path / "tokens", model, out)
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["step-4"]
