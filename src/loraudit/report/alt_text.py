"""What the sentences that describe figures share.

Each figure's sentence stands beside its drawing code; readers who do not see the figure hear it as
the `alt` of the report's image.
"""

from collections.abc import Callable, Iterable

import pandas as pd

from loraudit.analysis.cells import SUBJECT

MOST = 8
"""Items that a sentence lists; it counts the others."""


def listed(items: Iterable[str], most: int = MOST) -> str:
    """Join items, and count those beyond the first few."""
    items = list(items)
    more = len(items) - most
    return "; ".join(items[:most]) + (f"; and {more} more in the CSV" if more > 0 else "")


def each_subject(rows: pd.DataFrame, say: Callable[[pd.DataFrame], str]) -> str:
    """Say something of each task and model, of the first three at most."""
    parts = [
        f"{task}, {model}: {say(part)}" for (task, model), part in rows.groupby(SUBJECT, sort=False)
    ]
    return listed(parts, 3) + "."
