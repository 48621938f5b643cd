"""A study beside its shipped run: what agrees, what differs, and what can't be compared."""

import pandas as pd
import pytest

from loraudit.analysis.finished import Finished, read_finished
from loraudit.report.page import joined_facts
from loraudit.report.page_shipped import beside_shipped, shipped_fact, shipped_table
from loraudit.report.table_registry import shipped_files

SPEC = {"task": {"name": "t", "source": {"folder": "/here"}}, "epochs": 1, "adapter": {"rank": 1}}


def finished(scores: dict[str, list[float]], processor: str = "Xeon", **fields) -> Finished:
    """Make runs of cells by their variant, with a score per seed; `fields` are of their specs."""
    rows, records = [], [{"spec": {"epochs": 9}, "environment": {"processor": "other"}}]  # it tunes
    for variant, values in scores.items():
        for seed, score in enumerate(values):
            cell = {"task": "t", "model": "m", "method": "lora", "rank": 1.0, "targets": variant}
            run = f"t/m/{variant}/s{seed}"
            rows.append({**cell, "label": None, "run": run, "seed": seed, "last": score})
            environment = {"processor": processor}
            spec = {**SPEC, **fields}
            seal = f"{processor} {run} {score}"
            records.append({"spec": spec, "environment": environment, "record_sha256": seal})
    return Finished(pd.DataFrame(rows), records)


def test_each_cell_is_compared_run_by_run():
    here = finished({"q": [0.8, 0.9], "v": [0.7, 0.71], "k": [0.6, 0.6], "o": [0.5]})
    there = finished({"q": [0.8, 0.9], "v": [0.695, 0.712], "k": [0.6, 0.3]}, "EPYC")
    rows = beside_shipped(here, there)
    assert rows.agrees.tolist() == [
        "the same scores",
        "agrees, within 0.5 points",
        "differs, by up to 30.0 points",
        "not shipped",
    ]
    shown = shipped_table(rows)
    assert shown["here: mean ± SD, %"].tolist()[2] == "60.0 ± 0.0"
    assert shown["shipped: mean ± SD, %"].tolist() == [
        "85.0 ± 7.1", "70.3 ± 1.2", "45.0 ± 21.2", "",
    ]  # fmt: skip
    said = shipped_fact(rows, here, there)["shipped"]
    assert "1 the same scores, 1 agrees, 1 differs, 1 not shipped" in said


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"epochs": 2}, "other settings: epochs"),
        ({"adapter": {"rank": 2}}, "other settings: adapter"),
        ({"task": {"name": "t", "source": {"folder": "glue"}}}, "the same scores"),
        ({"new_field": 1}, "the same scores"),  # one that the older code did not have
    ],
)
def test_runs_of_other_settings_are_not_compared(fields, word):
    rows = beside_shipped(finished({"q": [0.8]}), finished({"q": [0.8]}, "EPYC", **fields))
    assert rows.agrees.tolist() == [word]
    assert len(shipped_table(rows)) == (word == "the same scores")


def test_where_no_cell_can_be_compared_there_is_no_section_but_a_line_on_it():
    """A section that compared nothing stood before the costs and the cross-check."""
    here = finished({"q": [0.8], "v": [0.7]})
    there = finished({"q": [0.8]}, "EPYC", epochs=2)
    rows = beside_shipped(here, there)
    assert shipped_table(rows).empty
    assert shipped_fact(rows, here, there) == {
        "provenance": "A run of this study is shipped too, but no cell of it can be compared with "
        "these: 1 other settings, 1 not shipped."
    }
    said = joined_facts({"provenance": "Made on Xeon."}, shipped_fact(rows, here, there))
    assert said["provenance"].startswith("Made on Xeon. A run of this study")


def test_a_study_is_not_compared_with_itself_nor_with_nothing():
    here = finished({"q": [0.8]})
    assert beside_shipped(here, finished({"q": [0.8]})).empty and beside_shipped(here, None).empty
    assert shipped_fact(pd.DataFrame(), here, None) == {}
    assert shipped_table(pd.DataFrame()).empty


def test_every_shipped_study_can_be_read():
    assert shipped_files("no such study") == []
    files = shipped_files("quickstart")
    study = read_finished(*files)
    assert len(study.specs()) == len(study.runs) > 0
