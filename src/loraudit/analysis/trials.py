"""What tuning chose: each cell's settings, and its learning rate beside full fine-tuning's."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from loraudit.analysis.cells import SCORED_CELL, SUBJECT, label_text
from loraudit.analysis.pooling import Spread, pooled
from loraudit.studies.methods import METHODS
from loraudit.studies.scores import sign, worst_score

RESAMPLES = 2000
"""How often the means of the trials are drawn again, for what is known of a chosen value."""
TAIL = int(RESAMPLES * 0.025)
"""How many draws are left out at each end of a 95 % interval."""


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
    """Return the ratio of a cell's best learning rate to full fine-tuning's, and its interval."""
    nothing = dict.fromkeys(("rate_ratio", "ratio_low", "ratio_high"), np.nan)
    if METHODS[cell["method"]].trains != "adapter" or full.empty:
        return nothing
    if trials.learning_rate.nunique() < 2 or full.learning_rate.nunique() < 2:
        return nothing
    low, high = known_logarithm([trials, full], (1, -1), "learning_rate")
    return {
        "rate_ratio": _best(trials, "learning_rate") / _best(full, "learning_rate"),
        "ratio_low": np.exp(low),
        "ratio_high": np.exp(high),
    }


def _best(trials: pd.DataFrame, name: str) -> float:
    means, _ = _means(trials)
    return float(json.loads(str(means.idxmax()))[name])


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


def known_logarithm(
    cells: Sequence[pd.DataFrame], weights: Sequence[float], name: str
) -> tuple[float, float]:
    """Return the 95 % interval of a sum of weights times the logarithms of cells' best values.

    It is a parametric bootstrap's: the means of the trials are drawn again from what they are known
    to, and the best value of each draw is known to within its neighbours of those that were tried.
    The interval has no end where a best value may be the smallest or largest that was tried, or
    where one seed alone tuned.

    Args:
        cells: the rows of each cell, as `collect.tuning` gives them.
        weights: of each cell; 1 and -1 are the ratio of the first cell's value to the second's.
        name: the field, whose values are numbers above 0.
    """
    low, high = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for stream, (trials, weight) in enumerate(zip(cells, weights, strict=True)):
        ends = [weight * one for one in _drawn_ends(with_worst(trials), name, stream)]
        low += np.minimum(*ends)
        high += np.maximum(*ends)
    return float(np.sort(low)[TAIL]), float(np.sort(high)[-TAIL - 1])


def _drawn_ends(trials: pd.DataFrame, name: str, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithms of the neighbours of the best value of each draw."""
    means, errors = _means(trials)
    values = np.array([json.loads(text).get(name, np.nan) for text in means.index], dtype=float)
    random = np.random.default_rng(stream)
    if errors.isna().any():  # one seed says nothing about how sure a mean is
        found = random.integers(0, len(means), RESAMPLES)
    else:
        noise = random.standard_normal((RESAMPLES, len(means)))
        found = (means.to_numpy() + errors.to_numpy() * noise).argmax(axis=1)
    tried = np.unique(values[~np.isnan(values)])
    ends = np.concatenate([[-np.inf], np.log(tried), [np.inf]])
    places = np.searchsorted(tried, values)
    known = ~np.isnan(values)
    low = np.where(known, ends[np.minimum(places, len(tried))], -np.inf)
    high = np.where(known, ends[np.minimum(places + 2, len(tried) + 1)], np.inf)
    return low[found], high[found]
