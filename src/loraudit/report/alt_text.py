"""What the sentences that describe figures share.

Each figure's sentence stands beside its drawing code; readers who do not see the figure hear it as
the `alt` of the report's image.
"""

from collections.abc import Callable, Iterable

import pandas as pd

from loraudit.analysis.cells import CELL, SUBJECT, collapsed
from loraudit.report.formatting import of_which, shown_cell

MOST = 8
"""Items that a sentence lists; it counts the others."""


def listed(items: Iterable[str], most: int = MOST, where: str = " in the CSV") -> str:
    """Join items, and count those beyond the first few, saying `where` they are."""
    items = list(items)
    more = len(items) - most
    return "; ".join(items[:most]) + (f"; and {more} more{where}" if more > 0 else "")


def collapsed_text(rows: pd.DataFrame, choice: str = "last") -> str:
    """Say of which cells' runs how many collapsed at a choice's epoch; "" where none did.

    Args:
        rows: a row per run, with the columns of a cell.
        choice: the choice of an epoch.
    """
    cells = []
    for _, runs in rows.groupby(CELL, dropna=False, sort=False):
        if sick := int(collapsed(runs, choice).sum()):
            first = runs.iloc[0].to_dict()
            name = shown_cell(first)
            cells.append(f"{first['task']} {name}, {of_which(sick, len(runs), 'runs')}")
    return f" Collapsed runs, which are marked and in the means: {listed(cells)}." if cells else ""


def each_subject(rows: pd.DataFrame, say: Callable[[pd.DataFrame], str]) -> str:
    """Say something of each task and model, of the first three at most."""
    parts = [
        f"{task}, {model}: {say(part)}" for (task, model), part in rows.groupby(SUBJECT, sort=False)
    ]
    return listed(parts, 3) + "."
