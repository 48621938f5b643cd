"""The profile on a real SLURM: jobs, results, limits, cancelling, errors. `make test-slurm`."""

import functools
import re
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from cluster import cluster, missing

from loraudit.base.files import folder_fingerprint, read_json
from tiny_project import command, edited, environment, make_project, snakemake

pytestmark = [pytest.mark.slurm, pytest.mark.pipeline]

STUDY = """
question: Does it run on a cluster?
defaults: {task: words, model: tiny, epochs: 3, global_batch: 16, micro_batch: 8,
           learning_rate: 1.0e-2, max_length: 64}
per_method: {head: {learning_rate: 1.0e-2}}
grid:
  - {method: lora, targets: q+v, rank: [1, 2]}
  - {method: head}
"""
real = functools.partial(command, warm=False)
RUNS = ["lora-r1-q+v", "lora-r2-q+v", "head"]
TABLES = ["results/small/tables/summary.md", "results/small/tidy/spectra.csv"]
FAST = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"]
SLURM = ["--profile", "profiles/slurm", "--slurm-keep-successful-logs", *FAST]
STEP = "    accelerator, spec = state.accelerator, state.spec\n    process"
PAUSED = STEP.replace("    process", "    __import__('time').sleep(2)\n    process")
"""An optimizer step that takes long enough for a run to meet its limit; no number changes."""


@pytest.fixture(scope="module")
def slurm(request, tmp_path_factory):
    """Start SLURM for this module's tests, or skip them with the reason."""
    if "slurm" not in request.config.getoption("markexpr"):
        pytest.skip("not asked for by `-m slurm`")
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The study's results without a cluster."""
    project = make_project(tmp_path_factory.mktemp("local"), {"small": STUDY})
    snakemake(project, *TABLES, warm=False)
    return project / "results/small"


@pytest.fixture(scope="module")
def project(slurm, tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"), {"small": STUDY})


@pytest.fixture(scope="module")
def done(project):
    """The study's results from SLURM jobs, and what Snakemake printed."""
    output = real(project, "snakemake", *SLURM, *TABLES, "--config", "study=small")
    return project / "results/small", output


def jobs() -> pd.DataFrame:
    """Return what accounting knows of all jobs so far, oldest first."""
    fields = "JobIDRaw,State,Timelimit,ReqMem,ReqCPUS,AllocTRES,Comment"
    line = ["sacct", "--allusers", "-X", "--parsable2", f"--format={fields}"]
    rows = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    head, *rows = [row.split("|") for row in rows]
    return pd.DataFrame(rows, columns=head).sort_values("JobIDRaw", key=lambda ids: ids.astype(int))


def evidence(folder: Path) -> dict:
    """Return all of a run that must not depend on where it ran."""
    train = read_json(folder / "record.json")["train"]
    kept = {key: train[key] for key in ("epochs", "steps", "tokens", "rows")}
    files = {name: (folder / name).read_bytes() for name in ("predictions.parquet", "history.csv")}
    return {**kept, **files, "adapter": folder_fingerprint(folder / "adapter")}


def test_all_jobs_complete_with_what_the_table_asks_for(done):
    _, output = done
    found = jobs()
    assert set(found.State) == {"COMPLETED"}
    kinds = found.Comment.str.extract(r"^rule_([a-z]+)")[0].value_counts().to_dict()
    assert kinds == {
        "tokenise": 1,
        "train": 3,
        "crosschecks": 1,  # two cross-checks in one job
        "subspace": 1,
    }
    train = found[found.Comment.str.startswith("rule_train")]
    assert set(train.Timelimit) == {"02:00:00"}
    assert set(train.ReqMem) == {"4000M"}
    assert "Error" not in output


def test_results_are_those_of_a_local_run_bit_for_bit(done, local):
    folder, _ = done
    for run in RUNS:
        path = f"runs/words/tiny/{run}/s0"
        assert evidence(folder / path) == evidence(local / path)
    for table in ("tables/summary.csv", "tidy/spectra.csv"):
        assert (folder / table).read_bytes() == (local / table).read_bytes()


def test_a_run_at_its_time_limit_and_a_cancelled_one_go_on_from_their_checkpoints(
    done, local, project
):
    """Both are submitted again by Snakemake, with more time, and end in the same bits."""
    stopped = {"lora-r1-q+v": "limit", "lora-r2-q+v": "scancel"}
    folders = {run: project / f"results/small/runs/words/tiny/{run}/s0" for run in stopped}
    for folder in folders.values():
        shutil.rmtree(folder)
    before = len(jobs())
    with (
        edited(project / "src/loraudit/training/loop.py", STEP, PAUSED),
        edited(project / "config/cluster.yaml", "train: {minutes: 120", "train: {minutes: 3"),
    ):
        records = [str(folder / "record.json") for folder in folders.values()]
        records = [str(Path(record).relative_to(project)) for record in records]
        with start(project, *records) as process:
            wait_for(lambda: (folders["lora-r2-q+v"] / "checkpoint").is_dir(), process)
            time.sleep(8)
            subprocess.run(["scancel", running("lora-r2-q+v")], check=True)
            output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    found = jobs().iloc[before:]
    ends = {run: list(found.State[found.Comment.str.contains(run, regex=False)]) for run in stopped}
    assert ends["lora-r1-q+v"] == ["FAILED", "COMPLETED"]  # it ended by itself, before the limit
    assert ends["lora-r2-q+v"][0].startswith("CANCELLED")
    assert ends["lora-r2-q+v"][-1] == "COMPLETED"
    assert {"00:03:00", "00:06:00"} <= set(found.Timelimit)
    for run, folder in folders.items():
        (resumed,) = read_json(folder / "record.json")["environment"]["resumed"]
        assert resumed["step"] > 0, run
        assert evidence(folder) == evidence(local / f"runs/words/tiny/{run}/s0")
    assert "checkpoint: stopped by SIGTERM at step" in output


def start(project, *targets: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["snakemake", *SLURM, *targets, "--config", "study=small"],
        cwd=project, env=environment(project), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for(ready, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.2)


def running(run: str) -> str:
    """Return the id of the running job of a run."""
    line = ["squeue", "--noheader", "--states=RUNNING", "--format=%i %k"]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    (found,) = [row.split()[0] for row in shown.splitlines() if run in row]
    return found


def test_a_failing_job_names_its_reason_and_log_and_asks_for_its_gpu(project):
    study = STUDY.replace("rank: [1, 2]", "rank: 1").replace("1.0e-2,", "1.0e+30,", 1)
    study = study.replace("max_length: 64", "max_length: 64, max_grad_norm: null")
    (project / "config/studies/wild.yaml").write_text(study)
    target = "results/wild/runs/words/tiny/lora-r1-q+v/s0/record.json"
    config = ["--config", "study=wild", "launch=gpu"]
    output = real(project, "snakemake", *SLURM, "--retries", "0", target, *config, ok=False)
    assert re.search(r"error: the loss is nan at step \d+ \(epoch 1\)", output)
    log = re.search(r"failed: .* \(log: .*?, (\S+/slurm/rule_train/\S+\.log)\)", output)
    assert Path(log.group(1)).is_file()
    assert re.search(r"SLURM-job '\d+' failed, SLURM status is: 'FAILED'", output)
    last = jobs().iloc[-1]
    assert last.State == "FAILED"
    assert "gres/gpu=1" in last.AllocTRES


def test_two_nodes_train_one_run_as_two_processes_of_one_machine_do(project):
    """profiles/accelerate/two_nodes.yaml, on CPUs: its processes talk through gloo."""
    launcher = project / "profiles/accelerate/two_nodes.yaml"
    target = "results/small/runs/words/tiny/lora-r1-q+v/s0/record.json"
    folder, found = (project / target).parent, []
    partition = ["--set-resources", "train:slurm_partition=pair"]
    with (
        edited(launcher, "use_cpu: false", "use_cpu: true"),
        edited(launcher, "gpu_ids: all", 'gpu_ids: "-1,-1"'),
    ):
        for launch, options in (("cpu2", ["--cores", "2"]), ("two_nodes", [*SLURM, *partition])):
            config = ["--config", "study=small", f"launch={launch}"]
            real(project, "snakemake", target, *options, "--forcerun", "train", *config)
            found.append(evidence(folder))
            assert read_json(folder / "record.json")["environment"]["processes"] == 2
    assert found[0] == found[1]
    assert "node=2" in jobs().iloc[-1].AllocTRES
