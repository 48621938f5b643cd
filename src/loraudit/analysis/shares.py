"""Exact tests of shares: how many of a cell's runs had an outcome, such as a collapse.

With a handful of runs a share's spread over seeds says little, and none where all runs end alike;
the counts themselves do. One share is tested with the binomial distribution. Two are compared by
the exact unconditional test of their difference (Chan 1998, Stat Med 17:1403), which also takes a
difference other than 0 to test against: the p-value is the largest that any two true shares of that
difference give. Where all of one cell's runs have the outcome and none of the other's, its p is
smaller than that of Fisher's exact test, which is about the counts' totals as seen.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

SHARES = 1001
"""How many true shares are tried, evenly from the lowest to the highest that is possible."""

ROUNDING = 1e-9


class Count(NamedTuple):
    """So many `hits` of `n` runs."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        """The hits as a fraction."""
        return self.hits / self.n


def p_above(counts: Sequence[Count], edge: float) -> float:
    """Return the one-sided p of "it is `edge` or less": small means that it is above.

    Args:
        counts: one cell's, whose share is meant, or two cells', for the first's minus the second's.
        edge: the share or difference of shares to test against.
    """
    if len(counts) == 1:
        (one,) = counts
        return float(scipy.stats.binom.sf(one.hits - 1, one.n, min(max(edge, 0.0), 1.0)))
    left, right = counts
    second = np.linspace(max(0.0, -edge), min(1.0, 1.0 - edge), SHARES)[:, None]
    if second[0] > second[-1]:  # no two shares differ by so much: all are below, or all above
        return 1.0 if edge > 0 else 0.0
    first = np.clip(second + edge, 0.0, 1.0)
    hits = np.arange(left.n + 1)[:, None], np.arange(right.n + 1)
    gaps = hits[0] / left.n - hits[1] / right.n
    extreme = gaps >= left.share - right.share - ROUNDING
    mass_1 = scipy.stats.binom.pmf(hits[0].ravel(), left.n, first)
    mass_2 = scipy.stats.binom.pmf(hits[1], right.n, second)
    return float(min(np.einsum("si,ij,sj->s", mass_1, extreme, mass_2).max(), 1.0))


def p_below(counts: Sequence[Count], edge: float) -> float:
    """Return the one-sided p of "it is `edge` or more": small means that it is below."""
    others = [Count(n - hits, n) for hits, n in counts]
    return p_above(others, 1.0 - edge if len(counts) == 1 else -edge)


def interval(counts: Sequence[Count], confidence: float) -> tuple[float, float]:
    """Return an interval of the share, or of the difference of two.

    A share's is exact (Clopper and Pearson 1934); a difference's is put together from the two exact
    ones (Newcombe 1998, Stat Med 17:873).
    """
    ends = [
        scipy.stats.binomtest(one.hits, one.n).proportion_ci(confidence, method="exact")
        for one in counts
    ]
    if len(counts) == 1:
        return float(ends[0].low), float(ends[0].high)
    (left, right), (one, two) = counts, ends
    gap = left.share - right.share
    below = math.hypot(left.share - one.low, two.high - right.share)
    above = math.hypot(one.high - left.share, right.share - two.low)
    return gap - below, gap + above
