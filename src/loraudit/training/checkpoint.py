"""A run's checkpoint: all that the loop needs to go on where it stopped, bit for bit.

The bits are those of a run that was left alone on the same kind of CPU. On another kind the run
goes on too (jobs move between machines), and its record names both.

<run>/checkpoint/step-<n>/ holds state.pt (what the loop says it needs), random-<process>.pt (each
process's random numbers) and, written last, manifest.json: the hashes of both, and what the
checkpoint belongs to. One that is damaged, or of other code, data, threads or processes, is not
used. Both .pt files are read with `weights_only`.

Accelerate's own save_state is not used: it writes the frozen model each time, reads custom objects
as arbitrary pickles, and goes on in silence where random numbers can't be restored
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
from filelock import FileLock, Timeout
from humanize import naturalsize

from loraudit.base.files import folder_fingerprint, read_json, write_json

MANIFEST = "manifest.json"
LOCK = ".lock"
"""Name of the file, in the run's folder, that the process that trains the run holds locked."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: <run>/checkpoint; made here, gone after `remove`.
        accelerator: the processes that take part; all of them save and load.
        belongs: what a checkpoint must agree in to be used again.
        minutes: time between two of them; 0 is after every step.

    Where another process trains this run, this one waits until that one ends, and then has
    `waited` set.
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
        beside the folder, since the process that is waited for deletes the folder. Returns None on
        a file system without locks.
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
                # the run's folder was deleted during the wait: the next turn makes it anew
        self.folder.mkdir(parents=True, exist_ok=True)
        return lock if lock.is_locked else None

    def __enter__(self) -> "Checkpoints":
        """From here on take note of SIGTERM and SIGINT, in `signal`, instead of dying of them."""
        self.before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Give signals back, and the run to other processes."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):  # not there, or with a checkpoint in it
            self.folder.rmdir()
        if self.lock is not None:
            # deleted while it is held: who waits for it then locks a new file of that name
            Path(self.lock.lock_file).unlink(missing_ok=True)
            self.lock.release()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number

    def due(self) -> bool:
        """Tell whether it is time for the next one."""
        return time.monotonic() - self.last >= self.seconds

    def save(self, step: int, content: dict) -> bool:
        """Write the checkpoint of a step, then delete the older ones; all processes call it.

        Returns whether it was written: without room on the disk a run goes on, with one warning.
        """
        self.last = time.monotonic()
        new = self.folder / f".step-{step}"
        try:
            self._write(new, content)
        except (OSError, RuntimeError) as error:  # torch.save's errors are RuntimeErrors
            if self.accelerator.num_processes > 1:  # the others wait
                raise
            shutil.rmtree(new, ignore_errors=True)
            reason, free = " ".join(str(error).split())[:200], shutil.disk_usage(self.folder).free
            self.say(f"no checkpoint at step {step}: {reason} ({naturalsize(free)} free there)")
            return False
        if self.accelerator.is_main_process:
            files = folder_fingerprint(new)
            write_json(new / MANIFEST, {"belongs": self.belongs, "files": files})
            older = self._found()
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
            new.mkdir()
        accelerator.wait_for_everyone()
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        _save(random, new / f"random-{accelerator.process_index}.pt")
        if accelerator.is_main_process:
            _save(content, new / "state.pt")
        accelerator.wait_for_everyone()

    def load(self) -> dict | None:
        """Return the newest whole checkpoint's content and restore this process's random numbers.

        None: there is none that belongs to this run.
        """
        for folder in self._found():
            problem = self._problem(folder)
            if problem is None:
                random = torch.load(
                    folder / f"random-{self.accelerator.process_index}.pt", weights_only=True
                )
                torch.set_rng_state(random["cpu"])
                if "cuda" in random:
                    torch.cuda.set_rng_state(random["cuda"])
                return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            self.say(f"{folder.name} is not used: {problem}")
        return None

    def _problem(self, folder: Path) -> str | None:
        """Say why a checkpoint can't be used, None if it can."""
        try:
            manifest = read_json(folder / MANIFEST)
            files, belongs = dict(manifest["files"]), dict(manifest["belongs"])
        except (OSError, ValueError, TypeError, KeyError):
            return "its manifest is missing or damaged"
        if difference := self.differs(belongs):
            return difference
        found = folder_fingerprint(folder)
        del found[MANIFEST]
        return None if found == files else "its files were changed or cut"

    def differs(self, belongs: dict) -> str | None:
        """Say in what a thing read from JSON does not belong to this run; None: it does."""
        for key, value in self.belongs.items():
            if belongs.get(key) != value:
                return f"{key} was {belongs.get(key)!r} and is {value!r}"
        return None

    def _found(self) -> list[Path]:
        """Return the checkpoints on disk, the newest first."""
        found = [path for path in self.folder.glob("step-*") if path.name[5:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)

    def remove(self) -> None:
        """Delete them all: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, text: str) -> None:
        """Print a line on the main process."""
        if self.accelerator.is_main_process:
            print(f"checkpoint: {text}", file=sys.stderr, flush=True)


def _save(content: dict, path: Path) -> None:
    """Save with torch and fsync."""
    torch.save(content, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
