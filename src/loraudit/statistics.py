"""Statistics of seeds: pure functions of numbers and tables.

A run's score is a fraction. Seeds of one cell are taken as independent draws; everything that is
reported about a cell names its n.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats

CELL = ["task", "model", "method", "rank", "targets", "label", "metric"]
"""Columns that make a cell of a study: all its runs differ in the seed only."""


def summarise(values: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Return n, mean, sd (n - 1), median, and the t interval of the mean.

    With n = 1 the sd and the interval are NaN: one seed says nothing about spread.

    Raises:
        ValueError: no values.
    """
    data = np.sort(np.asarray(values, dtype=float))
    n = len(data)
    if n == 0:
        raise ValueError("no values to summarise")
    mean, sd = data.mean(), data.std(ddof=1) if n > 1 else math.nan
    half = scipy.stats.t.ppf((1 + confidence) / 2, n - 1) * sd / math.sqrt(n) if n > 1 else math.nan
    return {
        "n": n,
        "mean": float(mean),
        "sd": float(sd),
        "median": float(np.median(data)),
        "low": float(mean - half),
        "high": float(mean + half),
    }


def aggregate(tidy: pd.DataFrame) -> pd.DataFrame:
    """Summarise a study's tidy table per cell, for the best and for the last epoch.

    Returns one row per cell: CELL, the parameter counts, n, then best_mean, best_sd, ...,
    last_mean and so on. Rows come in the order in which the cells first appear.
    """
    rows = []
    for cell, runs in tidy.groupby(CELL, dropna=False, sort=False):
        row = dict(zip(CELL, cell, strict=True))
        counts = [name for name in runs if name.startswith("parameters_")]
        row.update({name: int(runs[name].iloc[0]) for name in counts})
        row["n"] = len(runs)
        for epoch in ("best", "last"):
            summary = summarise(runs[epoch].tolist())
            row.update({f"{epoch}_{k}": value for k, value in summary.items() if k != "n"})
        rows.append(row)
    return pd.DataFrame(rows)


def last_validation(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return a run's last-epoch predictions on the validation split, indexed by row."""
    chosen = predictions[predictions.split == "validation"]
    return chosen[chosen.epoch == chosen.epoch.max()].set_index("row")


def agreement(left: pd.DataFrame, right: pd.DataFrame) -> dict[str, float]:
    """Compare two runs' last-epoch predictions on the same rows.

    Args:
        left, right: prediction tables with the columns epoch, row, prediction, logit_*.

    Returns:
        rows, the share of equal predictions, and the largest difference of a logit.

    Raises:
        ValueError: the runs were evaluated on different rows.
    """
    left, right = (last_validation(table) for table in (left, right))
    if set(left.index) != set(right.index) or len(left) != len(right):
        raise ValueError("the runs were evaluated on different rows")
    right = right.loc[left.index]
    columns = [name for name in left if name.startswith("logit_")]
    return {
        "rows": len(left),
        "equal_share": float((left.prediction == right.prediction).mean()),
        "largest_logit_difference": float((left[columns] - right[columns]).abs().max().max()),
    }
