"""Give each job on a machine with several GPUs its own devices, by locks for each device.

Snakemake counts GPUs (`--resources gpu=2`) but does not say which one a job gets. A job holds a
lock of each of its devices for as long as its process lives; the system frees them when it ends,
even by a kill. A device has one lock, or several if several runs may share it. The locks are per
user: they do not see what other users run.

Nothing here starts CUDA: a process that has started it no longer heeds CUDA_VISIBLE_DEVICES.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from loraudit.base.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
PER_GPU = "LORAUDIT_RUNS_PER_GPU"
"""The environment variable by which a rule says how many runs may share a GPU."""
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID", "_CONDOR_SLOT")
"""Environment variables by which a job of a cluster's queue knows itself."""
FOLDER = "LORAUDIT_GPU_LOCKS"
"""The environment variable by which a site says where locks lie; else it is /dev/shm or /tmp.

That is one place for all of a machine, whatever TMPDIR a queue gives to each of its jobs.
"""
WAIT_SECONDS = 0.5

GPU = re.compile(r"GPU (\d+): (.+) \(UUID: ([^)]+)\)")
MIG = re.compile(r"\s+MIG .*\(UUID: ([^)]+)\)")


class Device(NamedTuple):
    """A GPU, or a part of one (MIG): what CUDA_VISIBLE_DEVICES calls it, and its product name."""

    name: str
    product: str


def installed() -> list[Device]:
    """Return the machine's GPUs as `nvidia-smi -L` lists them; none where it is missing or fails.

    They are called by number. Where a GPU is split into MIG instances, which have no numbers, all
    are called by their UUIDs, and its instances stand in its place.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        said = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed(said.stdout) if said.returncode == 0 else []


def listed(text: str) -> list[Device]:
    """Read what `nvidia-smi -L` prints: a line for each GPU, and below it one for each part."""
    gpus: list[tuple[str, str, str, list[str]]] = []
    for line in text.splitlines():
        if found := GPU.match(line):
            gpus.append((found[1], found[2], found[3], []))
        elif (found := MIG.match(line)) and gpus:
            gpus[-1][3].append(found[1])
    split = any(parts for *_, parts in gpus)
    return [
        Device(name, product)
        for number, product, uuid, parts in gpus
        for name in (parts or [uuid if split else number])
    ]


def visible() -> list[str]:
    """Return the names of the devices to share out: CUDA_VISIBLE_DEVICES, else the installed ones.

    As CUDA does, it takes the names (numbers, UUIDs of GPUs or of MIG instances) up to the first
    one that is empty or -1.
    """
    named = os.environ.get(VISIBLE)
    if named is None:
        return [device.name for device in installed()] or _counted()
    names = [name.strip() for name in named.split(",")]
    ends = [place for place, name in enumerate(names) if name in ("", "-1")]
    return list(dict.fromkeys(names[: ends[0]] if ends else names))


def _counted() -> list[str]:
    """Number the GPUs that torch finds where there is no nvidia-smi, as in some containers.

    A process of its own counts them, because counting may start CUDA.
    """
    if shutil.which("nvidia-smi"):
        return []
    program = "import torch; print(torch.cuda.device_count())"
    line = [sys.executable, "-c", program]
    counted = subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
    return [str(number) for number in range(int(counted or 0))]


def runs_per_gpu() -> int:
    """Return how many runs may share a GPU in this process's environment; 1 if it does not say."""
    return int(os.environ.get(PER_GPU, "1"))


@contextlib.contextmanager
def hold(wanted: int, devices: list[str], each: int = 1) -> Iterator[None]:
    """Hold `wanted` of the devices, so that programs started in the block see only these.

    This waits until that many devices are free. Inside a cluster's job the scheduler has usually
    chosen the devices: if exactly the wanted number is visible, nothing is locked. Otherwise the
    processes of a SLURM job share locks of their own, and all others of this user on the machine
    the same ones, since a queue that does not choose shows each of its jobs all devices. Without
    any device nothing is held: the program that is started says that there is none.

    Args:
        wanted: number of devices.
        devices: their names.
        each: how many jobs may hold a device at once.

    Raises:
        UserError: more devices are wanted than there are, or several MIG instances are, which
            CUDA does not let one run use.
    """
    check_devices(wanted, devices)
    in_job = any(os.environ.get(name) for name in JOBS)
    if wanted == 0 or not devices or (in_job and wanted == len(devices)):
        yield
        return
    slurm = os.environ.get("SLURM_JOB_ID")
    folder = _locks() / (f"loraudit-gpus-{os.getuid()}" + (f"-job-{slurm}" if slurm else ""))
    folder.mkdir(parents=True, exist_ok=True)
    held = _wait(wanted, devices, each, folder)
    os.environ[VISIBLE] = ",".join(held)
    try:
        yield
    finally:
        for lock in held.values():
            lock.release()


def _locks() -> Path:
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
    return Path(os.environ.get(FOLDER, shared))


def check_devices(wanted: int, devices: list[str]) -> None:
    """Refuse a run that no choice of the devices can give its GPUs.

    Raises:
        UserError: more devices are wanted than there are, or several MIG instances are.
    """
    if devices and wanted > len(devices):
        raise UserError(
            f"the launch file starts {wanted} processes with a GPU each on this machine, and "
            f"{len(devices)} can be used ({', '.join(devices)}); choose a launch file with fewer"
        )
    if wanted > 1 and any(name.startswith("MIG") for name in devices):
        raise UserError(
            f"a run on {wanted} GPUs can't use MIG instances ({', '.join(devices)}): CUDA lets a "
            "run see one of them; launch=gpu gives each run an instance"
        )


def _wait(wanted: int, devices: list[str], each: int, folder: Path) -> dict[str, FileLock]:
    """Wait until the wanted number of devices is free, and return {device: its lock}.

    Each try takes all of them or none, so that no two jobs wait for each other. Devices that no
    job has are tried first.
    """
    announced = False
    while True:
        held: dict[str, FileLock] = {}
        for place in range(each):
            for device in devices:
                if device in held or len(held) == wanted:
                    continue
                file = folder / f"{device.replace('/', '_')}.{place}"
                lock = FileLock(file, mode=0o600, fallback_to_soft=False)
                with contextlib.suppress(Timeout):  # another process has it
                    lock.acquire(blocking=False)
                    held[device] = lock
        if len(held) == wanted:
            return held
        for lock in held.values():
            lock.release()
        if not announced:
            print(f"waiting for {wanted} free of GPUs {', '.join(devices)}", file=sys.stderr)
            announced = True
        time.sleep(WAIT_SECONDS)
