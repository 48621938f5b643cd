"""The words of a verdict: how three tests make one, and how often each comes out by chance.

Chances are of one comparison, before Holm's correction, for normal scores. They are simulated with
the same draws every time, so that equal questions get equal answers.
"""

import functools
import math
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import scipy.stats
from scipy.optimize import brentq

from loraudit.analysis.statistics import SIGNIFICANCE, Mean, exceeds, tost, welch, welch_error

Word = Literal["reproduced", "not reproduced", "different, by how much is open", "undecided"]

WORDS: tuple[Word, ...] = get_args(Word)

DRAWS = 10_000
"""Simulated comparisons per question: a chance of 50 % is known to 1 point (two s.e.)."""

POWER = 0.8
"""The chance that a study is customarily planned for (Cohen 1988)."""

MOST_SEEDS = 1000
"""As many seeds as anybody has: what they can't show, no number of seeds does."""


def decide(
    p_different: float,
    p_equivalent: float,
    p_exceeds: float,
    beyond: bool,
    significance: float = SIGNIFICANCE,
) -> Word:
    """Turn three tests and an interval into a word.

    - "reproduced": equivalent within the margin (even where a small difference is significant).
    - "not reproduced": the difference is larger than the margin, and no part of its 95 % interval
      lies within it.
    - "different, by how much is open": there is a difference, but it is not shown whether the
      margin holds it, or its interval reaches into the margin.
    - "undecided": none of these, because the seeds are too few or too spread. With one seed only,
      or seeds that all tie, p can't be computed (NaN).

    Args:
        p_different: of "no difference" (`statistics.welch`).
        p_equivalent: of "a difference of the margin or more" (`statistics.tost`).
        p_exceeds: of "a difference of the margin or less" (`statistics.exceeds`).
        beyond: whether the 95 % interval lies beyond the margin (`outside`). The adjusted p alone
            would be less strict where a table has one row: it asks for the 90 % interval.
        significance: below which a p counts.
    """
    return WORDS[int(_places(p_different, p_equivalent, p_exceeds, beyond, significance))]


def _places(p_different: Any, p_equivalent: Any, p_exceeds: Any, beyond: Any, level: float) -> Any:
    """Return the place in `WORDS` of each comparison's word."""
    equivalent, exceeds, different = (
        np.less(p, level) for p in (p_equivalent, p_exceeds, p_different)
    )
    return np.select([equivalent, exceeds & beyond, exceeds | different], range(3), default=3)


def outside(low: Any, high: Any, margin: float) -> Any:
    """Tell whether an interval of a difference lies beyond the margin, to one side of it."""
    return np.greater(low, margin) | np.less(high, -margin)


@functools.lru_cache(maxsize=4096)
def word_chances(
    difference: float, margin: float, ours: Mean, theirs: Mean, draws: int = DRAWS
) -> dict[Word, float]:
    """Return how often each word comes out if the true difference is `difference`.

    Args:
        difference: true mean of ours minus theirs, in the unit of the means.
        margin: as in `statistics.tost`.
        ours: the sd and n (2 or more) that our seeds have; its mean is not used.
        theirs: the published number's sd and n; borrowed or widened, it is drawn and tested so.
        draws: how many comparisons are simulated.

    Raises:
        ValueError: ours has less than two seeds or no spread.
    """
    left, right = _comparisons(difference, ours, theirs, draws)
    found = welch(left, right)
    tests = (found["p"], tost(left, right, margin), exceeds(left, right, margin))
    beyond = outside(found["low"], found["high"], margin)
    counts = np.bincount(_places(*tests, beyond, SIGNIFICANCE), minlength=len(WORDS))
    return {word: int(count) / draws for word, count in zip(WORDS, counts, strict=True)}


def _comparisons(difference: float, ours: Mean, theirs: Mean, draws: int) -> tuple[Mean, Mean]:
    """Draw comparisons of which the true means differ by `difference`, as two arrays of summaries.

    Our mean and sd are drawn as such, which for normal scores is the same as drawing the scores.
    """
    if not ours.n or ours.n < 2 or not ours.sd > 0:
        raise ValueError(f"chances need two seeds and a spread, got n={ours.n}, sd={ours.sd}")
    random = np.random.default_rng(0)
    means = difference + ours.sd / math.sqrt(ours.n) * random.standard_normal(draws)
    sds = ours.sd * np.sqrt(random.chisquare(ours.n - 1, draws) / (ours.n - 1))
    return _arrays(means, sds, ours), _drawn(theirs, ours.sd, sds, random, draws)


def _arrays(means: Any, sds: Any, like: Mean) -> Mean:
    return replace(like, mean=means, sd=sds)


def _drawn(theirs: Mean, sd: float, seen: Any, random: np.random.Generator, draws: int) -> Mean:
    """Draw a published number with the true mean 0; `seen` is our sd in each draw, `sd` the true.

    A number that was printed without ± has our true spread and is tested with the one we see.
    """
    if not theirs.n:
        return replace(theirs, mean=0.0)
    own = sd if theirs.borrowed else theirs.sd
    values = own * random.standard_normal((draws, theirs.n))
    centre = (np.median if theirs.widening > 1 else np.mean)(values, axis=1)
    spread = values.std(axis=1, ddof=1) if theirs.n > 1 else own
    return _arrays(centre, seen if theirs.borrowed else spread, theirs)


@functools.lru_cache(maxsize=4096)
def chance_to_reproduce(margin: float, ours: Mean, theirs: Mean) -> float:
    """Return the chance of "reproduced" if ours is exactly theirs; NaN without a spread of ours.

    Args:
        margin, ours, theirs: as in `word_chances`.
    """
    if not ours.n or ours.n < 2 or not ours.sd > 0:
        return math.nan
    p = tost(*_comparisons(0.0, ours, theirs, DRAWS), margin)
    return float(np.mean(np.less(p, SIGNIFICANCE)))


def seeds_to_reproduce(margin: float, sd: float, theirs: Mean, power: float = POWER) -> int | None:
    """Return how many seeds of ours give the chance `power` of "reproduced" if it is exactly true.

    None if no number of ours does (up to 1000), because the published number's own n and spread
    leave it too uncertain.
    """

    def enough(n: int) -> bool:
        return chance_to_reproduce(margin, Mean(0.0, sd, n), theirs) >= power

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS  # enough(high) holds, enough(low) does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def smallest_difference(ours: Mean, theirs: Mean, power: float = POWER) -> float:
    """Return the true difference that Welch's test finds with the chance `power`.

    By the noncentral t distribution with Welch's standard error and freedom at the given spreads;
    NaN without a spread of ours.
    """
    error, freedom = welch_error(ours, theirs)
    return difference_found(error, freedom, power=power) if error else math.nan


def difference_found(
    error: float, freedom: float, level: float = SIGNIFICANCE, power: float = POWER
) -> float:
    """Return the true difference that a two-sided t test finds with the chance `power`.

    Args:
        error: standard error of the difference; positive.
        freedom: its degrees of freedom.
        level: below which a p counts.
        power: the chance, of a difference of the right sign.
    """
    limit = scipy.stats.t.isf(level / 2, freedom)

    def missing(size: float) -> float:
        return scipy.stats.nct.sf(limit, freedom, size) - power

    return float(error * brentq(missing, 0, 10 * limit + 100))
