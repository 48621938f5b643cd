"""A file exists complete or not at all."""

import pytest

from loraudit.base.files import (
    folder_atomic,
    folder_fingerprint,
    read_json,
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
