"""What is shown of a run is what its files hold."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from loraudit.studies.record import Tuning, read_record, write_record
from loraudit.tools import show
from tiny import make_spec, make_task

RUNS = Path("results/small/runs/words/tiny")
LORA = RUNS / "lora-r2-q+v/s0"


def test_a_run_is_shown_as_its_files_are(project):
    record, predictions = (
        read_record(LORA / "record.json"),
        pd.read_parquet(LORA / "predictions.parquet"),
    )
    run = show.describe(LORA)
    assert run["scores"]["accuracy"] == {
        "best": record.train.epochs["best"].scores["accuracy"],
        "last": record.train.epochs["last"].scores["accuracy"],
    }
    assert run["spec"]["targets"] == "q+v" and run["spec"]["task"] == "words"
    assert set(run["spec"]) >= set(record.spec.flat())
    counts = np.array(run["confusion"]["last"])
    rows = predictions[predictions.epoch == 2]
    assert counts.sum() == len(rows) == 128
    assert counts.trace() / 128 == record.train.epochs["last"].scores["accuracy"]
    assert list(counts.sum(axis=1)) == [sum(rows.label == 0), sum(rows.label == 1)]
    assert [row["epoch"] for row in run["history"]] == [1, 2]
    assert run["provenance"]["git commit"] == record.environment["git"]["commit"]
    assert run["sealed"]
    assert json.loads(json.dumps(run)) == run


def test_every_part_has_a_table(project):
    titles = [title for title, _, _ in show.sections(show.describe(LORA))]
    assert [title.split(",")[0] for title in titles] == [
        "spec",
        "scores",
        "health",
        "history",
        "confusion on validation",
        "confusion on validation",
        "parameters",
        "cost",
        "provenance",
    ]


def test_a_regression_has_no_confusion():
    class Record:
        spec = make_spec(task=make_task(classes=[], metrics=["pearson"], headline="pearson"))
        train = None

    assert show.confusion(Record, None) is None


def test_a_runs_health_and_what_tuning_chose_are_shown(project):
    record = read_record(LORA / "record.json")
    train = {"collapsed": ("best", "last"), "unmoved": ("a.lora_B", "b.lora_B")}
    trials = [
        {"values": {"learning_rate": rate}, "mean": 0.5, "sd": 0.01, "n": 2, "diverged": lost}
        for rate, lost in ((1e-3, 0), (1e-2, 1))
    ]
    tuning = {"chosen": trials[0]["values"], "at_edge": ("learning_rate",), "trials": trials}
    changes = {"train": record.train.model_copy(update=train), "tuning": Tuning(**tuning, seals={})}
    write_record(LORA, record.model_copy(update=changes))
    parts = {title: rows for title, _, rows in show.sections(show.describe(LORA))}
    assert parts["health"] == [
        ["collapsed to a constant answer", "at the epoch best and last"],
        ["matrices B that never left zero", "a.lora_B, b.lora_B"],
        ["loss not finite", "no"],
    ]
    assert parts["tuning"] == [
        ["learning rate 0.001", "50.0 ± 1.0", 2, "", "", "chosen, at the edge in learning rate"],
        ["learning rate 0.01", "none", 2, "", 1, ""],
    ]
