"""Jobs on one machine get a GPU each: with made-up devices, since a lock needs no GPU."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from loraudit.base.errors import UserError
from loraudit.base.gpu_slots import (
    FOLDER,
    JOBS,
    PER_GPU,
    VISIBLE,
    Device,
    hold,
    installed,
    listed,
    visible,
)

JOB = """
import os, pathlib, sys, time
from loraudit.base.gpu_slots import hold, runs_per_gpu, visible
with hold(int(sys.argv[2]), visible(), runs_per_gpu()):
    out = pathlib.Path(sys.argv[1], str(os.getpid()))
    started, device = time.monotonic(), os.environ["CUDA_VISIBLE_DEVICES"]
    out.write_text(f"{device} {started} inf")
    time.sleep(float(sys.argv[3]))
    out.write_text(f"{device} {started} {time.monotonic()}")
"""


def apart(monkeypatch, tmp_path) -> None:
    """Let a test have locks of its own, and be in no job of a queue."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "locks"))
    for name in JOBS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Give a function that starts a job on devices 3 and 5; all are ended after the test."""
    monkeypatch.setenv(VISIBLE, "3,5")
    apart(monkeypatch, tmp_path)
    (tmp_path / "jobs").mkdir()
    jobs = []

    def begin(wanted: int = 1, seconds: float = 0.3) -> subprocess.Popen:
        line = [sys.executable, "-c", JOB, str(tmp_path / "jobs"), str(wanted), str(seconds)]
        jobs.append(subprocess.Popen(line, stderr=subprocess.PIPE, text=True))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()
        job.communicate()


def held(tmp_path) -> list[tuple[set[str], float, float]]:
    """Return what each job had: devices, from, to."""
    rows = [path.read_text().split() for path in (tmp_path / "jobs").iterdir()]
    return [(set(devices.split(",")), float(a), float(b)) for devices, a, b in rows]


def wait_for(path) -> None:
    end = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)


def no_device_twice(found) -> bool:
    pairs = itertools.combinations(found, 2)
    return all(not (a & b) or end <= begin2 or end2 <= begin
               for (a, begin, end), (b, begin2, end2) in pairs)  # fmt: skip


def test_jobs_at_once_never_share_a_device(start, tmp_path):
    jobs = [start(wanted) for wanted in (1, 1, 2, 1, 1, 2, 1)]
    assert [job.wait() for job in jobs] == [0] * 7
    found = held(tmp_path)
    assert sorted(len(devices) for devices, *_ in found) == [1, 1, 1, 1, 1, 2, 2]
    assert set.union(*(devices for devices, *_ in found)) == {"3", "5"}
    assert no_device_twice(found)
    assert not no_device_twice([({"3"}, 0.0, 2.0), ({"3", "5"}, 1.0, 3.0)])  # the check can fail


def test_a_killed_jobs_device_is_free_at_once(start, tmp_path):
    both = [start(seconds=600) for _ in range(2)]
    for job in both:
        wait_for(tmp_path / f"jobs/{job.pid}")
    waiting = start(seconds=0)
    assert waiting.stderr.readline() == "waiting for 1 free of GPUs 3, 5\n"
    killed, _ = (tmp_path / f"jobs/{both[0].pid}").read_text().split(maxsplit=1)
    both[0].send_signal(signal.SIGKILL)
    assert waiting.wait(30) == 0
    assert (tmp_path / f"jobs/{waiting.pid}").read_text().split()[0] == killed
    assert both[1].poll() is None


@pytest.mark.parametrize("queue", JOBS)
def test_a_queue_has_chosen_already(queue, start, tmp_path, monkeypatch):
    """Two jobs of a cluster may both call their device 3: that is another one for each."""
    monkeypatch.setenv(queue, "7")
    monkeypatch.setenv(VISIBLE, "3")
    jobs = [start(seconds=600) for _ in range(2)]
    for job in jobs:
        wait_for(tmp_path / f"jobs/{job.pid}")
    assert [devices for devices, *_ in held(tmp_path)] == [{"3"}, {"3"}]


def test_several_jobs_inside_one_slurm_job_share_its_devices_out(start, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    jobs = [start() for _ in range(4)]
    assert [job.wait() for job in jobs] == [0] * 4
    assert no_device_twice(held(tmp_path))


def test_jobs_of_a_queue_that_chooses_no_device_share_them_out(start, tmp_path, monkeypatch):
    """Each has a TMPDIR of its own, and all see all devices: each took the first."""
    monkeypatch.setenv("PBS_JOBID", "7.server")
    jobs = []
    for number in range(3):
        (tmp_path / f"tmp{number}").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / f"tmp{number}"))
        jobs.append(start())
    assert [job.wait() for job in jobs] == [0] * 3
    assert no_device_twice(held(tmp_path))


def test_two_runs_may_share_each_device_and_no_more(start, tmp_path, monkeypatch):
    monkeypatch.setenv(PER_GPU, "2")
    jobs = [start(seconds=600) for _ in range(4)]
    for job in jobs:
        wait_for(tmp_path / f"jobs/{job.pid}")
    assert sorted(device for devices, *_ in held(tmp_path) for device in devices) == list("3355")
    assert start().stderr.readline() == "waiting for 1 free of GPUs 3, 5\n"


def test_a_free_device_is_taken_before_a_shared_one(start, tmp_path, monkeypatch):
    monkeypatch.setenv(PER_GPU, "2")
    for count in (1, 2):
        wait_for(tmp_path / f"jobs/{start(seconds=600).pid}")
        assert len(set.union(*(devices for devices, *_ in held(tmp_path)))) == count


@pytest.mark.parametrize(
    ("named", "devices"),
    [
        ("GPU-8a, MIG-2/1", ["GPU-8a", "MIG-2/1"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["1"]),  # CUDA stops at the first name that is none
        ("2,2,0", ["2", "0"]),
    ],
)
def test_devices_are_those_that_cuda_would_see(named, devices, monkeypatch):
    monkeypatch.setenv(VISIBLE, named)
    assert visible() == devices


WHOLE = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1a)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-2b)
"""
SPLIT = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1a)
  MIG 3g.20gb     Device  0: (UUID: MIG-c0)
  MIG 3g.20gb     Device  1: (UUID: MIG-c1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2b)
"""


def test_gpus_are_numbered_and_parts_of_a_gpu_have_their_uuids():
    assert listed(WHOLE) == [("0", "NVIDIA H100 80GB HBM3"), ("1", "NVIDIA A100-SXM4-40GB")]
    assert [device.name for device in listed(SPLIT)] == ["MIG-c0", "MIG-c1", "GPU-2b"]
    assert listed("No devices found\n") == []


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Give a function that puts a program nvidia-smi onto the PATH, with what it prints."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def install(text: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")
        program.chmod(0o755)

    return install


def test_without_the_variable_the_machine_is_asked(nvidia_smi):
    nvidia_smi(SPLIT)
    assert visible() == ["MIG-c0", "MIG-c1", "GPU-2b"]
    assert installed()[0] == Device("MIG-c0", "NVIDIA A100-SXM4-40GB")
    nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the driver\n", 9)
    assert installed() == visible() == []


def test_more_gpus_than_there_are_and_several_mig_instances_are_refused():
    many = r"4 processes with a GPU each .* 2 can be used \(3, 5\)"
    with pytest.raises(UserError, match=many), hold(4, ["3", "5"]):
        pass
    parts = "a run on 2 GPUs can't use MIG instances"
    with pytest.raises(UserError, match=parts), hold(2, ["MIG-a", "MIG-b"]):
        pass


def test_a_cpu_run_touches_nothing(monkeypatch):
    monkeypatch.setenv(VISIBLE, "3,5")
    with hold(0, visible()):
        assert os.environ[VISIBLE] == "3,5"


SPY = """
import os, runpy, sys, torch
seen = []
def count():  # what starts the driver where NVML can't tell, as with MIG instances
    seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return 0
torch._C._cuda_getDeviceCount = count
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    torch.cuda.is_available()
    print(seen)
"""


def test_cuda_is_not_started_before_the_run_has_its_device(tmp_path, monkeypatch):
    """A process that has started CUDA no longer heeds the variable: all would share a device."""
    monkeypatch.setenv(VISIBLE, "MIG-a,MIG-b")
    apart(monkeypatch, tmp_path)
    for name, text in (("spy.py", SPY), ("program.py", "import torch; torch.cuda.is_available()")):
        (tmp_path / name).write_text(text)
    line = [sys.executable, str(tmp_path / "spy.py"), "scripts/launch.py", "--config_file"]
    line += ["profiles/accelerate/gpu.yaml", str(tmp_path / "program.py")]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    seen = eval(said.splitlines()[-1])
    assert len(seen) >= 2 and set(seen) == {"MIG-a"}


PROGRAM = """
import os, sys, time
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(600)
"""


def test_the_launcher_gives_each_run_its_gpu(tmp_path, monkeypatch):
    """Two launches of profiles/accelerate/gpu.yaml at once, and the program that each starts."""
    monkeypatch.setenv(VISIBLE, "3,5")
    apart(monkeypatch, tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    line = [sys.executable, "scripts/launch.py", "--config_file", "profiles/accelerate/gpu.yaml"]
    line += [str(tmp_path / "program.py")]
    jobs = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        assert {job.stdout.readline().strip() for job in jobs} == {"3", "5"}
    finally:
        for job in jobs:
            job.kill()
            job.communicate()
