"""What a score is measured in, and whether a higher or a lower one is better.

The scores of labels are fractions, and a higher one is better. The scores of a language model are
the log loss, in nats per token that is predicted, and the perplexity, its exponential; a lower one
is better. A metric's name may have a split's behind it (`names.score_name`).
"""

import math
from typing import Literal

LOWEST = -1.0
"""What an undefined score of labels, or none, counts as where values are chosen: none is lower."""

HIGHEST = 1e30
"""What an undefined log loss or perplexity, or none, counts as there."""

Unit = Literal["points", "nats", ""]
"""Percentage points of a fraction, nats per token, or none."""


def unit_of(metric: str) -> Unit:
    """Return what differences of a metric are given in."""
    if metric.startswith("log_loss"):
        return "nats"
    return "" if metric.startswith("perplexity") else "points"


def sign(metric: str) -> int:
    """Return 1 where a higher score is better, and -1 where a lower one is."""
    return 1 if unit_of(metric) == "points" else -1


def goodness(metric: str, value: float) -> float:
    """Return a score as a number of which the highest is the best.

    Args:
        metric: its name, such as "accuracy" or "log_loss".
        value: the score; NaN, where it is undefined, is the worst.
    """
    return -math.inf if math.isnan(value) else sign(metric) * value


def worst_score(metric: str) -> float:
    """Return what no score, or an undefined one, counts as where values are chosen."""
    return LOWEST if sign(metric) > 0 else HIGHEST
