"""A run's checkpoint: all that the loop needs to go on where it stopped, bit for bit.

On the same kind of CPU, a resumed run gives the same bits as one that was never stopped. On another
kind it goes on too, since jobs move between machines, and its record names both kinds.

<run>/checkpoint/step-<n>/ holds state.pt (what the loop needs), random-<process>.pt (the state of
each process's random numbers) and manifest.json, which is written last and holds the hashes of the
.pt files and what the checkpoint belongs to. A checkpoint that is damaged, or was made with other
code, data, threads or processes, is not used. The .pt files are read with `weights_only`.

Accelerate's own save_state is not used: it writes the frozen model each time, reads custom objects
as arbitrary pickles, and goes on in silence if random numbers can't be restored
(accelerate 1.15.0, checkpointing.py).
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from humanize import naturalsize

from loraudit.base.files import folder_fingerprint, read_json, write_json

MANIFEST = "manifest.json"
LOCK = ".lock"
"""Name of a file in the run's folder; the process that trains the run holds its lock."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: <run>/checkpoint; it is made here and deleted by `remove`.
        accelerator: knows the processes that take part; all of them save and load.
        belongs: names and values, such as digests, that a checkpoint must share to be used again.
        minutes: time between two checkpoints; 0 makes one after every step.

    If another process already trains this run, the constructor waits until that process ends, and
    sets `waited` to True.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, belongs: dict, minutes: float):
        self.folder, self.accelerator = folder, accelerator
        self.belongs = json.loads(json.dumps(belongs))  # as read from a manifest
        self.seconds = 60 * minutes
        self.last = time.monotonic()
        self.signal: int | None = None
        self.waited = False
        self.lock = self._lock() if accelerator.is_main_process else None

    def _lock(self) -> FileLock | None:
        """Lock the run for this process, and make the folder.

        The system frees the lock when the process ends, whatever ends it. The locked file lies
        beside the folder and not in it, because the other process deletes the folder when its run
        is complete.

        Returns:
            The lock; None on a file system without locks.
        """
        lock = FileLock(self.folder.with_name(LOCK), fallback_to_soft=False)
        while not lock.is_locked:
            try:
                lock.acquire(blocking=self.waited, poll_interval=1)
            except Timeout:
                self.say("another process is training this run; waiting for it to end")
                self.waited = True
            except OSError as error:
                if not (self.waited and isinstance(error, FileNotFoundError)):
                    break
                # the run's folder was deleted during the wait; the next try makes it again
        self.folder.mkdir(parents=True, exist_ok=True)
        return lock if lock.is_locked else None

    def __enter__(self) -> "Checkpoints":
        """From here on, note SIGTERM and SIGINT in `signal` instead of dying of them."""
        self.before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the signals' handlers, and let other processes train the run."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):  # it is missing, or holds a checkpoint
            self.folder.rmdir()
        if self.lock is not None:
            # deleted while it is held, so that a waiting process locks a new file of that name
            Path(self.lock.lock_file).unlink(missing_ok=True)
            self.lock.release()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number

    def due(self) -> bool:
        """Tell whether it is time for the next checkpoint."""
        return time.monotonic() - self.last >= self.seconds

    def save(self, step: int, content: dict) -> bool:
        """Write the checkpoint of a step, then delete the older ones; all processes must call this.

        Returns:
            Whether it was written. Without room on the disk, the run goes on with a warning.
        """
        self.last = time.monotonic()
        new = self.folder / f".step-{step}"
        try:
            self._write(new, content)
        except (OSError, RuntimeError) as error:  # torch.save's errors are RuntimeErrors
            if self.accelerator.num_processes > 1:  # the others would wait for this one
                raise
            shutil.rmtree(new, ignore_errors=True)
            reason, free = " ".join(str(error).split())[:200], shutil.disk_usage(self.folder).free
            self.say(f"no checkpoint at step {step}: {reason} ({naturalsize(free)} free there)")
            return False
        if self.accelerator.is_main_process:
            files = folder_fingerprint(new)
            write_json(new / MANIFEST, {"belongs": self.belongs, "files": files})
            older = self._newest_first()
            os.replace(new, self.folder / f"step-{step}")
            for folder in older:
                if folder.name != f"step-{step}":
                    shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        return True

    def _write(self, new: Path, content: dict) -> None:
        accelerator = self.accelerator
        if accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)  # the run's folder may have been removed since the start
        accelerator.wait_for_everyone()
        _save(random_state(accelerator.device), new / f"random-{accelerator.process_index}.pt")
        if accelerator.is_main_process:
            _save(content, new / "state.pt")
        accelerator.wait_for_everyone()

    def load(self) -> dict | None:
        """Read the newest whole checkpoint, and restore this process's random numbers from it.

        The main process chooses; all must call this, and all read the one that it chose.

        Returns:
            The content as it was saved; None if no whole checkpoint belongs to this run.
        """
        chosen = [self._usable() if self.accelerator.is_main_process else None]
        (name,) = broadcast_object_list(chosen)
        if name is None:
            return None
        own = self.folder / name / f"random-{self.accelerator.process_index}.pt"
        restore_random_state(torch.load(own, weights_only=True))
        return torch.load(self.folder / name / "state.pt", map_location="cpu", weights_only=True)

    def _usable(self) -> str | None:
        """Return the name of the newest checkpoint that can be used, and say why others can't."""
        for folder in self._newest_first():
            problem = self._problem(folder)
            if problem is None:
                return folder.name
            self.say(f"{folder.name} is not used: {problem}")
        return None

    def _problem(self, folder: Path) -> str | None:
        """Return why a checkpoint can't be used, None if it can."""
        try:
            manifest = read_json(folder / MANIFEST)
            files, belongs = dict(manifest["files"]), dict(manifest["belongs"])
        except (OSError, ValueError, TypeError, KeyError):
            return "its manifest is missing or damaged"
        if difference := self.differs(belongs):
            return difference
        actual = folder_fingerprint(folder)
        del actual[MANIFEST]
        return None if actual == files else "its files were changed or cut"

    def differs(self, belongs: dict) -> str | None:
        """Return how `belongs`, read from JSON, differs from this run's; None if it does not."""
        for key, value in self.belongs.items():
            if belongs.get(key) != value:
                return f"{key} was {belongs.get(key)!r} and is {value!r}"
        return None

    def _newest_first(self) -> list[Path]:
        """Return the checkpoints on disk, the newest first."""
        folders = [path for path in self.folder.glob("step-*") if path.name[5:].isdigit()]
        return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)

    def remove(self) -> None:
        """Delete all checkpoints, because the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, text: str) -> None:
        """Print a line on the main process."""
        if self.accelerator.is_main_process:
            print(f"checkpoint: {text}", file=sys.stderr, flush=True)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of torch's random numbers: those of the CPU, and those of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device.type).get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Take up what `random_state` returned."""
    for kind, value in state.items():
        (torch if kind == "cpu" else torch.get_device_module(kind)).set_rng_state(value)


def _save(content: dict, path: Path) -> None:
    """Save with torch, and have the disk write it before this returns."""
    torch.save(content, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
