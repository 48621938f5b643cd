"""A copy is the program that was asked for, and it ends as the job does."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from loraudit.base import forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")

STARTER = """
import os, sys
from loraudit.base.forks import ADDRESS, start_server
start_server(1)
print(os.environ[ADDRESS], flush=True)
sys.stdin.read()
"""
JOB = """
import json, sys
from loraudit.base.forks import run_as_copy
print("status", run_as_copy(json.loads(sys.argv[1]), ["slow_library", "no_such_module"]))
"""
PROGRAM = """
import json, os, sys
import slow_library
print(json.dumps({"words": sys.argv[1:], "folder": os.getcwd(), "path": sys.path[0],
    "told": os.environ.get("TOLD"), "loaded_by": slow_library.by, "main": __name__,
    "asks": "LORAUDIT_COPIES" in os.environ, "mine": os.getpid(), "input": sys.stdin.read()}))
print("to stderr", file=sys.stderr)
"""
WAITING = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1] + ".got").write_text(str(number))
    raise SystemExit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
pathlib.Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
time.sleep(60)
"""


@pytest.fixture
def server(tmp_path):
    """Give the environment of jobs that have a server, and the process that started it."""
    (tmp_path / "slow_library.py").write_text("import os\nby = os.getpid()\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "waiting.py").write_text(WAITING)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, **dict.fromkeys(forks.THREADS, "1")}
    environment |= forks.OFFLINE
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    yield environment | {forks.ADDRESS: starter.stdout.readline().strip()}, starter
    starter.communicate()


def job(environment, *words: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", JOB, json.dumps(list(map(str, words)))]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=environment, text=True, **pipes, **options)


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_a_copy_takes_over_all_that_the_job_has(server, tmp_path):
    environment, _ = server
    (tmp_path / "elsewhere").mkdir()
    said = []
    for word in ("a b", "c"):
        asked = job(
            environment | {"LORAUDIT_TOLD": "1", "TMPDIR": str(tmp_path)},
            tmp_path / "program.py",
            word,
            cwd=tmp_path / "elsewhere",
        )
        out, errors = asked.communicate("from the job")
        line, status = out.splitlines()
        assert (status, errors) == ("status 0", "to stderr\n")
        said.append(json.loads(line))
        assert said[-1]["folder"] == str(tmp_path / "elsewhere")
        assert said[-1]["path"] == str(tmp_path)
        assert (said[-1]["words"], said[-1]["main"]) == ([word], "__main__")
        assert (said[-1]["input"], said[-1]["asks"]) == ("from the job", False)
    assert said[0]["loaded_by"] == said[1]["loaded_by"]  # imported once, by the server
    assert len({said[0]["loaded_by"], said[0]["mine"], said[1]["mine"]}) == 3


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('a sentence')", 1),
        ("1 / 0", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_the_jobs_status_is_the_copys(server, tmp_path, program, status):
    (tmp_path / "ends.py").write_text(program)
    out, errors = job(server[0], tmp_path / "ends.py").communicate()
    assert out == f"status {status}\n"
    assert ("a sentence" in errors) == ("sentence" in program)
    assert ("ZeroDivisionError" in errors) == ("/" in program)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_job_reaches_the_copy(server, tmp_path, number):
    asked = job(server[0], tmp_path / "waiting.py", tmp_path / "pid")
    until((tmp_path / "pid").exists)
    asked.send_signal(number)
    assert asked.communicate()[0] == f"status {128 + number}\n"
    assert (tmp_path / "pid.got").read_text() == str(int(number))


def test_a_signal_while_the_server_imports_is_not_lost(server, tmp_path):
    slow = f"open({str(tmp_path / 'begun')!r}, 'w'); import time; time.sleep(2)"
    (tmp_path / "slow_library.py").write_text(slow)
    jobs = [job(server[0], tmp_path / "waiting.py", tmp_path / f"pid{i}") for i in range(2)]
    until((tmp_path / "begun").exists)  # for the one; the other waits to be asked
    time.sleep(0.5)
    for asked in jobs:
        asked.terminate()
    assert {asked.communicate()[0] for asked in jobs} == {f"status {128 + signal.SIGTERM}\n"}


def test_a_job_starts_by_itself_if_the_server_ends_before_it_copies(server, tmp_path):
    (tmp_path / "slow_library.py").write_text("import os; os._exit(1)")
    assert job(server[0], tmp_path / "program.py").communicate()[0] == "status None\n"


def test_without_a_socket_or_pidfd_there_is_no_server(monkeypatch, tmp_path):
    monkeypatch.delenv(forks.ADDRESS, raising=False)
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(forks.tempfile, "tempdir", str(long))
    forks.start_server(1)
    monkeypatch.setattr(forks.tempfile, "tempdir", None)
    monkeypatch.delattr(os, "pidfd_open")
    forks.start_server(1)
    assert forks.ADDRESS not in os.environ


def test_ctrl_z_stops_the_copy_too(server, tmp_path):
    asked = job(server[0], tmp_path / "waiting.py", tmp_path / "pid")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    copy = psutil.Process(int((tmp_path / "pid").read_text()))
    asked.send_signal(signal.SIGTSTP)
    until(lambda: {copy.status(), psutil.Process(asked.pid).status()} == {psutil.STATUS_STOPPED})
    asked.send_signal(signal.SIGCONT)
    until(lambda: copy.status() == psutil.STATUS_SLEEPING)
    asked.terminate()
    assert asked.communicate()[0] == f"status {128 + signal.SIGTERM}\n"


def test_killing_the_job_kills_the_copy(server, tmp_path):
    asked = job(server[0], tmp_path / "waiting.py", tmp_path / "pid")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    asked.kill()
    asked.communicate()
    until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))
    assert not (tmp_path / "pid.got").exists()


def test_a_copy_outlives_the_server_and_its_end_is_still_told(server, tmp_path):
    environment, starter = server
    asked = job(environment, tmp_path / "waiting.py", tmp_path / "pid")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    copy = psutil.Process(int((tmp_path / "pid").read_text()))
    server_process = copy.parent().parent()
    starter.kill()  # as a Snakemake that is killed
    server_process.wait(60)
    assert copy.is_running()
    asked.terminate()
    assert asked.communicate()[0] == f"status {128 + signal.SIGTERM}\n"
    out, _ = job(environment, tmp_path / "program.py").communicate()
    assert out == "status None\n"  # who asks now must start by itself


@pytest.mark.parametrize(
    "other", [{"OMP_NUM_THREADS": "2"}, {"MKL_CBWR": "COMPATIBLE"}, {forks.ADDRESS: ""}]
)
def test_with_another_environment_a_job_starts_by_itself(server, tmp_path, other):
    out, _ = job(server[0] | other, tmp_path / "program.py").communicate()
    assert out == "status None\n"


def test_copies_do_not_share_random_numbers(server, tmp_path):
    program = (
        "import random, tempfile, numpy; print(random.random(), numpy.random.rand(), "
        "tempfile.mktemp())"
    )
    (tmp_path / "draws.py").write_text(program)
    (tmp_path / "slow_library.py").write_text("import numpy, random, tempfile")
    drawn = [job(server[0], tmp_path / "draws.py").communicate()[0].split() for _ in range(2)]
    assert not set(drawn[0][:3]) & set(drawn[1][:3])


def test_nothing_is_left_of_a_server(server, tmp_path):
    environment, starter = server
    folder = os.path.dirname(environment[forks.ADDRESS].rpartition(":")[0])
    below = psutil.Process(starter.pid).children(recursive=True)
    assert len(below) == 1 and os.path.isdir(folder)
    starter.communicate()
    with suppress(psutil.NoSuchProcess):
        below[0].wait(60)
    assert not os.path.exists(folder)
