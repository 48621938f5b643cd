"""What is collected from predictions: how far a difference depends on the validation rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from loraudit.analysis.collect import ROW_ERRORS, row_errors
from loraudit.studies.study_file import Contrast
from tiny_study import small_study

ROWS = 500


def write_run(folder: Path, run: str, right: np.ndarray, rows: range = range(ROWS)) -> None:
    """Write predictions of two epochs; in the first, all are wrong."""
    tables = [
        pd.DataFrame(
            {"split": split, "epoch": epoch, "row": list(rows), "label": 1, "prediction": said}
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
