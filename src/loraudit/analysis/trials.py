"""What tuning chose: each cell's settings, and its learning rate beside full fine-tuning's."""

import json

import numpy as np
import pandas as pd

from loraudit.analysis.cells import SCORED_CELL, SUBJECT, label_text
from loraudit.analysis.pooling import Spread, pooled
from loraudit.studies.methods import METHODS
from loraudit.studies.scores import sign, worst_score

RESAMPLES = 2000
"""How often the means of the trials are drawn again, for the interval of a ratio of rates."""


def chosen_settings(tuning: pd.DataFrame) -> pd.DataFrame:
    """Return a row per tuned cell: what it takes, from what, and how sure that is.

    Args:
        tuning: `collect.tuning`'s rows, one per cell, combination of values, and seed. An undefined
            score counts as the worst there is, as where the choice was made.

    Returns:
        CELL and metric; `chosen` and `runner_up` as JSON objects; mean, sd and n of the chosen
        combination's scores on the selection rows, and how many of these n runs collapsed
        (`collapsed`) or diverged; `all_diverged`, how many diverged with any combination, and
        `diverging`, which values they tried, as a JSON list; `lead`, how far the runner-up's mean
        is worse; `tried`, the number of combinations; at_edge; and the ratio of the cell's learning
        rate to full fine-tuning's of the same task and model (`rate_ratio`, with its 95 % interval
        ratio_low and ratio_high; NaN for other methods, or where one of them is not tuned).
    """
    rows = []
    tuning = with_worst(tuning)
    for key, trials in tuning.groupby(SCORED_CELL, dropna=False, sort=False):
        named = dict(zip(SCORED_CELL, key, strict=True))
        way = sign(named["metric"])
        means = (way * trials.groupby("values", sort=False).score.mean()).sort_values(
            ascending=False, kind="stable"
        )
        own = trials[trials.chosen.astype(bool)]
        if own.empty:
            continue
        others = means.drop(own["values"].iloc[0])
        rows.append(
            {
                **named,
                "chosen": own["values"].iloc[0],
                "runner_up": others.index[0] if len(others) else "",
                "mean": own.score.mean(),
                "sd": own.score.std(),
                "n": len(own),
                "collapsed": int(own.collapsed.sum()),
                "diverged": int(own.diverged.sum()),
                "all_diverged": int(trials.diverged.sum()),
                "diverging": json.dumps(
                    [json.loads(text) for text in trials["values"][trials.diverged].unique()]
                ),
                "lead": way * own.score.mean() - others.iloc[0] if len(others) else np.nan,
                "tried": len(means),
                "at_edge": label_text(own.at_edge.iloc[0]),
                **_ratio(named, trials, _full(tuning, named)),
            }
        )
    return pd.DataFrame(rows)


def with_worst(tuning: pd.DataFrame) -> pd.DataFrame:
    """Return trials with the worst score there is where one is undefined or none was made."""
    worst = tuning.metric.map(worst_score)
    return tuning.assign(score=tuning.score.astype(float).fillna(worst))


def _full(tuning: pd.DataFrame, cell: dict) -> pd.DataFrame:
    """Return the trials of unlabelled full fine-tuning on a cell's task and model."""
    same = (tuning[SUBJECT] == [cell[key] for key in SUBJECT]).all(axis=1)
    plain = tuning.label.map(label_text) == ""
    full = tuning.method.map(lambda name: METHODS[name].published_as or name) == "full"
    return tuning[same & plain & full]


def _ratio(cell: dict, trials: pd.DataFrame, full: pd.DataFrame) -> dict[str, float]:
    """Return the ratio of a cell's best learning rate to full fine-tuning's.

    The interval is a parametric bootstrap's: the means of the two are drawn again from what they
    are known to, and each draw's best rate is known to within its neighbours. It has no end (0 or
    infinite) where a best rate may lie at the edge of what was tried.
    """
    nothing = dict.fromkeys(("rate_ratio", "ratio_low", "ratio_high"), np.nan)
    if METHODS[cell["method"]].trains != "adapter" or full.empty:
        return nothing
    if trials.learning_rate.nunique() < 2 or full.learning_rate.nunique() < 2:
        return nothing
    (ours, low, high), (theirs, least, most) = _best_rates(trials, 0), _best_rates(full, 1)
    with np.errstate(divide="ignore"):  # the ratio to a rate without a lower end is infinite
        highest = high / least
    tail = int(RESAMPLES * 0.025)
    return {
        "rate_ratio": ours / theirs,
        "ratio_low": np.sort(low / most)[tail],
        "ratio_high": np.sort(highest)[-tail - 1],
    }


def _best_rates(trials: pd.DataFrame, stream: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the best learning rate, and the neighbours of the best one of each resample."""
    means, errors = _means(trials)
    rates = trials.drop_duplicates("values").set_index("values").learning_rate[means.index]
    tried = np.unique(rates)
    random = np.random.default_rng(stream)
    if errors.isna().any():  # one seed says nothing about how sure a mean is
        found = random.integers(0, len(rates), RESAMPLES)
    else:
        drawn = means.to_numpy() + errors.to_numpy() * random.standard_normal(
            (RESAMPLES, len(means))
        )
        found = drawn.argmax(axis=1)
    places = np.searchsorted(tried, rates.to_numpy())[found]
    ends = np.concatenate([[0.0], tried, [np.inf]])
    return float(rates[means.idxmax()]), ends[places], ends[places + 2]


def _means(trials: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return each combination's mean over the seeds that tune, and the standard error of it.

    The means are such that the highest is the best. The spread is the one that the combinations
    share, as far as they are alike (pooling.py). With one seed it is not known (NaN). A combination
    with the worst score (`with_worst`) counts as bad as that for sure (0).
    """
    metric = trials.metric.iloc[0]
    scores = trials.pivot_table(index="values", columns="seed", values="score", sort=False)
    means, n = sign(metric) * scores.mean(axis=1), scores.shape[1]
    if n < 2:
        return means, means * np.nan
    sound = ~(scores == worst_score(metric)).any(axis=1)
    spreads = pooled([Spread(float(one), n - 1) for one in scores[sound].var(axis=1)])
    errors = pd.Series(0.0, means.index)
    errors[sound] = [np.sqrt(one.variance / n) for one in spreads]
    return means, errors


def known_range(trials: pd.DataFrame, name: str) -> tuple[float, float]:
    """Return the values of a field between which the best one lies, as far as trials tell.

    They are the neighbours of all values that may be the best: whose mean lies no further below
    the highest one than twice the standard error of their difference. There is no end (0 or
    infinite) where one of these is the smallest or largest that was tried, or where one seed alone
    tuned.

    Args:
        trials: the rows of one cell, as `collect.tuning` gives them.
        name: the field, whose values are numbers above 0.
    """
    means, errors = _means(with_worst(trials))
    values = pd.Series([json.loads(text).get(name, np.nan) for text in means.index], means.index)
    tried = np.unique(values.dropna())
    best = means.idxmax()
    error = np.sqrt(errors**2 + errors[best] ** 2)
    possible = values[~(means < means[best] - 2 * error)]
    if possible.isna().any():
        return 0.0, np.inf
    ends = np.concatenate([[0.0], tried, [np.inf]])
    low, high = (np.searchsorted(tried, one) for one in (possible.min(), possible.max()))
    return float(ends[low]), float(ends[high + 2])
