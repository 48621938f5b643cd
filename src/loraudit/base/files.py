"""Files that exist complete or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


@contextmanager
def folder_atomic(path: Path | str) -> Iterator[Path]:
    """Give a new folder to fill; it replaces `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.chmod(temporary, 0o755)  # mkdtemp lets only this user in
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def folder_fingerprint(path: Path | str) -> dict[str, str]:
    """Return {relative name: SHA-256} of every file below a folder, sorted by name."""
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): sha256(file) for file in files}
