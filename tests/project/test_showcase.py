"""scripts/showcase.py: what it copies, and what it leaves in place."""

import runpy
from pathlib import Path

import pytest

from loraudit.base import errors


@pytest.fixture
def copy(monkeypatch):
    """Give the program's function that copies a folder."""
    monkeypatch.setattr(errors, "run_program", lambda main: None)
    return runpy.run_path("scripts/showcase.py")["copy"]


@pytest.mark.parametrize("keep", [False, True])
def test_a_studys_folder_is_replaced_and_measurements_of_other_machines_stay(keep, copy, tmp_path):
    made, committed = tmp_path / "made", tmp_path / "committed"
    for folder, name, text in ((made, "speed.csv", "new"), (committed, "gpu.csv", "of a GPU"),
                               (committed, "speed.csv", "old")):  # fmt: skip
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    copy(made, ("*.*",), committed, "a note", keep=keep)
    found = {path.name: path.read_text() for path in committed.iterdir()}
    kept = {"gpu.csv": "of a GPU"} if keep else {}
    assert found == {"speed.csv": "new", "README.md": "a note", **kept}


def test_the_committed_note_of_the_benchmarks_is_the_programs(monkeypatch):
    monkeypatch.setattr(errors, "run_program", lambda main: None)
    note = runpy.run_path("scripts/showcase.py")["BENCH_NOTE"]
    assert Path("results/committed/bench/README.md").read_text() == note
