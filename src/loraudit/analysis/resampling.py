"""What other rows, seeds and tasks would have given: bootstraps of scores.

The scores of a run are of the validation rows that there are. A claim about a task ("method A beats
method B on MRPC") holds for rows that are drawn again, too. So the rows are resampled: all runs of
a task on the same draws, which keeps what two methods have in common on each row. The spread over
seeds is added by contrasts.py, from the model of pooling.py. Resampling two to five seeds would
make it too small by a third to a tenth of its variance.

Aggregates over tasks are those of Agarwal et al. 2021 (NeurIPS, arXiv 2108.13264): the
interquartile mean with a bootstrap that is stratified by task.
"""

import functools
from collections.abc import Sequence

import numpy as np
import scipy  # its slow part, stats, is imported when it is asked for

RESAMPLES = 1000
"""How often rows are drawn: the standard error is then known to 2 %."""

AT_ONCE = 2**23
"""How many weights are worked on at once: 32 MiB of them."""


@functools.lru_cache(maxsize=2)
def row_weights(rows: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Return how often each of `rows` rows is in each resample (resamples, rows), always the same.

    A resample has as many rows as there are, drawn with replacement. The array must not be changed.
    """
    random = np.random.default_rng(0)
    weights = np.empty((resamples, rows), dtype=np.uint8)
    for place in range(resamples):
        drawn = np.bincount(random.integers(0, rows, rows), minlength=rows)
        weights[place] = drawn
    return weights


def resampled_scores(
    labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray, metric: str
) -> np.ndarray:
    """Score each resample of a run's rows: (resamples,).

    A score that is undefined there is NaN, as in the run's own metrics (training/measures.py says
    which are); Matthews of constant predictions is 0.

    Args:
        labels, predictions: (rows,) class numbers, or numbers.
        weights: how often each row is in each resample (resamples, rows).
        metric: accuracy, f1 (binary, class 1), matthews, pearson or spearman; or of text, where
            labels are numbers of tokens and predictions losses, log_loss or perplexity.

    Raises:
        KeyError: another metric.
    """
    measure = _MEASURES[metric]
    rows = np.asarray(labels), np.asarray(predictions)
    parts = np.array_split(weights, -(-weights.size // AT_ONCE))
    return np.concatenate([measure(*rows, part.astype(np.float32)) for part in parts])


def _count(chosen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Count the chosen rows of each resample; exact in float32 up to 16 million rows."""
    return (weights @ chosen.astype(np.float32)).astype(float)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; where nothing is to be divided by, the ratio is undefined (NaN)."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _accuracy(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _count(labels == predictions, weights) / weights.sum(1)


def _f1(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    both = _count((labels == 1) & (predictions == 1), weights)
    return _ratio(2 * both, _count(labels == 1, weights) + _count(predictions == 1, weights))


def _matthews(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gorodkin's R_K, which is Matthews' coefficient for two classes; 0 of constant predictions."""
    rows, right = weights.sum(1).astype(float), _count(labels == predictions, weights)
    classes = np.union1d(labels, predictions)
    true = np.stack([_count(labels == one, weights) for one in classes])
    said = np.stack([_count(predictions == one, weights) for one in classes])
    above = right * rows - (true * said).sum(0)
    varied, spread = (rows**2 - (counts**2).sum(0) for counts in (true, said))
    constant = (varied > 0) & (spread == 0)
    return np.where(constant, 0.0, _ratio(above, np.sqrt(varied * spread)))


def _pearson(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    one, two = (np.broadcast_to(part, weights.shape) for part in (labels, predictions))
    return _correlation(one, two, weights)


def _spearman(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _correlation(_ranks(labels, weights), _ranks(predictions, weights), weights)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each row's rank in each resample (resamples, rows), ties at their middle."""
    order = np.argsort(values, kind="stable")
    _, first, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    counts = np.add.reduceat(weights[:, order].astype(float), first, axis=1)
    middles = np.cumsum(counts, axis=1) - counts / 2
    ranks = np.empty(weights.shape)
    ranks[:, order] = middles[:, inverse]
    return ranks


def _correlation(one: np.ndarray, two: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the correlation of each resample; all three arrays are (resamples, rows).

    Of values that are constant there it is NaN; their mean is rounded, so that sums of squares
    about it need not be 0.
    """
    varied = _varied(one, weights) & _varied(two, weights)
    rows = weights.sum(1, keepdims=True)
    one = one - (weights * one).sum(1, keepdims=True) / rows
    two = two - (weights * two).sum(1, keepdims=True) / rows
    covariance = (weights * one * two).sum(1)
    spread = np.sqrt((weights * one**2).sum(1) * (weights * two**2).sum(1))
    return _ratio(covariance, np.where(varied, spread, 0))


def _varied(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tell of each resample whether its rows have more than one value; both: (resamples, rows)."""
    drawn = weights > 0
    lowest, highest = values.min(), values.max()
    drawn_highest = values.max(1, where=drawn, initial=lowest)
    return drawn_highest > values.min(1, where=drawn, initial=highest)


def _log_loss(tokens: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    whole = weights.astype(float)
    return (whole @ losses) / (whole @ tokens)


def _perplexity(tokens: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.exp(_log_loss(tokens, losses, weights))


_MEASURES = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "log_loss": _log_loss,
    "perplexity": _perplexity,
}


def paired_bootstrap(
    labels: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    metric: str,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> dict[str, float]:
    """Compare two runs' predictions on the same rows: score(left) - score(right), percentile CI.

    Args:
        labels, left, right: (rows,) one value per row, in the same order of rows.
        metric: as for `resampled_scores`.
        resamples: how often rows are drawn with replacement (always the same draws).

    Returns:
        difference, low and high; and undefined, how many resamples have no score of one side (F1
        without a row of class 1, a correlation of constant values). These are left out of the
        interval. Where the score of the rows themselves is undefined, all three are NaN.
    """
    once = np.ones((1, len(labels)), dtype=np.uint8)

    def gaps(weights: np.ndarray) -> np.ndarray:
        one, two = (resampled_scores(labels, side, weights, metric) for side in (left, right))
        return one - two

    tail = 100 * (1 - confidence) / 2
    difference, drawn = float(gaps(once)[0]), gaps(row_weights(len(labels), resamples))
    known = drawn[~np.isnan(drawn)]  # none is, if the rows themselves have no score
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    ends = {"low": float(low), "high": float(high)}
    return {"difference": difference, **ends, "undefined": int(np.isnan(drawn).sum())}


def interquartile_mean(scores: np.ndarray) -> float:
    """Return the mean of the middle half of all scores, of every task and run together."""
    return float(scipy.stats.trim_mean(np.asarray(scores, dtype=float).ravel(), 0.25))


def interquartile_difference(
    left: Sequence[np.ndarray],
    right: Sequence[np.ndarray],
    resamples: int = 2000,
    confidence: float = 0.95,
) -> dict[str, float]:
    """Compare two methods over several tasks: difference of interquartile means, its interval.

    Each task's scores are first counted from the right one's mean there: otherwise the tasks of the
    highest and lowest scores would be trimmed away, whatever the methods do. The interval is the
    percentile bootstrap's, stratified: runs are drawn within each task and method. Deviations from
    a task's mean are drawn sqrt(n / (n - 1)) times as large, because draws from n values have that
    much less spread than what the values came from.

    It is about these tasks. In simulations with three to ten runs of two or eight tasks it covers
    the true difference in 94 or 95 % of studies (tests/analysis/test_resampling.py).

    Args:
        left, right: for each task the scores of its runs (runs,), at least two.
    """
    random = np.random.default_rng(0)
    gains = [
        [
            np.asarray(part, dtype=float) - np.mean(there)
            for part, there in zip(s, right, strict=True)
        ]
        for s in (left, right)
    ]
    drawn = [
        np.concatenate([_drawn(task, resamples, random) for task in side], axis=1) for side in gains
    ]
    one, two = (scipy.stats.trim_mean(part, 0.25, axis=1) for part in drawn)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(one - two, [tail, 100 - tail])
    one, two = (interquartile_mean(np.concatenate(side)) for side in gains)
    return {"difference": one - two, "low": float(low), "high": float(high)}


def _drawn(scores: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """Draw a task's runs with replacement, with their full spread: (resamples, runs)."""
    n = len(scores)
    wide = scores.mean() + (scores - scores.mean()) * np.sqrt(n / (n - 1))
    return wide[random.integers(0, n, (resamples, n))]
