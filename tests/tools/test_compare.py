"""Comparisons of two runs and of two studies agree with a count by hand."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, write_json
from loraudit.studies.record import read_record, write_record
from loraudit.studies.spec import digest
from loraudit.tools import compare
from tiny import changed, make_spec, rechosen

RUNS = Path("results/small/runs/words/tiny")
LORA, PEFT, HEAD = (RUNS / name / "s0" for name in ("lora-r2-q+v", "peft-r2-q+v", "head"))


def test_two_runs_are_compared_on_their_rows(project):
    found = compare.compare_runs(LORA, HEAD, 200)
    one, two = (
        pd.read_parquet(run / "predictions.parquet").query("epoch == 2") for run in (LORA, HEAD)
    )
    one, two = one.set_index("row"), two.set_index("row").loc[one.row]
    right, other = one.prediction == one.label, two.prediction == two.label
    assert found["mcnemar"]["only_left"] == sum(right & ~other)
    assert found["mcnemar"]["only_right"] == sum(~right & other)
    assert found["bootstrap"]["difference"] == pytest.approx(right.mean() - other.mean())
    assert found["spec"]["method"] == {"left": "lora", "right": "head"}
    assert "seed" not in found["spec"]
    text = "\n".join(compare.run_sentences(found))
    assert "128 validation rows of words" in text and "200 resamples" in text


def test_a_run_equals_itself(project):
    found = compare.compare_runs(LORA, LORA, 100)
    assert found["spec"] == {} and found["equal_share"] == 1
    assert found["bootstrap"]["difference"] == 0 and found["mcnemar"]["p"] == 1
    assert compare.run_sections(found)[0][2] == [["(no difference)", "", ""]]


def test_a_difference_inside_a_field_is_shown():
    changed = make_spec().task.model_copy(update={"metrics": ("accuracy",)})
    found = compare.spec_difference(make_spec(), make_spec(task=changed))
    assert list(found) == ["task"] and '"metrics": ["accuracy"]' in found["task"]["right"]


def test_runs_that_are_no_pair_are_refused(project):
    task = read_record(HEAD / "record.json").spec.task
    change(HEAD, {"spec": {"task": task.model_copy(update={"name": "other"})}})
    with pytest.raises(UserError, match="different tasks: 'words' and 'other'"):
        compare.compare_runs(LORA, HEAD, 100)
    table = pd.read_parquet(PEFT / "predictions.parquet")
    table[table.row > 3].to_parquet(PEFT / "predictions.parquet")
    with pytest.raises(UserError, match="different rows"):
        compare.compare_runs(LORA, PEFT, 100)


def change(folder: Path, changes: dict) -> None:
    """Rewrite parts of a run's record, seal and digest included."""
    record = read_record(folder / "record.json")
    spec = changed(record.spec, **changes["spec"])
    write_record(folder, record.model_copy(update={"spec": spec, "spec_sha256": digest(spec)}))


def test_two_studies_are_compared_run_by_run(project):
    shutil.copytree("results/small", "results/again")
    shutil.rmtree("results/again/runs/words/tiny/head/s1")
    record = read_record(LORA / "record.json")
    other = Path("results/again") / LORA.relative_to("results/small")
    last = record.train.epochs["last"].scores
    train = rechosen(record.train, "last", scores={**last, "accuracy": last["accuracy"] - 0.25})
    write_record(other, record.model_copy(update={"train": train}))
    change(other, {"spec": {"weight_decay": 0.1}})
    found = compare.compare_studies(Path("results/small"), Path("results/again"))
    assert (found["common"], found["only_left"], found["only_right"]) == (5, 1, 0)
    assert found["fields"] == ["weight_decay"]
    assert found["equal_predictions"] == found["same_rows"] == 5
    differences = {row["cell"]: row["difference"] for row in found["cells"]}
    assert differences == {
        "words/tiny/lora-r2-q+v accuracy": pytest.approx(0.125),
        "words/tiny/peft-r2-q+v accuracy": 0,
        "words/tiny/head accuracy": 0,
    }
    assert len(compare.study_sections(found)[0][2]) == 3
    assert "5 finished runs in common, 1 only left" in compare.study_sentences(found)[0]


def test_studies_without_a_common_run_are_refused(project):
    shutil.copytree("results/small", "results/again")
    study = read_json("results/again/study.json")
    write_json("results/again/study.json", {**study, "runs": []})
    with pytest.raises(UserError, match="no finished run in common"):
        compare.compare_studies(Path("results/small"), Path("results/again"))


def as_trial(folder: Path) -> None:
    """Turn a run into one that only tunes: what it scored were selection rows."""
    table = pd.read_parquet(folder / "predictions.parquet").assign(split="selection")
    table.to_parquet(folder / "predictions.parquet")
    change(folder, {"spec": {"validate_epochs": "none", "selection_rows": 128}})


def test_runs_that_only_tune_are_compared_on_their_selection_rows(project):
    wanted = compare.compare_runs(LORA, HEAD, 100)
    as_trial(LORA)
    with pytest.raises(UserError, match="the left run only tunes and is scored on the selection"):
        compare.compare_runs(LORA, HEAD, 100)
    as_trial(HEAD)
    found = compare.compare_runs(LORA, HEAD, 100)
    assert found["bootstrap"] == wanted["bootstrap"] and found["rows"] == 128
    assert "128 selection rows of words" in "\n".join(compare.run_sentences(found))


def test_rows_that_no_run_scored_are_no_agreement(project):
    for folder in (LORA, PEFT):
        pd.read_parquet(folder / "predictions.parquet")[:0].to_parquet(
            folder / "predictions.parquet"
        )
    with pytest.raises(UserError, match="evaluated on no validation rows of 'words'"):
        compare.compare_runs(LORA, PEFT, 100)
    found = compare.compare_studies(Path("results/small"), Path("results/small"))
    assert found["same_rows"] == 4


def test_collapsed_runs_are_counted_beside_both_means(project):
    for folder, sick in ((LORA, ("last",)), (LORA.with_name("s1"), ())):
        record = read_record(folder / "record.json")
        train = record.train.model_copy(update={"collapsed": sick})
        write_record(folder, record.model_copy(update={"train": train}))
    found = compare.compare_studies(Path("results/small"), Path("results/small"))
    (row,) = [row for row in found["cells"] if "lora" in row["cell"]]
    assert (row["left_collapsed"], row["right_collapsed"]) == (1, 1)
    ((_, _, rows),) = compare.study_sections(found)
    (shown,) = [row for row in rows if "lora" in row[0]]
    assert [str(cell).endswith(" (1 of 2 collapsed)") for cell in shown[2:4]] == [True, True]


def test_a_study_is_compared_with_a_shipped_one_by_its_tables(project, tmp_path):
    study, shipped = Path("results/small"), tmp_path / "shipped"
    shipped.mkdir()
    for name in ("runs.csv", "records.jsonl"):
        shutil.copyfile(study / "tidy" / name, shipped / name)
    whole = compare.compare_studies(study, study)
    found = compare.compare_studies(study, shipped)
    assert found["cells"] == whole["cells"] and found["fields"] == []
    assert (found["common"], found["only_left"]) == (whole["common"], 0)
    assert "no predictions: only scores" in compare.study_sentences(found)[-1]
    runs = pd.read_csv(shipped / "runs.csv")
    runs.loc[0, "last"] -= 0.25
    runs.to_csv(shipped / "runs.csv", index=False)
    records = (shipped / "records.jsonl").read_text()
    (shipped / "records.jsonl").write_text(records.replace('"epochs": 2', '"epochs": 3'))
    found = compare.compare_studies(study, shipped)
    assert found["cells"][0]["difference"] > 0 and "epochs" in found["fields"]


@pytest.mark.parametrize("name", ["runs.csv", "records.jsonl"])
@pytest.mark.parametrize("content", ["", "{", "1\n"])
def test_a_damaged_shipped_study_is_named(project, tmp_path, name, content):
    for table in ("runs.csv", "records.jsonl"):
        shutil.copyfile(Path("results/small/tidy", table), tmp_path / table)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="can't be read together"):
        compare.compare_studies(Path("results/small"), tmp_path)
