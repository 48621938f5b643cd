"""What the seeds of a study can show of two methods, before it starts and from a spread.

The spread over seeds is one for all cells of a task and model: one that is given, or that of the
cells which a study has finished. The test is that of two cells by their own spreads (Student's),
at the level of Holm's first step, 0.05 / the number of tests of the table, which is the hardest;
that of two cells alone is the paired one, where this leaves freedom enough (`pooling.LEAST`). The
tests of contrasts.py draw on the other cells' spread too and find a little more.
"""

import math

import numpy as np
import pandas as pd
import scipy.stats

from loraudit.analysis.cells import CELL, SUBJECT, choices_of
from loraudit.analysis.contrasts import Pair, named_cells, pairs, roles_of
from loraudit.analysis.matching import planned_runs
from loraudit.analysis.pooling import LEAST
from loraudit.analysis.statistics import MARGIN, SIGNIFICANCE
from loraudit.analysis.words import MOST_SEEDS, POWER, difference_found
from loraudit.studies.study import Study


def spread_of(tidy: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return {(task, model): SD over seeds}, pooled over the cells with two runs or more.

    The score is that of the choice of an epoch that is shown first. A task and model without such
    cells, or without a spread, is left out.
    """
    found = {}
    for key, runs in tidy.groupby(SUBJECT, sort=False):
        scores = runs.groupby(CELL, dropna=False)[choices_of(runs)[0]].agg(["var", "count"])
        freedom = (scores["count"] - 1).where(scores["var"].notna(), 0)
        variance = (scores["var"].fillna(0) * freedom).sum() / max(freedom.sum(), 1)
        if variance > 0:
            found[key] = math.sqrt(variance)
    return found


def pair_power(study: Study, spreads: dict[tuple[str, str], float] | float) -> pd.DataFrame:
    """Say what a study's seeds can show of each pair of methods that it will test.

    Args:
        study: as planned.
        spreads: SD over seeds as a fraction, one for all or {(task, model): SD}.

    Returns:
        A row per task, model and pair with two seeds or more on both sides: n_left and n_right;
        what it asks, and the margin; the spread `sd` (NaN: not known, and so is the rest);
        `family`, the number of tests; `smallest`, the true difference that is found in 80 % of such
        studies; and `seeds`, how many on each side would find a difference as large as the margin
        (or show equality within it if it is exactly true) in 80 % (NaN: not even a thousand).
    """
    asked: list[tuple[dict, Pair, bool]] = []
    for (task, model), runs in planned_runs(study).groupby(SUBJECT, sort=False):
        found = pairs(named_cells(runs), study.contrasts)
        roles = roles_of(found)
        names = {"task": task, "model": model}
        tested = [p for p in found if roles[p[0].left, p[0].right] == "test"]
        several = [p for p in tested if min(len(p[1][1]), len(p[2][1])) > 1]
        alone = len({one for p in tested for one in (p[0].left, p[0].right)}) == 2
        asked += [(names, pair, alone) for pair in several]
    level, rows = SIGNIFICANCE / max(len(asked), 1), []
    for names, (contrast, (_, left), (_, right)), alone in asked:
        paired = alone and set(left.seed) == set(right.seed)
        sd = spreads if isinstance(spreads, float) else spreads.get(tuple(names.values()), math.nan)
        margin = contrast.margin or study.margin or MARGIN
        row = {**names, "left": contrast.left, "right": contrast.right, "asks": contrast.asks}
        row |= {"n_left": len(left), "n_right": len(right), "sd": sd, "margin": margin}
        row |= {"family": len(asked), "smallest": math.nan, "seeds": math.nan}
        if sd == sd:
            error = sd * math.sqrt(1 / len(left) + 1 / len(right))
            freedom = _freedom(np.array((len(left), len(right))), paired)
            row["smallest"] = difference_found(error, float(freedom.mean()), level)
            row["seeds"] = _seeds(sd, margin, contrast.asks, level, paired)
        rows.append(row)
    return pd.DataFrame(rows)


def _freedom(n: np.ndarray, paired: bool) -> np.ndarray:
    """Return the degrees of freedom of a test of n seeds on each side."""
    return np.where(paired & (n - 1 >= LEAST), n - 1, 2 * (n - 1))


def _seeds(sd: float, margin: float, asks: str, level: float, paired: bool) -> float:
    """Return the fewest seeds on each side that decide a pair in 80 % of studies."""
    n = np.arange(2, MOST_SEEDS + 1)
    size, freedom = margin / (sd * np.sqrt(2 / n)), _freedom(n, paired)
    if asks == "equivalence":  # both one-sided tests pass if the difference seen is this small
        most = size - scipy.stats.t.isf(level, freedom)
        power = 1 - 2 * scipy.stats.t.sf(most, freedom)
    else:
        power = scipy.stats.nct.sf(scipy.stats.t.isf(level / 2, freedom), freedom, size)
    enough = np.flatnonzero(np.nan_to_num(power) >= POWER)
    return float(n[enough[0]]) if len(enough) else math.nan
