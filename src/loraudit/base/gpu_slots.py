"""Give each job on a machine with several GPUs devices of its own, by a lock per device.

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
    """Return the names of the devices to share out: those visible, else 0 ... `count` - 1."""
    named = os.environ.get(VISIBLE)
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",") if name.strip()]


@contextlib.contextmanager
def hold(wanted: int, devices: list[str]) -> Iterator[None]:
    """Hold `wanted` of the devices, and show only these to what is started in the block.

    This waits until as many are free. Inside of a SLURM job the scheduler has chosen already: where
    only the wanted number is visible, nothing is locked, and otherwise only the processes of that
    job share the locks.
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
    """Wait until as many devices are free, and return {device: its lock}.

    Each try takes all of them or none, so that no two jobs wait for each other.
    """
    said = False
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
        if not said:
            print(f"waiting for {wanted} free of GPUs {', '.join(devices)}", file=sys.stderr)
            said = True
        time.sleep(WAIT_SECONDS)
