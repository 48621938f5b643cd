"""Statistics of seeds: pure functions of numbers and tables.

A run's score is a fraction. Scores of one cell are a sequence over seeds, taken as independent
draws; scores of two methods "on the same seeds" are two sequences in the same order of seeds.
Everything that is reported about a cell names its n. p-values are two-sided unless said.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy  # its slow parts, stats and integrate, are imported when they are asked for
from scipy.special import bdtr, stdtr, stdtrit

from loraudit.analysis.cells import SCORED_CELL, SUBJECT, choices_of, collapsed

READINGS = ("sd", "population sd", "standard error", "95% interval", "half range")
"""What a published ± can mean; few papers say."""

SIGNIFICANCE = 0.05

MARGIN = 0.01
"""One point: the largest difference that counts as equal, where nothing else says so."""


@dataclass(frozen=True)
class Mean:
    """A mean (or median) of n values with their standard deviation (n - 1).

    One value of ours (n = 1) has the sd NaN; a published one (n = 1) may have an sd that is known
    from elsewhere. A number that is taken as exact has n None and the sd 0. `mean` and `sd` may be
    arrays: many draws of one comparison, tested at once.

    `borrowed`: the sd is that of the values which it is compared with, for want of its own, so it
    brings no degrees of freedom. `widening`: the variance of the number as a multiple of a mean's,
    sd^2 / n; above 1 for a median (`median_widening`).
    """

    mean: float
    sd: float
    n: int | None
    borrowed: bool = False
    widening: float = 1.0


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of at least one value; the order of the values changes no bit.

    Raises:
        ValueError: no values.
    """
    data = np.sort(np.asarray(values, dtype=float))
    if not len(data):
        raise ValueError("no values to summarise")
    sd = data.std(ddof=1) if len(data) > 1 else math.nan
    return Mean(float(data.mean()), float(sd), len(data))


def exact(value: float) -> Mean:
    """Return a number that is taken as exact, to compare a mean with."""
    return Mean(value, 0.0, None)


def summarise(values: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Return n, mean, sd (n - 1), median, and two intervals of the mean.

    `low` and `high` are the t interval's; `boot_low` and `boot_high` the percentile bootstrap's
    (9,999 resamples, always the same ones), which with few seeds is too narrow and never reaches
    beyond the smallest and largest score. An undefined score (NaN) among the values leaves all of
    this undefined: without it the mean would be too good. With n = 1 sd and intervals are NaN: one
    seed says nothing about spread.

    Raises:
        ValueError: no values.
    """
    ours, n = mean_of(values), len(values)
    half = math.nan
    if n > 1:
        half = float(stdtrit(n - 1, (1 + confidence) / 2)) * ours.sd / math.sqrt(n)
    return {
        "n": n,
        "mean": ours.mean,
        "sd": ours.sd,
        "median": float(np.median(values)),
        "low": ours.mean - half,
        "high": ours.mean + half,
        **_bootstrap_mean(np.sort(np.asarray(values, dtype=float)), confidence),
    }


def _bootstrap_mean(data: np.ndarray, confidence: float) -> dict[str, float]:
    if len(data) < 2 or data[0] == data[-1] or math.isnan(data[-1]):
        edge = float(data[-1]) if len(data) > 1 else math.nan
        return {"boot_low": edge, "boot_high": edge}
    interval = scipy.stats.bootstrap(
        (data,), np.mean, confidence_level=confidence, method="percentile", rng=_fixed_random()
    ).confidence_interval
    return {"boot_low": float(interval.low), "boot_high": float(interval.high)}


def _fixed_random() -> np.random.Generator:
    return np.random.default_rng(0)


def aggregate(tidy: pd.DataFrame) -> pd.DataFrame:
    """Summarise a study's tidy table per cell, for each choice of an epoch.

    A choice counts where all runs of a task and model made it; other cells have NaN there.

    Returns one row per cell: SCORED_CELL, the parameter counts, n, unmoved (runs in which a matrix
    B is still zero), then best_mean, best_sd, ..., last_mean and so on; best_collapsed and so on
    count the runs that collapsed, which the means include. Rows come in the order in which the
    cells first appear.
    """
    rows = []
    made = {key: choices_of(part) for key, part in tidy.groupby(SUBJECT, sort=False)}
    for cell, runs in tidy.groupby(SCORED_CELL, dropna=False, sort=False):
        row = dict(zip(SCORED_CELL, cell, strict=True))
        counts = [name for name in runs if name.startswith("parameters_")]
        row.update({name: round(runs[name].mean()) for name in counts})
        row["n"] = len(runs)
        row["unmoved"] = int((runs.unmoved > 0).sum()) if "unmoved" in runs else 0
        for epoch in made[tuple(row[name] for name in SUBJECT)]:
            row[f"{epoch}_collapsed"] = int(collapsed(runs, epoch).sum())
            summary = summarise(runs[epoch].tolist())
            row.update({f"{epoch}_{k}": value for k, value in summary.items() if k != "n"})
        rows.append(row)
    return pd.DataFrame(rows)


def spread_to_sd(pm: float, n: int, reading: str) -> float:
    """Turn a published ± into a standard deviation (n - 1) under one reading of it.

    "half range" divides by the expected range of n normal draws (d2 of quality control: 2.326 for
    n = 5): an estimate, unlike the others.

    Raises:
        ValueError: n below 2, or an unknown reading.
    """
    if n < 2:
        raise ValueError(f"a spread needs n >= 2, got {n}")
    if reading == "sd":
        return pm
    if reading == "population sd":
        return pm * math.sqrt(n / (n - 1))
    if reading == "standard error":
        return pm * math.sqrt(n)
    if reading == "95% interval":
        return pm * math.sqrt(n) / float(stdtrit(n - 1, 0.975))
    if reading == "half range":
        return 2 * pm / expected_range(n)
    raise ValueError(f"unknown reading {reading!r} (legal: {', '.join(READINGS)})")


@functools.cache
def expected_range(n: int) -> float:
    """Return the expected range (largest minus smallest) of n standard normal draws."""
    cdf = scipy.stats.norm.cdf
    quad = scipy.integrate.quad
    return quad(lambda x: 1 - cdf(x) ** n - (1 - cdf(x)) ** n, -np.inf, np.inf)[0]


@functools.cache
def median_widening(n: int) -> float:
    """Return the variance of the median of n normal draws as a multiple of their mean's.

    It is 1 for n below 3, where the two are one, 1.43 for n = 5, and nears pi / 2 for many. The
    median of a symmetric spread estimates what the mean does, only less precisely.
    """
    if n < 3:
        return 1.0
    normal, half = scipy.stats.norm, (n + 1) // 2
    if n % 2:  # the median's place in the distribution follows Beta(half, half)
        place = scipy.stats.beta(half, half)
        return n * float(place.expect(lambda share: normal.ppf(share) ** 2))
    # The two middle draws u < v have a density in proportion to (F(u) (1 - F(v)))^(half - 1)
    # f(u) f(v); it is summed over a grid of u and v - u.
    lower, gap = np.linspace(-8, 8, 801)[:, None], np.linspace(0, 8, 401)
    upper = lower + gap
    density = (normal.cdf(lower) * normal.sf(upper)) ** (half - 1) * normal.pdf(lower)
    density *= normal.pdf(upper)
    moment = np.trapezoid(np.trapezoid(density * (lower + gap / 2) ** 2, gap), lower[:, 0])
    return n * float(moment / np.trapezoid(np.trapezoid(density, gap), lower[:, 0]))


NO_SPREAD = 1e-9
"""A standard error below this is rounding: scores that tie. Nothing can be tested on it."""


def welch_error(left: Mean, right: Mean) -> tuple[float, float]:
    """Return Welch's standard error and degrees of freedom.

    The error is 0 where nothing can be tested: one value of ours, or values of ours that all tie,
    which is chance and no sign that they have no spread.
    """
    if not left.n or left.n < 2 or np.all(left.sd < NO_SPREAD):
        return 0.0, math.inf
    part_1 = left.sd**2 / left.n
    part_2 = right.widening * right.sd**2 / right.n if right.n else 0.0
    error = np.sqrt(part_1 + part_2)
    if right.n == 1 or right.borrowed:  # no estimate of its own: the first one's freedom
        return error, left.n - 1
    rest = part_2**2 / (right.n - 1) if right.n else 0.0
    return error, (part_1 + part_2) ** 2 / (part_1**2 / (left.n - 1) + rest)


def welch(left: Mean, right: Mean, confidence: float = 0.95) -> dict[str, float]:
    """Compare two means from their summaries, without equal variances (Welch 1947).

    Args:
        left: ours.
        right: what it is compared with. If it is `exact`, this is the one-sample t test; with
            n = 1 it is one draw, whose sd is known from elsewhere.
        confidence: of the interval.

    Returns:
        difference (left minus right), its interval low and high, and p. If left has one value, or
        all scores tie (no spread), the last three are NaN; but equal means without spread have
        p = 1.
    """
    difference = left.mean - right.mean
    error, freedom = welch_error(left, right)
    if np.ndim(error) == 0 and not error:
        p = 1.0 if left.n != 1 and abs(difference) < NO_SPREAD else math.nan
        return {"difference": difference, "low": math.nan, "high": math.nan, "p": p}
    half = stdtrit(freedom, (1 + confidence) / 2) * error
    p = 2 * stdtr(freedom, -abs(difference) / error)
    return {"difference": difference, "low": difference - half, "high": difference + half, "p": p}


def tost(left: Mean, right: Mean, margin: float) -> float:
    """Return the p of "the means differ by `margin` or more": small means equivalent.

    These are two one-sided Welch tests (Schuirmann 1987), and the larger of their p: below 0.05
    exactly where the 90 % interval of the difference is within the margin. It is NaN if left has
    one value, or without spread.

    Args:
        left, right: as in `welch`.
        margin: the largest difference that still counts as equal, in the means' unit.

    Raises:
        ValueError: a margin that is not positive.
    """
    difference, error, freedom = _against_margin(left, right, margin)
    above = stdtr(freedom, -(difference + margin) / error)
    below = stdtr(freedom, (difference - margin) / error)
    return np.maximum(above, below)


def exceeds(left: Mean, right: Mean, margin: float) -> float:
    """Return the p of "the means differ by `margin` or less": small means a larger difference.

    This is the minimum-effect test (Murphy and Myors 1999) with Welch's error: the probability of a
    difference as large as the one seen, to either side, if the true one were just the margin. It is
    below 0.05 where the 90 % interval of the difference is beyond the margin; with a margin of 0 it
    would be Welch's p. NaN as for `tost`.

    Args:
        left, right, margin: as in `tost`.

    Raises:
        ValueError: a margin that is not positive.
    """
    difference, error, freedom = _against_margin(left, right, margin)
    near = stdtr(freedom, (margin - abs(difference)) / error)
    return near + stdtr(freedom, -(abs(difference) + margin) / error)


def _against_margin(left: Mean, right: Mean, margin: float) -> tuple[float, float, float]:
    """Return the difference, its standard error (NaN if there is none) and degrees of freedom."""
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    error, freedom = welch_error(left, right)
    return left.mean - right.mean, error if np.ndim(error) or error else math.nan, freedom


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of one table for their number (Holm 1979); NaN stays NaN and counts not."""
    values = np.asarray(p_values, dtype=float)
    known = ~np.isnan(values)
    count = int(known.sum())
    order = np.argsort(values[known], kind="stable")
    steps = np.maximum.accumulate(values[known][order] * (count - np.arange(count)))
    values[np.flatnonzero(known)[order]] = np.minimum(steps, 1.0)
    return values.tolist()


def holm_factors(p_values: Sequence[float]) -> list[float]:
    """Return by what Holm's correction multiplies each p-value, before it is capped at 1.

    A 95 % interval that belongs to the corrected test has the confidence 1 - 0.05 / factor: it
    leaves out 0 exactly if the corrected p is below 0.05. NaN stays NaN and counts not.
    """
    values = np.asarray(p_values, dtype=float)
    factors = np.full(len(values), math.nan)
    order = [place for place in np.argsort(values, kind="stable") if not math.isnan(values[place])]
    corrected = 0.0
    for rank, place in enumerate(order):
        left = len(order) - rank
        corrected = max(corrected, left * values[place])
        factors[place] = corrected / values[place] if values[place] else left
    return factors.tolist()


def paired(left: Sequence[float], right: Sequence[float], confidence: float = 0.95) -> dict:
    """Compare two methods on the same seeds: mean difference, t interval, p of the paired t test.

    Raises:
        ValueError: sequences of different lengths, or empty.
    """
    if len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} scores are no pairs")
    gaps = mean_of(np.subtract(left, right).tolist())
    return {"n": len(left), **welch(gaps, exact(0.0), confidence)}


def mcnemar(correct_left: Sequence[bool], correct_right: Sequence[bool]) -> dict[str, float]:
    """Compare two classifiers on the same rows: exact McNemar test on where one alone is right.

    Raises:
        ValueError: sequences of different lengths.
    """
    left, right = np.asarray(correct_left, dtype=bool), np.asarray(correct_right, dtype=bool)
    if left.shape != right.shape:
        raise ValueError(f"{left.size} and {right.size} rows are no pairs")
    only_left, only_right = int((left & ~right).sum()), int((~left & right).sum())
    one_sided = float(bdtr(min(only_left, only_right), only_left + only_right, 0.5))
    p = min(1.0, 2 * one_sided) if only_left + only_right else 1.0
    return {"only_left": only_left, "only_right": only_right, "p": p}


def last_rows(predictions: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return a run's last-epoch predictions on a split, indexed by row."""
    chosen = predictions[predictions.split == split]
    return chosen[chosen.epoch == chosen.epoch.max()].set_index("row")


def same_rows(
    left: pd.DataFrame, right: pd.DataFrame, split: str = "validation"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return two runs' last-epoch predictions on a split, in one order of rows.

    Args:
        left, right: prediction tables with the columns split, epoch, row, prediction, logit_*.
        split: whose rows.

    Raises:
        ValueError: the runs were evaluated on different rows, or on none of the split.
    """
    left, right = (last_rows(table, split) for table in (left, right))
    if left.empty and right.empty:
        raise ValueError(f"the runs were evaluated on no {split} rows")
    if set(left.index) != set(right.index) or len(left) != len(right):
        raise ValueError("the runs were evaluated on different rows")
    return left, right.loc[left.index]


def agreement(left: pd.DataFrame, right: pd.DataFrame) -> dict[str, float]:
    """Compare two runs' predictions on the same rows, as `same_rows` gives them.

    Returns:
        rows, the share of equal predictions, and the largest difference of a logit.
    """
    columns = [name for name in left if name.startswith("logit_")]
    return {
        "rows": len(left),
        "equal_share": float((left.prediction == right.prediction).mean()),
        "largest_logit_difference": float((left[columns] - right[columns]).abs().max().max()),
    }
