"""Files that exist complete or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

TEMPORARY = re.compile(r"\.\d+\..+|\..+\.[a-z0-9_]{8}|\.step-\d+")
"""Names under which files and folders are written before they are renamed."""


def write_atomic(path: Path | str, write: Callable[[Path], Any]) -> None:
    """Let `write` make a temporary file beside `path`, then fsync it and rename it to `path`.

    The temporary name keeps the suffix, since writers such as matplotlib choose a format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write text atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text))


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON atomically; NaN, which JSON lacks, raises a ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON."""
    return json.loads(Path(path).read_text())


@contextlib.contextmanager
def folder_atomic(path: Path | str) -> Iterator[Path]:
    """Give a new folder to fill; it replaces `path` when the block ends without an error.

    Folders that killed processes were filling for `path` are deleted first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in leftovers(path.parent):
        if old.name[:-8] == f".{path.name}.":
            _delete_unless_held(old)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    holder = os.open(temporary, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(holder, fcntl.LOCK_SH)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.chmod(temporary, 0o755)  # mkdtemp lets only this user in
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(holder)


def _delete_unless_held(folder: Path) -> None:
    """Delete a temporary folder if the process that was filling it has ended.

    That process holds a lock of the folder, which the system frees however the process ends. Where
    locks can't be had, nothing is deleted.
    """
    with contextlib.suppress(OSError):  # held by its process, gone meanwhile, or no locks
        holder = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(holder)


def leftovers(folder: Path | str, deep: bool = False) -> list[Path]:
    """Return the temporary files and folders in a folder, sorted by name.

    What no process is writing now was left there by one that was killed.

    Args:
        folder: where to look.
        deep: look in the folders below it, too.
    """
    found = Path(folder).rglob(".*") if deep else Path(folder).glob(".*")
    return sorted(path for path in found if TEMPORARY.fullmatch(path.name))


def sweep(folder: Path | str) -> list[Path]:
    """Delete the temporaries in a folder to which no other process may write; returns them."""
    found = leftovers(folder)
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def stand_in(path: Path | str) -> str | None:
    """Say what a file is that was fetched in place of the data, and what fetches them; else None.

    This is a Git LFS pointer (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md) or an HTML
    page.
    """
    with open(path, "rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "is a Git LFS pointer, which only names the file's contents; `git lfs pull` in the "
            "folder that it was cloned to fetches them"
        )
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return (
            "is an HTML page, as is saved from a link to a page about the file; download the file "
            "itself"
        )
    return None


def sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_by_file(read: Callable[[Path], Value]) -> Callable[[Path], Value]:
    """Remember what `read` returns for a file until that file changes.

    The file counts, not its name: a relative path names another file in another working folder.
    """

    known: dict[tuple[Path, int, int], Value] = {}

    def cached(path: Path) -> Value:
        state = path.stat()
        version = (path.absolute(), state.st_mtime_ns, state.st_size)
        if version not in known:
            known[version] = read(path)
        return known[version]

    return cached


def folder_fingerprint(path: Path | str) -> dict[str, str]:
    """Return {relative name: SHA-256} of every file below a folder, sorted by name."""
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): sha256(file) for file in files}
