"""What is collected from predictions: how far a difference depends on the validation rows."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from loraudit.analysis import collect
from loraudit.analysis.cells import chosen_spec
from loraudit.analysis.collect import (
    ROW_ERRORS,
    complete,
    majority_scores,
    missing,
    row_errors,
    write_collected,
)
from loraudit.base.files import write_json
from loraudit.studies.record import RunRecord, write_record
from loraudit.studies.spec import Candidate, Tuned, digest
from loraudit.studies.study import Run
from loraudit.studies.study_file import Contrast
from tiny import TRAIN, changed, make_spec
from tiny_study import small_study

ROWS = 500


def write_run(
    folder: Path, run: str, right: np.ndarray, rows: range = range(ROWS), label: int = 1
) -> None:
    """Write predictions of two epochs; in the first, all are 0, and in the second `right`."""
    tables = [
        pd.DataFrame(
            {"split": split, "epoch": epoch, "row": list(rows), "label": label, "prediction": said}
        )
        for epoch, said in ((1, 0), (2, right.astype(int)))
        for split in ("validation", "validation_mismatched")
    ]
    (folder / run).mkdir(parents=True)
    pd.concat(tables).sample(frac=1, random_state=0).to_parquet(
        folder / run / "predictions.parquet"
    )


def tidy(*names: str) -> pd.DataFrame:
    rows = [
        {"run": f"t/m/{name}/s{seed}", "seed": seed, "method": name.split("-")[0]}
        for name in names
        for seed in (0, 1)
    ]
    cell = {"task": "t", "model": "m", "rank": None, "targets": None, "label": ""}
    scores = {"metric": "accuracy", "best_epoch": 2, "last_epoch": 2}
    return pd.DataFrame(rows).assign(**cell, **scores)


@pytest.mark.numerics
def test_the_rows_part_is_that_of_the_mean_over_seeds(tmp_path):
    random = np.random.default_rng(0)
    right = {
        name: random.random((2, ROWS)) < level for name, level in (("full", 0.9), ("head", 0.7))
    }
    for name, seeds in right.items():
        for seed, own in enumerate(seeds):
            write_run(tmp_path, f"t/m/{name}/s{seed}", own)
    study = small_study(contrasts=(Contrast(left="full", right="head"),))
    found = row_errors(study, tidy(*right), tmp_path)
    gaps = right["full"].mean(0) - right["head"].mean(0)
    assert list(found.row_error) == pytest.approx([gaps.std() / np.sqrt(ROWS)] * 2, rel=0.1)
    assert list(found.rows) == [ROWS, ROWS] and list(found.epoch) == ["best", "last"]


def test_a_run_without_a_score_leaves_the_rows_part_unknown_and_not_0(tmp_path):
    """F1 has no value where no row is of class 1 and none is said to be."""
    random = np.random.default_rng(0)
    for seed in (0, 1):
        write_run(tmp_path, f"t/m/full/s{seed}", random.random(50) < 0.5, range(50), label=0)
        write_run(tmp_path, f"t/m/head/s{seed}", np.zeros(50), range(50), label=0)
    study = small_study(contrasts=(Contrast(left="full", right="head"),))
    found = row_errors(study, tidy("full", "head").assign(metric="f1"), tmp_path)
    assert len(found) == 2 and found.row_error.isna().all()


def test_runs_that_were_scored_on_different_rows_are_left_out(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, f"t/m/full/s{seed}", np.ones(5), range(5))
        write_run(tmp_path, f"t/m/head/s{seed}", np.ones(5), range(seed, 5 + seed))
        write_run(tmp_path, f"t/m/bitfit/s{seed}", np.ones(5), range(1, 6))
    asked = [Contrast(left="full", right=name) for name in ("head", "bitfit")]
    found = row_errors(
        small_study(contrasts=tuple(asked)), tidy("full", "head", "bitfit"), tmp_path
    )
    assert found.empty and list(found) == ROW_ERRORS


@pytest.mark.parametrize(
    ("metric", "score"),
    [("accuracy", 0.75), ("f1", 6 / 7), ("matthews", 0.0), ("pearson", None), ("x", None)],
)
def test_the_majority_class_scores_what_a_constant_answer_does(tmp_path, metric, score):
    """Of the validation rows of one epoch: three of four are of class 1."""
    labels = {"validation": [1, 1, 0, 1], "selection": [0, 0, 0, 0]}
    table = pd.concat(
        [
            pd.DataFrame({"split": split, "epoch": epoch, "label": values})
            for split, values in labels.items()
            for epoch in (1, 2)
        ]
    )
    (tmp_path / "t/m/full/s0").mkdir(parents=True)
    table.to_parquet(tmp_path / "t/m/full/s0/predictions.parquet")
    runs = tidy("full").assign(metric=metric, rows_validation=4)
    found = majority_scores(runs, tmp_path)  # the second seed has the same rows
    assert list(found.fillna(-1)) == pytest.approx([-1 if score is None else score] * 2)


def test_a_run_that_waits_for_a_failed_trial_names_it_and_its_error(tmp_path):
    base = make_spec(selection_rows=10)
    trial = changed(base, validate_epochs="none", seed=100)
    tried = Candidate(values={"learning_rate": 5e-3}, runs={"t/m/try/s100": digest(trial)})
    tuned = changed(base, tuned=Tuned(candidates=(tried,)))
    planned = small_study(
        runs=(Run(id="t/m/lora/s0", label="", spec=tuned),),
        tuning=(Run(id="t/m/try/s100", label="try", spec=trial),),
    )
    log = tmp_path / "logs/train/t/m/try-s100.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: out of memory in training\n")
    study, cells = complete(planned, tmp_path)
    assert study.all_runs == ()
    found = missing(planned, study, cells, tmp_path, tmp_path / "logs").set_index("name").known
    error = "started, no result: error: out of memory in training"
    assert found["t/m/try/s100"] == error
    assert found["t/m/lora/s0"] == f"waits for t/m/try/s100, which tunes it: {error}"


def test_the_records_of_runs_that_tune_are_written_too(tmp_path, monkeypatch):
    runs = small_study().runs
    study = small_study(runs=runs[:1], tuning=runs[1:2])
    for number, run in enumerate(study.all_runs):
        write_json(tmp_path / "runs" / run.id / "record.json", {"number": number})
    monkeypatch.setattr("loraudit.analysis.collect.collected", lambda *_: {})
    write_collected(study, [], tmp_path, tmp_path)
    lines = (tmp_path / "tidy/records.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1]


def test_each_field_that_was_chosen_stands_in_the_runs_row(tmp_path):
    """Whichever fields a study tunes, a claim matches cells by the values that they took."""
    values = {"learning_rate": 5e-3, "epochs": 4, "warmup_ratio": 0.1}
    tried = Candidate(values={**values, "epochs": 2}, runs={"t/m/try/s100": "0" * 64})
    chosen = changed(make_spec(selection_rows=10), tuned=Tuned(candidates=(tried,)), **values)
    planned = Run(id="t/m/lora/s0", label="", spec=chosen.planned())
    (tmp_path / planned.id).mkdir(parents=True)
    times = dict.fromkeys(("train", "evaluate", "total"), 1.0)
    train = TRAIN.model_copy(update={"seconds": times, "cpu_seconds": times})
    record = RunRecord(spec=chosen, spec_sha256=digest(chosen), train=train, environment={})
    write_record(tmp_path / planned.id, record)
    study = small_study(runs=(planned,))
    row = collect.tidy(study, tmp_path).iloc[0]
    assert {name: row[name] for name in values} == values
    assert chosen_spec(planned.spec, pd.DataFrame([row])).epochs == 4


def test_a_value_that_was_chosen_to_be_none_is_none_again():
    tried = Candidate(values={"lora_plus": 16.0}, runs={"t/m/try/s100": "0" * 64})
    tuned = changed(make_spec(selection_rows=10), tuned=Tuned(candidates=(tried,)))
    runs = pd.DataFrame({"lora_plus": [math.nan, math.nan]})
    assert chosen_spec(changed(tuned, lora_plus=16.0), runs).lora.lora_plus is None
