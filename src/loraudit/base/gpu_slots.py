"""Give each job on a machine with several GPUs its own devices, by one lock for each device.

Snakemake counts GPUs (`--resources gpu=2`) but does not say which one a job gets. A job holds the
locks of its devices for as long as its process lives; the system frees them when it ends, even by a
kill. The locks are per user: they do not see what other users run.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAIT_SECONDS = 0.5


def visible(count: int) -> list[str]:
    """Return the names of the devices to share out: CUDA_VISIBLE_DEVICES, else 0 to `count` - 1."""
    named = os.environ.get(VISIBLE)
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",") if name.strip()]


@contextlib.contextmanager
def hold(wanted: int, devices: list[str]) -> Iterator[None]:
    """Hold `wanted` of the devices, so that programs started in the block see only these.

    This waits until that many devices are free. Inside a SLURM job the scheduler has already chosen
    the devices: if exactly the wanted number is visible, nothing is locked; otherwise only the
    processes of that job share the locks.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if wanted == 0 or (wanted > len(devices)) or (job and wanted == len(devices)):
        yield
        return
    name = f"loraudit-gpus-{os.getuid()}" + (f"-job-{job}" if job else "")
    folder = Path(tempfile.gettempdir(), name)
    folder.mkdir(exist_ok=True)
    held = _wait(wanted, devices, folder)
    os.environ[VISIBLE] = ",".join(held)
    try:
        yield
    finally:
        for lock in held.values():
            lock.release()


def _wait(wanted: int, devices: list[str], folder: Path) -> dict[str, FileLock]:
    """Wait until the wanted number of devices is free, and return {device: its lock}.

    Each try takes all of them or none, so that no two jobs wait for each other.
    """
    announced = False
    while True:
        held: dict[str, FileLock] = {}
        for device in devices:
            lock = FileLock(folder / device.replace("/", "_"), mode=0o600, fallback_to_soft=False)
            with contextlib.suppress(Timeout):  # another process has it
                if len(held) < wanted:
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
