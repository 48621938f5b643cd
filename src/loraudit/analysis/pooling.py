"""What the cells of one table share: their spread over seeds, estimated from all of them.

Two or three seeds say little about a cell's spread, and a test between two such cells has few
degrees of freedom. The cells of one task and model together say more. Each variance is drawn
towards the one that they share, as far as they are alike (the moderated variance of Smyth 2004,
Stat Appl Genet Mol Biol 3:3, doi 10.2202/1544-6115.1027), with three cautions, without which tests
of few seeds call too many differences real where spreads are not alike:

- A cell's own variance is never made smaller, only raised where it is small by chance.
- How unlike the variances are is taken at the upper end of what they allow (`CAUTION`).
- A cell whose variance is far beyond the others' (single runs that collapsed, say) keeps its own,
  and is left out when the others' is estimated (`FAR`).

A seed may be lucky for all cells at once, above all where it draws the training rows too. What the
cells' seeds share cancels in a comparison of cells of the same seeds, so that it is taken out of
the spread for it (`by_seed`).

In simulations of seven cells (tests/analysis/test_pooling.py) the test between two of them calls
equal means different, at a nominal 5 %, in 5 % of studies with three or five seeds and 7 % with
two, if the spreads are alike. If one of the two has four times the others' spread, it does so in
6 % with five seeds, 10 % with three and 12 % with two. Welch's test keeps to 6 % in all these
cases, but with three seeds and a correction for ten tests it finds a third of the differences that
this one finds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats
from scipy.special import digamma, polygamma

from loraudit.analysis.statistics import NO_SPREAD

CAUTION = 0.9
"""Confidence of the upper bound on how unlike the variances are."""

FAR = 0.01
"""Level of the test, corrected for the number of cells, that a variance is beyond the others'."""


LEAST = 4
"""Degrees of freedom that have to be left once the seeds' effects are taken out: with fewer, what
the seeds share is left in the spread, which makes tests cautious where there is any."""


@dataclass(frozen=True)
class Spread:
    """A variance over seeds (n - 1) and its degrees of freedom, which may be infinite or 0."""

    variance: float
    freedom: float


def own_spread(values: pd.Series) -> Spread:
    """Return the spread of one cell's values over its seeds; NaN if one of them is undefined."""
    return Spread(float(values.var(skipna=False)), len(values) - 1)


def by_seed(cells: Sequence[pd.Series]) -> list[Spread]:
    """Return the spread of each cell over seeds without what its seeds share with other cells'.

    It is that of the residuals of an additive model (a mean for each cell, an effect for each
    seed), for comparisons of cells of the same seeds. With C cells of the same S seeds each has
    the freedom (S - 1) (C - 1) / C; with two cells the comparison is the paired t test's.

    Args:
        cells: the values of each cell of one task and model, two or more, with the seeds as index.

    Returns:
        A spread for each cell, in the same order. It is the plain one (`own_spread`) of cells far
        beyond the others, which would blur the seeds' effects, of cells that share too few of
        their seeds, and of all where fewer than `LEAST` degrees of freedom would be left.
    """
    plain = list(map(own_spread, cells))
    variance = np.array([cell.variance for cell in plain])
    tied = variance < NO_SPREAD**2
    spread = ~tied & np.isfinite(variance)
    alike = _alike(variance, np.array([cell.freedom for cell in plain]), spread) | tied
    places = [place for place in np.flatnonzero(alike).tolist() if cells[place].notna().any()]
    found = _residual_spreads([cells[place].dropna() for place in places]) if places else []
    if sum(spread.freedom for spread in found) < LEAST - ROUNDING:
        return plain
    for place, residual in zip(places, found, strict=True):
        if residual.freedom >= plain[place].freedom / 2 - ROUNDING:
            plain[place] = residual
    return plain


ROUNDING = 1e-6


def _residual_spreads(cells: Sequence[pd.Series]) -> list[Spread]:
    """Return each cell's mean squared residual of the additive model, and its freedom."""
    sizes = [len(one) for one in cells]
    values = np.concatenate([one.to_numpy() - one.mean() for one in cells])
    cell = np.repeat(np.arange(len(cells)), sizes)
    _, seed = np.unique(np.concatenate([one.index for one in cells]), return_inverse=True)
    effects = np.hstack([np.eye(len(cells))[cell], np.eye(seed.max() + 1)[seed]])
    basis, size, _ = np.linalg.svd(effects, full_matrices=False)
    basis = basis[:, size > ROUNDING * size[0]]
    squares = (values - basis @ (basis.T @ values)) ** 2
    free = 1 - (basis**2).sum(axis=1)
    totals = (np.bincount(cell, weights=one, minlength=len(cells)) for one in (squares, free))
    return [
        Spread(float(total / max(freedom, ROUNDING)), float(freedom))
        for total, freedom in zip(*totals, strict=True)
    ]


def shared_spreads(cells: Sequence[pd.Series], same_seeds: bool) -> tuple[list[Spread], float]:
    """Return the spread to test each cell of a task and model with, and the freedom of all.

    Args:
        cells: as for `by_seed`. Twins train the same runs, which may count once.
        same_seeds: whether cells of the same seeds are compared, so that what these share is out.
    """
    own = by_seed(cells) if same_seeds else list(map(own_spread, cells))
    return pooled(own), sum(spread.freedom for spread in own)


def pooled(own: Sequence[Spread]) -> list[Spread]:
    """Draw the variances of one table's cells towards what they share.

    Args:
        own: each cell's variance over its seeds, with its degrees of freedom (above 0; seeds - 1
            of plain ones). Cells whose scores tie have the variance 0; they borrow the others'.
            Cells with an undefined score have the variance NaN and keep it.

    Returns:
        The spread of each cell to test with, in the same order. With fewer than two cells that
        have a spread, it is their own.
    """
    variance = np.array([cell.variance for cell in own])
    freedom = np.array([cell.freedom for cell in own])
    tied = variance < NO_SPREAD**2
    shares = _alike(variance, freedom, ~tied & np.isfinite(variance))
    if shares.sum() < 2:
        return list(own)
    prior = _prior(variance[shares], freedom[shares])
    total = float(freedom[shares | tied].sum())
    return [
        _moderated(cell, prior, total) if alike else cell
        for cell, alike in zip(own, shares | tied, strict=True)
    ]


def _alike(variance: np.ndarray, freedom: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Leave out, one after the other, the largest variance while it is far beyond the rest's."""
    while shares.sum() > 2:
        largest = int(np.argmax(np.where(shares, variance, -1)))
        rest = shares.copy()
        rest[largest] = False
        usual = np.average(variance[rest], weights=freedom[rest])
        p = scipy.stats.f.sf(variance[largest] / usual, freedom[largest], freedom[rest].sum())
        if p * shares.sum() > FAR:
            break
        shares = rest
    return shares


def _prior(variance: np.ndarray, freedom: np.ndarray) -> Spread:
    """Return the variance that cells share, and how many degrees of freedom it is worth to each.

    These are Smyth's moment estimates on the log scale. If the variances differ no more than equal
    ones would by chance, the freedom is infinite and the variance their weighted mean.
    """
    logs = np.log(variance) - digamma(freedom / 2) + np.log(freedom / 2)
    unlike = scipy.stats.chi2.ppf(1 - CAUTION, len(logs) - 1)
    excess = logs.var() * len(logs) / unlike - polygamma(1, freedom / 2).mean()
    if excess <= 0:
        return Spread(float(np.average(variance, weights=freedom)), math.inf)
    half = _inverse_trigamma(excess)
    return Spread(math.exp(logs.mean() + digamma(half) - math.log(half)), 2 * half)


def _inverse_trigamma(value: float) -> float:
    """Return x > 0 with trigamma(x) = value > 0."""
    found = scipy.optimize.brentq(lambda log: polygamma(1, math.exp(log)) - value, -50, 50)
    return math.exp(found)


def _moderated(cell: Spread, prior: Spread, total: float) -> Spread:
    """Combine a cell's variance with the shared one; `total` is the freedom of all cells."""
    share = 1.0 if math.isinf(prior.freedom) else prior.freedom / (prior.freedom + cell.freedom)
    drawn = share * prior.variance + (1 - share) * cell.variance
    return Spread(max(drawn, cell.variance), min(cell.freedom + prior.freedom, total))


@dataclass(frozen=True)
class Difference:
    """A difference with its standard error and degrees of freedom.

    With the error 0 (scores that tie) nothing can be tested: p-values and intervals are NaN, but a
    difference of 0 has p = 1. Of an undefined score (NaN) all are NaN.
    """

    value: float
    error: float
    freedom: float

    def p(self) -> float:
        """Return the two-sided p of "the difference is 0"."""
        if not self.error:
            return math.nan if self.value else 1.0
        return float(2 * scipy.stats.t.sf(abs(self.value) / self.error, self.freedom))

    def p_equivalent(self, margin: float) -> float:
        """Return the p of "it is `margin` or more": TOST, the larger of two one-sided p-values."""
        if not self.error:
            return math.nan
        distance = (margin - abs(self.value)) / self.error
        return float(scipy.stats.t.sf(distance, self.freedom))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the t interval of that confidence."""
        if not self.error:
            return math.nan, math.nan
        half = float(scipy.stats.t.isf((1 - confidence) / 2, self.freedom)) * self.error
        return self.value - half, self.value + half

    def beyond(self, error: float, freedom: float) -> "Difference":
        """Return the same difference with a further, independent source of error."""
        return Difference(self.value, *summed((self.error, self.freedom), (error, freedom)))


@dataclass(frozen=True)
class Cell:
    """A cell's mean over its n seeds, and the spread to test it with, as `pooled` gives it."""

    mean: float
    n: int
    spread: Spread


def unpaired(left: Cell, right: Cell, most: float) -> Difference:
    """Return left minus right, whose values are independent but for what `by_seed` takes out.

    The degrees of freedom are Welch's and Satterthwaite's, and at most those of all cells of the
    table together (`most`), because the two spreads have been drawn towards the same one.
    """
    parts = [(math.sqrt(c.spread.variance / c.n), c.spread.freedom) for c in (left, right)]
    error, freedom = summed(*parts)
    return Difference(left.mean - right.mean, error, min(freedom, most))


def summed(*parts: tuple[float, float]) -> tuple[float, float]:
    """Add independent standard errors with their degrees of freedom (Satterthwaite 1946).

    An error that is only rounding (scores that tie) is returned as 0.
    """
    error = math.sqrt(sum(one**2 for one, _ in parts))
    if error < NO_SPREAD:
        return 0.0, math.inf
    weights = [one**4 / freedom for one, freedom in parts]
    return error, error**4 / sum(weights) if any(weights) else math.inf
