"""A file exists complete or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from loraudit.base.files import (
    cached_by_file,
    folder_atomic,
    folder_fingerprint,
    leftovers,
    read_json,
    sweep,
    write_atomic,
    write_json,
)


def fail(path):
    path.write_text("half")
    raise RuntimeError("killed")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(RuntimeError):
        write_atomic(tmp_path / "a.json", fail)
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    for name in ("old", "new"):
        with folder_atomic(tmp_path / "out") as folder:
            (folder / name).write_text(name)
    assert list(folder_fingerprint(tmp_path / "out")) == ["new"]
    with pytest.raises(RuntimeError), folder_atomic(tmp_path / "out") as folder:
        fail(folder / "half")
    assert list(folder_fingerprint(tmp_path / "out")) == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


WRITER = """
import time
from loraudit.base.files import folder_atomic, write_atomic
def wait(path):
    path.touch()
    print("here", flush=True)
    time.sleep(60)
"""


def start_and_kill(code: str) -> None:
    """Run code that calls `wait` while it writes, and kill it there."""
    words = [sys.executable, "-c", WRITER + code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.kill()


def test_what_killed_processes_left_is_found_and_swept(tmp_path):
    """A file and a folder under their temporary names; other hidden files stay."""
    start_and_kill(f"write_atomic({str(tmp_path / 'a.json')!r}, wait)")
    start_and_kill(f"with folder_atomic({str(tmp_path / 'adapter')!r}) as new: wait(new / 'x')")
    (tmp_path / ".lock").touch()
    (tmp_path / "deep/.step-12").mkdir(parents=True)
    found = leftovers(tmp_path)
    assert len(found) == 2 and {path.is_dir() for path in found} == {True, False}
    assert len(leftovers(tmp_path, deep=True)) == 3
    assert sweep(tmp_path) == found and leftovers(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "deep"}


def test_a_folder_made_again_deletes_what_the_dead_left_and_not_what_the_living_fill(tmp_path):
    start_and_kill(f"with folder_atomic({str(tmp_path / 'out')!r}) as new: wait(new / 'x')")
    (dead,) = leftovers(tmp_path)
    with folder_atomic(tmp_path / "out") as first, folder_atomic(tmp_path / "out") as second:
        assert not dead.exists() and first.exists() and second.exists()
        with folder_atomic(tmp_path / "other"):
            assert first.exists() and second.exists()
    assert leftovers(tmp_path) == []


def test_what_is_read_from_a_file_is_remembered_for_that_file_alone(tmp_path, monkeypatch):
    """Another folder's file of the same name is another file, and so is an edited one."""
    read = []

    @cached_by_file
    def text(path):
        read.append(path)
        return path.read_text()

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert text(Path("file")) == text(Path("file")) == name
    Path("file").write_text("edited")
    assert text(Path("file")) == "edited"
    assert len(read) == 3
