"""What a study survives: killed jobs and Snakemakes, full disks, edits, clocks, hostile names.

After each fault a rerun completes, nothing wrong is kept, and nothing good is lost.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from loraudit.base.files import folder_fingerprint
from loraudit.studies.record import read_record
from tiny_project import (
    command,
    edited,
    environment,
    make_project,
    snakemake,
)

pytestmark = [pytest.mark.pipeline, pytest.mark.long]

CONFIG = "study=faulty checkpoint_minutes=0"
STUDY = """
question: What does a study survive?
defaults: {task: words, model: tiny, epochs: 5, global_batch: 16, learning_rate: 1.0e-2,
           rank: 2, max_length: 64, validation_rows: 16}
grid:
  - {method: lora, targets: q+v, seed: [0, 1, 2, 3, 4, 5, 6]}
"""


class Run:
    """A run of the study, by its seed, and what is on disk of it."""

    def __init__(self, project: Path, seed: int):
        self.project = project
        self.folder = project / f"results/faulty/runs/words/tiny/lora-r2-q+v/s{seed}"
        self.log = project / f"logs/faulty/train/words/tiny/lora-r2-q+v-s{seed}.log"
        self.record = self.folder / "record.json"
        self.target = str(self.record.relative_to(project))

    def step(self) -> int:
        """Return the step of its newest checkpoint, 0 without one."""
        found = self.folder.glob("checkpoint/step-*")
        return max((int(path.name.partition("-")[2]) for path in found), default=0)

    def said(self) -> str:
        """Return its log so far; Snakemake deletes the last job's as it starts the next."""
        with suppress(FileNotFoundError):
            return self.log.read_text()
        return ""

    def wait(self, step: int, process: subprocess.Popen) -> None:
        """Wait for a checkpoint."""
        until(lambda: self.step() >= step or process.poll() is not None)
        assert process.poll() is None

    def resumed(self) -> list[int]:
        """Check that the run is complete, and return the steps after which it went on."""
        record = read_record(self.record)
        assert not (self.folder / "checkpoint").exists()
        assert record.train.steps == 5 * 16
        assert folder_fingerprint(self.folder).keys() == {*record.files, "record.json"}
        return [entry["step"] for entry in record.environment["resumed"]]


def until(condition, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@contextmanager
def started(project, *runs: Run, cores: int = 2):
    """Give a Snakemake at work, in a process group of its own, which is gone afterwards."""
    words = ["snakemake", "--cores", str(cores), *(run.target for run in runs)]
    with open(project / "started.txt", "w") as out:
        process = subprocess.Popen(
            [*words, "--config", *CONFIG.split()],
            cwd=project,
            env=environment(project),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def trainer(process: subprocess.Popen, run: Run) -> psutil.Process:
    """Return the Python process that trains a run below a Snakemake: a copy of its server."""
    for child in psutil.Process(process.pid).children(recursive=True):
        copy = child.cmdline()[1:3] == ["-P", str(run.project / "src/loraudit/base/forks.py")]
        logs = [file.path for file in child.open_files()] if copy else []
        if str(run.log) in logs and not child.children():  # its parent waits for it
            return child
    raise AssertionError(f"nothing trains seed {run.folder.name}")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("faults"), {"faulty": STUDY})


@pytest.fixture(scope="module")
def runs(project):
    """Give the runs of the study, its tokens being made."""
    snakemake(project, "resources/tokens/words/tiny-64/manifest.json", config=CONFIG)
    return [Run(project, seed) for seed in range(7)]


def again(project, *runs: Run, ok: bool = True) -> str:
    return snakemake(project, *(run.target for run in runs), config=CONFIG, ok=ok)


def test_kill_9_of_a_job_costs_that_job_the_steps_since_its_checkpoint(project, runs):
    killed, other = runs[:2]
    with started(project, killed, other) as process:
        killed.wait(3, process)
        trainer(process, killed).kill()
        assert process.wait() == 1
    assert "failed: train lora r2 q+v s0" in (project / "started.txt").read_text()
    assert not killed.record.exists()
    assert other.resumed() == []
    step, kept = killed.step(), folder_fingerprint(other.folder)
    again(project, killed, other)
    assert killed.resumed() == [step]
    assert folder_fingerprint(other.folder) == kept


def test_a_second_snakemake_is_told_and_sigterm_to_the_group_saves_all(project, runs):
    run = runs[2]
    with started(project, run) as process:
        run.wait(3, process)
        job = trainer(process, run)
        job.suspend()  # else it may be done before the second Snakemake has started
        output = again(project, run, ok=False)
        assert "Error: Directory cannot be locked" in output
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGTERM)
        job.resume()
        asked = time.monotonic()
        process.wait()
        until(lambda: "stopped by SIGTERM" in run.log.read_text(), 20)
        assert time.monotonic() - asked < 20
    said = run.log.read_text()
    step = int(re.search(r"stopped by SIGTERM at step (\d+); the next start goes on", said)[1])
    assert run.step() == step
    again(project, run)  # without --unlock
    assert run.resumed() == [step]


def test_kill_9_of_snakemake_and_its_jobs_leaves_a_lock_and_the_checkpoint(project, runs):
    run = runs[3]
    with started(project, run) as process:
        run.wait(3, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    step = run.step()
    assert "Directory cannot be locked" in again(project, run, ok=False)
    snakemake(project, "--unlock", config=CONFIG)
    again(project, run)
    assert run.resumed() == [step]


def test_kill_9_of_snakemake_alone_leaves_a_job_whose_result_is_kept(project, runs):
    """The job goes on; a new Snakemake's job waits for it and takes its result."""
    run = runs[4]
    with started(project, run) as process:
        run.wait(3, process)
        orphan = trainer(process, run)
        process.kill()
        process.wait()
        orphan.suspend()
        snakemake(project, "--unlock", config=CONFIG)
        with started(project, run) as new:
            until(lambda: "another process is training this run; waiting" in run.said())
            orphan.resume()
            assert new.wait() == 0
    assert "its result is kept" in run.log.read_text()
    assert run.resumed() == []
    assert "Nothing to be done" in again(project, run)


def test_an_edit_of_the_library_in_the_middle_of_a_study_mixes_nothing(project, runs):
    first, second = runs[4:6]
    first.record.unlink(missing_ok=True)
    with started(project, first, second, cores=1) as process:
        until(lambda: first.step() or second.step())
        now, later = (first, second) if first.step() else (second, first)
        with edited(project / "src/loraudit/adapters/lora.py", "alpha / rank", "2 * alpha / rank"):
            assert process.wait() == 1
            said = (project / "started.txt").read_text()
            assert "error: the code was edited since this run was planned; start snakemake" in said
    assert now.resumed() == []
    assert not later.record.exists()
    kept = folder_fingerprint(now.folder)
    again(project, first, second)
    assert later.resumed() == []
    assert folder_fingerprint(now.folder) == kept


def trained(project, *runs: Run) -> list[str]:
    """Return the runs that a dry run would train."""
    output = snakemake(project, "-n", *(run.target for run in runs), config=CONFIG)
    return re.findall(r"^Job \d+: (train .*)$", output, re.M)


def test_times_retrain_nothing_and_a_refetch_of_the_same_data_neither(project, runs):
    again(project, *runs[:2])
    resources, day = project / "resources", 24 * 3600
    for path in resources.rglob("*"):
        os.utime(path, (time.time() + day,) * 2)
    assert trained(project, *runs[:2]) == []
    assert "could indicate a clock skew problem" in again(project, runs[6], ok=False)
    for path in resources.rglob("*"):
        os.utime(path)
    for path in (project / "results").rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert trained(project, *runs[:2]) == []
    shutil.rmtree(resources / "tokens")
    (resources / "tasks/words/manifest.json").unlink()
    assert trained(project, *runs[:2]) == []
    snakemake(project, "resources/tokens/words/tiny-64/manifest.json", config=CONFIG)
    assert trained(project, *runs[:2]) == []


def test_damaged_tokens_are_named_and_made_again_without_retraining(project, runs):
    kept, lost = runs[:2]
    again(project, kept, lost)
    before, tokens = folder_fingerprint(kept.folder), project / "resources/tokens/words/tiny-64"
    content = bytearray((tokens / "train.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (tokens / "train.arrow").write_bytes(content)
    shutil.rmtree(lost.folder)
    output = again(project, kept, lost, ok=False)
    assert "train.arrow: changed since it was made; delete resources/tokens/words" in output
    assert not lost.record.exists()
    shutil.rmtree(tokens)
    snakemake(project, "resources/tokens/words/tiny-64/manifest.json", config=CONFIG)
    assert len(trained(project, kept, lost)) == 1
    again(project, kept, lost)
    assert folder_fingerprint(kept.folder) == before


@contextmanager
def mounted(folder: Path, options: str):
    """Mount a small memory disk on a folder, as root; skip where that can't be done."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount program here")
    if done.returncode:
        pytest.skip(f"needs the right to mount a memory disk: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_and_a_read_only_one_are_one_sentence(project, runs):
    run, results = runs[0], project / "results"
    shutil.rmtree(run.folder, ignore_errors=True)
    kept = folder_fingerprint(results)
    with mounted(results, "size=48k"):
        output = again(project, run, ok=False)
        assert re.search(r"error: .*No space left on device", output)
        assert "Traceback" not in output
        assert not run.record.exists()
    with mounted(results, "size=1m"):
        run.folder.mkdir(parents=True)
        subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
        output = again(project, run, ok=False)
        assert "Read-only file system" in output
    assert folder_fingerprint(results) == kept
    again(project, run)
    assert run.resumed() == []


EVIL = "$(touch pwned) `touch pwned` 'q' \"d\"; touch pwned & {wildcards.x} {x} | <script>alert(1)"


def test_hostile_words_in_paths_and_texts_run_nothing(tmp_path):
    """In the project's folder, the data's, the question and the class names; no secret is kept."""
    root = make_project(tmp_path / "prøjekt 'q' $(touch pwned) ☃", {})
    folder = f"data ü {EVIL.replace('/', '')} -n"
    (root / "hub").rename(root / folder)
    tasks = yaml.safe_load((root / "config/tasks.yaml").read_text())
    source = {"hub": "owner/name", "revision": "0" * 40, "config": "sst2"}
    tasks["words"] |= {"source": source, "classes": [EVIL, f"-{EVIL}\n"]}
    (root / "config/tasks.yaml").write_text(yaml.safe_dump(tasks))
    text = STUDY.replace("method: lora, targets: q+v, seed: [0, 1, 2, 3, 4, 5, 6]", "method: head")
    study = yaml.safe_load(text.replace("epochs: 5", "epochs: 1")) | {"question": EVIL}
    (root / "config/studies/faulty.yaml").write_text(yaml.safe_dump(study))
    secrets = {"HF_TOKEN": "hf_secret4242", "AWS_SECRET_ACCESS_KEY": "secret4242"}
    config = ["study=faulty", f"glue={folder}"]
    for words in (["-n"], ["--cores", "2", "results/faulty/report.html"]):
        output = command(root, "env", *(f"{key}={value}" for key, value in secrets.items()),
                         "snakemake", *words, "--config", *config)  # fmt: skip
        assert "secret4242" not in output
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in found if path.name == "pwned"]
    assert not [path for path in found if b"secret4242" in path.read_bytes()]
    shown = [path for path in found if path.suffix in (".html", ".svg", ".md")]
    assert len(shown) > 5
    assert not [path for path in shown if b"<script>alert" in path.read_bytes()]
    page = (root / "results/faulty/report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page


def test_a_folder_with_braces_in_its_name_is_refused(tmp_path):
    output = snakemake(
        make_project(tmp_path / "a{b}", {}), "-n", config="study=quickstart", ok=False
    )
    assert "Snakemake can't work in a folder with { or } in its name" in output
    assert "Traceback" not in output
