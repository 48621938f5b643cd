"""Other queues than SLURM: what is asked of them, jobs that stop early, and jobs that end badly.

None of it ran on a real queue. The commands of a queue are stubs (stub.py) that record what is
submitted and end jobs as told; the plugins of Snakemake are real, where they are installed.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import stub
import yaml

from loraudit.base import queues
from loraudit.base.errors import UserError
from loraudit.base.queues import Request
from loraudit.studies.cluster import node_request
from tiny_project import environment, make_project

REQUEST = Request("train", threads=2, mem_mb=4000, minutes=125, gpus=1, extra="-r n -q gpu")


def launcher(name: str) -> dict:
    return yaml.safe_load(Path(f"profiles/accelerate/{name}.yaml").read_text())


def test_pbs_gets_one_chunk_with_cores_memory_and_gpus():
    words = " ".join(queues.qsub("pbs", REQUEST, Path("logs/pbs")))
    assert "-l select=1:ncpus=2:mem=4000mb:ngpus=1 -l walltime=2:05:00" in words
    assert words.endswith("-r n -q gpu")
    assert "ngpus" not in " ".join(queues.qsub("pbs", Request("x", 1, 1, 1), Path()))


def test_grid_engine_gets_slots_memory_and_gpus():
    words = " ".join(queues.qsub("sge", REQUEST, Path("logs/sge")))
    for part in ("-l h_rt=2:05:00", "-l mem_free=4000M", "-pe smp 2", "-l gpu=1", "-terse"):
        assert part in words
    one = queues.qsub("sge", Request("x", 1, 1, 1), Path())
    assert not {"-pe", "gpu=0"} & {*one}


@pytest.mark.parametrize(("launch", "gpus"), [("cpu", 0), ("gpu", 1)])
def test_lsf_and_htcondor_are_asked_for_the_gpus_and_lsf_for_an_early_signal(launch, gpus):
    asked = node_request(launcher(launch))
    assert asked["lsf_extra"].startswith("-wa TERM -wt 2")
    assert (f"-gpu num={gpus}" in asked["lsf_extra"]) == bool(gpus)
    assert asked.get("request_gpus", 0) == asked["gpu"] == gpus


def fake_commands(folder: Path, monkeypatch, **programs: str) -> None:
    """Put shell programs of these names first in PATH."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


RUNS = 'JOB_ID=7 bash "${@: -1}" > /dev/null 2>&1; echo 7'
"""A qsub that runs the job at once."""


@pytest.mark.parametrize("kind", ["pbs", "sge"])
@pytest.mark.parametrize(("script", "end"), [("exit 0", "success"), ("exit 3", "failed")])
def test_a_job_that_ended_is_known_by_its_exit_status(kind, script, end, tmp_path, monkeypatch):
    fake_commands(tmp_path, monkeypatch, qsub=RUNS, qstat="echo Unknown Job Id; exit 1")
    (tmp_path / "my job.sh").write_text(script)
    job = queues.submit(kind, REQUEST, tmp_path / "my job.sh", tmp_path / "logs")
    assert job == "7"
    assert queues.status(kind, job, tmp_path / "logs") == end


def test_a_job_is_told_to_stop_before_its_limit(tmp_path, monkeypatch):
    """Every process of it is: the script, and what it started."""
    monkeypatch.setattr(queues, "EARLY", 59)
    monkeypatch.setattr(queues, "SCRIPT", queues.SCRIPT.replace("{seconds}", "2"))
    fake_commands(tmp_path, monkeypatch, qsub=RUNS)
    (tmp_path / "run").write_text("trap 'touch saved; exit 1' TERM; sleep 50 & wait")
    (tmp_path / "job.sh").write_text(f"cd {tmp_path}\nbash run && exit 0 || exit 1")
    queues.submit("sge", Request("x", 1, 1, 1), tmp_path / "job.sh", tmp_path / "logs")
    until = time.monotonic() + 20  # what the script started may end later than the script
    while not (tmp_path / "saved").is_file() and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "saved").is_file()
    assert queues.status("sge", "7", tmp_path / "logs") == "failed"


@pytest.mark.parametrize(
    ("qstat", "end"),
    [
        ("echo job_state = R", "running"),
        ("echo job_state = F", "failed"),  # killed: no exit status was written
        ("echo qstat: Unknown Job Id 7 >&2; exit 153", "failed"),
        ("echo cannot connect to server >&2; exit 2", "running"),  # it says nothing about the job
        (
            "echo qstat: 7 Job has finished, use -x or -H to obtain historical job information >&2;"
            " exit 35",
            "failed",
        ),
    ],
)
def test_a_job_without_an_exit_status_is_what_the_queue_says(qstat, end, tmp_path, monkeypatch):
    monkeypatch.setattr(queues, "PATIENCE", 0)
    fake_commands(tmp_path, monkeypatch, qstat=qstat)
    assert queues.status("pbs", "7", tmp_path) == end


@pytest.mark.parametrize("line", ["error reason    1:  can't open output file", "context: x"])
def test_a_job_that_grid_engine_cannot_start_has_failed_and_its_reason_is_said(
    line, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(queues, "PATIENCE", 0)
    fake_commands(tmp_path, monkeypatch, qstat=f'echo "job_number: 7"; echo "{line}"')
    failed = line.startswith("error reason")
    assert queues.status("sge", "7", tmp_path) == ("failed" if failed else "running")
    assert ("can't open output file" in capsys.readouterr().err) == failed


def test_a_machine_without_the_queues_commands_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "job.sh").touch()
    with pytest.raises(UserError, match="no qsub here"):
        queues.submit("pbs", REQUEST, tmp_path / "job.sh", tmp_path / "logs")
    with pytest.raises(UserError, match="no qstat here"):
        queues.status("sge", "7", tmp_path)


def test_a_qsub_that_prints_nothing_is_one_sentence(tmp_path, monkeypatch):
    fake_commands(tmp_path, monkeypatch, qsub="exit 0")
    (tmp_path / "job.sh").touch()
    with pytest.raises(UserError, match="qsub gives no id of job 'train'"):
        queues.submit("pbs", REQUEST, tmp_path / "job.sh", tmp_path / "logs")


def test_a_job_that_qsub_refuses_is_its_own_sentence(tmp_path, monkeypatch):
    fake_commands(tmp_path, monkeypatch, qsub="echo qsub: Unknown queue >&2; exit 1")
    (tmp_path / "job.sh").touch()
    with pytest.raises(UserError, match="qsub refuses job 'train': qsub: Unknown queue"):
        queues.submit("pbs", REQUEST, tmp_path / "job.sh", tmp_path / "logs")


def plugin(name: str):
    """Skip a test where one of Snakemake's plugins is not installed."""
    found = importlib.util.find_spec(f"snakemake_executor_plugin_{name.replace('-', '_')}")
    reason = f"needs `pip install snakemake-executor-plugin-{name}`"
    return pytest.mark.skipif(found is None, reason=reason)


STUDY = """
question: Does it run on another queue?
defaults: {task: words, model: tiny, epochs: 1, learning_rate: 1.0e-2, max_length: 64}
grid:
  - {method: lora, targets: q+v, rank: [1, 2, 4, 8]}
"""
RUN = "results/small/runs/words/tiny/lora-r{}-q+v/s0/record.json"
TOLD = {"r1": ["ok"], "r2": ["fails"], "r4": ["limit"], "r8": ["killed"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Give a project whose task and model count as fetched and tokenised."""
    root = make_project(tmp_path_factory.mktemp("queues"), {"small": STUDY})
    for made in ("tasks/words", "models/tiny", "tokens/words/tiny-64"):
        (root / "resources" / made).mkdir(parents=True)
        (root / "resources" / made / "manifest.json").touch()
    return root


def start(
    project: Path, commands: Path, profile: str, *ranks: int, pause: int = 1
) -> subprocess.Popen:
    """Start Snakemake with a profile and stubs of the queue's commands.

    It asks every `pause` seconds how its jobs are.
    """
    shutil.rmtree(project / "results", ignore_errors=True)
    path = os.pathsep.join([str(commands), environment(project)["PATH"]])
    paths = os.pathsep.join([str(project / "src"), os.environ.get("PYTHONPATH", "")])
    quick = ["--seconds-between-status-checks", str(pause), "--latency-wait", "2"]
    quick += ["--rerun-triggers", "mtime", "--max-jobs-per-timespan", "50/1s"]
    return subprocess.Popen(
        ["snakemake", "--profile", f"profiles/{profile}", *quick, *map(RUN.format, ranks),
         "--config", "study=small", "launch=gpu"],
        cwd=project, env={**environment(project), "PATH": path, "PYTHONPATH": paths},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def minutes(words: list[str]) -> int:
    """Return the time limit that a submission asks for."""
    line = " ".join(words)
    if limit := re.search(r"(?:walltime|h_rt)=(\d+):(\d+):00", line):
        return int(limit[1]) * 60 + int(limit[2])
    return int(re.search(r"-W (\d+)", line)[1])


def memory(words: list[str]) -> int:
    """Return the memory in MB that a submission asks for."""
    return int(re.search(r"\bmem(?:_free)?=(\d+)", " ".join(words))[1])


@pytest.mark.slow
@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("profile", "gpu"),
    [
        pytest.param("pbs", ":ngpus=1 ", marks=plugin("cluster-generic")),
        pytest.param("sge", "-l gpu=1 ", marks=plugin("cluster-generic")),
        pytest.param("lsf", "-gpu num=1:j_exclusive=yes ", marks=plugin("lsf")),
    ],
)
def test_jobs_that_end_badly_are_submitted_again_with_more_time_and_memory(
    profile, gpu, project, tmp_path
):
    stub.install(tmp_path / "bin", "small", TOLD)
    if profile == "lsf":
        made = tmp_path / "bin/lsbatch/test/configdir"
        made.mkdir(parents=True)
        (made / "lsb.params").write_text("DEFAULT_QUEUE = normal\n")
    with start(project, tmp_path / "bin", profile, 1, 2, 4, 8) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    submitted = stub.jobs(tmp_path / "bin")
    for rank, ends in TOLD.items():
        tries = [job for job in submitted if f"lora-{rank}-" in job["subject"]]
        wanted = ends if ends == ["ok"] else [*ends, "ok"]
        assert [job["end"] for job in tries] == wanted
        first = minutes(tries[0]["words"])
        assert [minutes(job["words"]) for job in tries] == [first, 2 * first][: len(tries)]
        first = memory(tries[0]["words"])
        assert [memory(job["words"]) for job in tries] == [first, 2 * first][: len(tries)]
        assert all(gpu in " ".join(job["words"]) + " " for job in tries)


@pytest.mark.slow
@pytest.mark.pipeline
@plugin("cluster-generic")
def test_ctrl_c_cancels_what_is_in_the_queue(project, tmp_path):
    """But for jobs that Snakemake (its executor interface 9.4.0) asks about at that moment."""
    stub.install(tmp_path / "bin", "small", {"r1": ["lasts"]})
    with start(project, tmp_path / "bin", "pbs", 1, pause=15) as process:
        end = time.monotonic() + 120
        while not stub.jobs(tmp_path / "bin") and time.monotonic() < end:
            time.sleep(0.5)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (job,) = stub.jobs(tmp_path / "bin")
    assert job["end"] == "cancelled", output


@plugin("htcondor")
def test_htcondor_is_asked_for_time_memory_and_gpus(tmp_path, monkeypatch):
    """By the plugin itself, with a stand-in for HTCondor's library that records a submission."""
    recorded = []
    schedd = SimpleNamespace(submit=lambda job: recorded.append(job) or job)
    names = {"Schedd": lambda: schedd, "JobEventLog": None, "JobEventType": None}
    names["Submit"] = lambda fields: SimpleNamespace(
        fields=fields, issue_credentials=lambda: None, cluster=lambda: 7
    )
    monkeypatch.setitem(sys.modules, "htcondor2", SimpleNamespace(**names))
    module = importlib.import_module("snakemake_executor_plugin_htcondor")
    profile = yaml.safe_load(Path("profiles/htcondor/config.yaml").read_text())
    resources = {**node_request(launcher("gpu")), **profile["default-resources"]}
    resources |= {"htcondor_request_mem_mb": 8000, "allowed_execute_duration": 7200}
    job = SimpleNamespace(resources=resources, threads=2, name="train", jobid=1)
    shared = SimpleNamespace(shared_fs_usage=["all"])
    executor = SimpleNamespace(
        workflow=SimpleNamespace(storage_settings=shared), jobDir=str(tmp_path),
        logger=SimpleNamespace(**dict.fromkeys(("debug", "info", "warning"), lambda *_: None)),
        envvars=lambda: {"LORAUDIT": "/x"}, report_job_submission=lambda info: None,
        _unified_log_file=str(tmp_path / "log"), _log_resource_requests=lambda fields: None,
        _get_exec_args_and_transfer_files=lambda *_: ("python", "-m snakemake", [], [], []),
    )  # fmt: skip
    for name in ("_set_resources", "_handle_explicit_unit_resources", "_format_size_mb",
                 "_format_htcondor_environment"):  # fmt: skip
        method = getattr(module.Executor, name)
        setattr(executor, name, method.__get__(executor))
    module.Executor.run_job(executor, job)
    fields = recorded[0].fields
    wanted = {"request_gpus": 1, "request_memory": "8000MB", "request_cpus": "2", "getenv": True}
    assert {key: fields[key] for key in wanted} == wanted
    assert fields["allowed_execute_duration"] == 7200


@pytest.mark.parametrize("name", ["pbs", "sge", "lsf", "htcondor"])
def test_a_profile_submits_again_and_names_its_plugin(name):
    text = Path(f"profiles/{name}/config.yaml").read_text()
    profile = yaml.safe_load(text)
    assert f"snakemake-executor-plugin-{profile['executor']}" in text
    assert profile["retries"] == 2
    assert json.dumps(profile)  # plain values
