"""What tuning chose: each cell's settings, and its learning rate beside full fine-tuning's."""

import json

import numpy as np
import pandas as pd

from loraudit.analysis.cells import SCORED_CELL, SUBJECT, label_text
from loraudit.studies.methods import METHODS
from loraudit.studies.scores import sign, worst_score

RESAMPLES = 2000
"""How often the seeds that tune are drawn again, for the interval of a ratio of rates."""


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

    The interval is the bootstrap's over the seeds that tune, drawn apart for the two. It is no
    finer than the rates that were tried.
    """
    nothing = dict.fromkeys(("rate_ratio", "ratio_low", "ratio_high"), np.nan)
    if METHODS[cell["method"]].trains != "adapter" or full.empty:
        return nothing
    if trials.learning_rate.nunique() < 2 or full.learning_rate.nunique() < 2:
        return nothing
    ratios = np.log(_best_rates(trials, 0)) - np.log(_best_rates(full, 1))
    low, high = np.quantile(ratios[1:], [0.025, 0.975])
    return {"rate_ratio": np.exp(ratios[0]), "ratio_low": np.exp(low), "ratio_high": np.exp(high)}


def _best_rates(trials: pd.DataFrame, stream: int) -> np.ndarray:
    """Return the best learning rate of the seeds as they are, then of each resample of them."""
    scores = trials.pivot_table(index="values", columns="seed", values="score", sort=False)
    rates = trials.drop_duplicates("values").set_index("values").learning_rate[scores.index]
    values, seeds = sign(trials.metric.iloc[0]) * scores.to_numpy(), scores.shape[1]
    drawn = np.random.default_rng(stream).integers(0, seeds, (RESAMPLES, seeds))
    means = np.vstack([values.mean(axis=1), values[:, drawn].mean(axis=2).T])
    return rates.to_numpy()[means.argmax(axis=1)]


def values_text(values: str, without: str = "") -> str:
    """Write the values of a trial for readers: "learning_rate 0.001, alpha 16".

    Args:
        values: a JSON object, or "".
        without: a field to leave out.
    """
    content = json.loads(values) if values else {}
    numbers = {k: f"{v:g}" if isinstance(v, int | float) else str(v) for k, v in content.items()}
    return ", ".join(f"{name} {value}" for name, value in numbers.items() if name != without)
