"""A study's state from its files: each state from the files that make it."""

import io
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from loraudit.base.errors import UserError
from loraudit.base.files import write_json
from loraudit.studies.record import read_record, write_record
from loraudit.studies.spec import Candidate, RunSpec, Tuned, digest
from loraudit.studies.study import read_study
from loraudit.tools import status

RUNS = Path("results/small/runs")
TRACEBACK = """
epoch 1/2: train_loss 0.5
Traceback (most recent call last):
  File "scripts/train.py", line 38, in <module>
torch.OutOfMemoryError: CUDA out of memory
Traceback (most recent call last):
subprocess.CalledProcessError: Command '[...]' returned non-zero exit status 1.
"""


def unfinish(run: str, log: str | None, age: float = 0.0) -> None:
    """Take a run's record away, and leave the log of a job."""
    shutil.rmtree(RUNS / run)
    if log is not None:
        path = status.log_file("small", run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(log)
        then = time.time() - age
        os.utime(path, (then, then))


@pytest.fixture
def mixed(project):
    """Bring the study's six runs into all states."""
    runs = [place.id for place in status.places("small")]
    unfinish(runs[0], "train epoch 1/2: 3/6\n")
    unfinish(runs[1], "train epoch 1/2: 5/6\n", age=status.SILENT_SECONDS + 60)
    unfinish(runs[2], "epoch 1/2: train_loss 0.5\nerror: the loss is nan at step 3\n\n")
    unfinish(runs[3], TRACEBACK)
    unfinish(runs[4], None)
    return runs


def test_each_state_comes_from_its_files(mixed):
    runs = status.places("small")
    found = list(status.states("small", runs))
    assert [run.state for run in found] == [
        "running",
        "silent",
        "failed",
        "failed",
        "waiting",
        "done",
    ]
    assert found[0].line == "train epoch 1/2: 3/6"
    assert found[2].line == "error: the loss is nan at step 3"
    assert found[3].line == "torch.OutOfMemoryError: CUDA out of memory"


@pytest.fixture
def replanned(project):
    """Plan the study's first run with other epochs, and tune its second one."""
    path = Path("results/small/study.json")
    study = read_study(path)
    stale, tuned, *others = study.runs
    tried = Candidate(values={"learning_rate": 0.5}, runs={others[0].id: digest(others[0].spec)})
    other = tried.model_copy(update={"values": {"learning_rate": 0.25}})
    fields = {"tuned": Tuned(candidates=(tried, other)), "selection_rows": 10}
    spec = RunSpec(**{**dict(tuned.spec), **fields}).planned()
    record = RUNS / tuned.id / "record.json"
    chosen = spec.with_values(other.values)
    changes = {"spec": chosen, "spec_sha256": digest(chosen)}
    write_record(record.parent, read_record(record).model_copy(update=changes))
    later = stale.spec.model_copy(update={"epochs": 50})
    runs = [stale.model_copy(update={"spec": later}), tuned.model_copy(update={"spec": spec})]
    whole = path.read_text()
    write_json(path, study.model_copy(update={"runs": (*runs, *others)}).model_dump(mode="json"))
    yield stale.id
    path.write_text(whole)


def test_a_record_of_another_spec_does_not_count_and_one_of_chosen_values_does(replanned):
    found = {run.id: run.state for run in status.states("small", status.places("small"))}
    assert found.pop(replanned) == "waiting"
    assert set(found.values()) == {"done"}
    (row,) = (row for row in status.overview() if row["study"] == "small")
    assert row["done"] == row["runs"] - 1


def test_the_log_of_a_result_since_deleted_is_not_a_killed_job(project):
    run = status.places("small")[0].id
    unfinish(run, "epoch 2/2: train_loss 0.5\n", age=status.SILENT_SECONDS + 60)
    assert next(status.states("small", status.places("small"))).state == "waiting"


def test_the_counts_add_up_and_problems_are_listed(mixed):
    found = status.summary("small", status.places("small"))
    assert sum(found[state] for state in status.STATES) == found["runs"] == len(mixed)
    for state in status.STATES:
        assert sum(cell[state] for cell in found["cells"]) == found[state]
    assert [(cell["task"], cell["method"]) for cell in found["cells"]] == [
        ("words", "lora"),
        ("words", "peft"),
        ("words", "head"),
    ]
    assert [run["id"] for run in found["listed"]["failed"]] == mixed[2:4]
    assert json.loads(json.dumps(found)) == found
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(status.renderable(found))
    text = console.export_text()
    assert "1 of 6 runs done" in text and "the loss is nan at step 3" in text


def test_few_are_listed_of_many(mixed, monkeypatch):
    monkeypatch.setattr(status, "SHOWN", 1)
    found = status.summary("small", status.places("small"))
    assert found["failed"] == 2 and len(found["listed"]["failed"]) == 1


def test_a_study_that_never_ran_waits(project):
    shutil.rmtree("results/small")
    found = status.summary("small", status.places("small"))
    assert found["waiting"] == found["runs"] == 6


def test_an_unknown_study_is_named(project):
    with pytest.raises(UserError, match="'smal' is not known; did you mean 'small'"):
        status.places("smal")


def test_a_long_log_is_read_from_its_end(tmp_path):
    path = tmp_path / "log"
    path.write_text("x" * 10 * status.TAIL_BYTES + "\nlast line\n")
    lines = status.tail(path)
    assert lines[-1] == "last line"
    assert sum(map(len, lines)) <= status.TAIL_BYTES


def test_watching_ends_when_all_is_done(project, capsys):
    status.watch("small", status.places("small"), every=0.01)
    said = capsys.readouterr().out
    assert said.startswith("small: 6 done, 0 running, 0 silent, 0 failed, 0 waiting")
    assert said.count("\n") == 1


def test_watching_says_each_change_once(mixed, project, capsys, monkeypatch):
    """The runs finish one by one, while nobody looks."""
    left = [place.id for place in status.places("small") if not (RUNS / place.id).exists()]

    def finish(_):
        (RUNS / left[0]).mkdir(parents=True)
        (RUNS / left.pop(0) / "record.json").write_text("{}")

    monkeypatch.setattr(time, "sleep", finish)
    status.watch("small", status.places("small"), every=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1].startswith("small: 6 done")


def test_watching_ends_when_nobody_reads_any_more(mixed, project, capsys, monkeypatch):
    monkeypatch.setattr(status, "reader_left", lambda: True)
    status.watch("small", status.places("small"), every=60)
    assert capsys.readouterr().out.count("\n") == 1


def test_sick_runs_are_counted_and_listed_beside_the_failed_ones(mixed):
    record = RUNS / mixed[5] / "record.json"
    content = json.loads(record.read_text())
    content["train"] |= {"collapsed": [next(iter(content["train"]["epochs"]))], "unmoved": ["B"]}
    record.write_text(json.dumps(content))
    found = status.summary("small", status.places("small"))
    assert [found[kind] for kind in status.SICK] == [1, 1, 0]
    assert [run["id"] for run in found["listed"]["collapsed"]] == [mixed[5]]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(status.renderable(found))
    text = console.export_text()
    assert f"collapsed: {mixed[5]}\n" in text.replace(" \n", "\n") and "diverged" not in text


def test_the_overview_has_studies_with_and_without_results(mixed):
    found = {row["study"]: row for row in status.overview()}
    assert (found["small"]["done"], found["small"]["runs"]) == (1, 6)
    assert found["quickstart"]["runs"] is None
    assert found["quickstart"]["question"].endswith("?")
    assert all(row["question"] for row in found.values())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runs": []}'])
def test_a_damaged_study_file_is_named_and_hides_no_other(mixed, content):
    path = Path("results/small/study.json")
    whole = path.read_text()
    path.write_text(content)
    try:
        with pytest.raises(UserError, match=r"study\.json: can't be read"):
            status.places("small")
        found = {row["study"]: row for row in status.overview()}
    finally:
        path.write_text(whole)
    assert "can't be read" in found["small"]["question"] and found["small"]["runs"] is None
    assert found["quickstart"]["question"].endswith("?")


@pytest.mark.parametrize("content", ["question: [", "", "- a list"])
def test_a_broken_study_file_has_a_row_and_hides_no_other(project, content):
    path = Path("config/studies/broken.yaml")
    path.write_text(content)
    found = {row["study"]: row for row in status.overview()}
    assert str(path) in found["broken"]["question"] and found["broken"]["runs"] is None
    assert found["small"]["done"] == found["small"]["runs"]
    assert found["quickstart"]["question"].endswith("?")
