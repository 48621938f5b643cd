"""How much one figure can show: the tables of a large study are thinned, and the figure says so."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from loraudit.report.figures import SMALL

SUBJECT = ["task", "model"]
MOST_SUBJECTS = 12
MOST = {
    "score_vs_rank": ("series", ["targets", "label"], 12),
    "score_vs_parameters": ("series", ["targets", "label"], 12),
    "score_vs_bits": ("cells", ["method", "rank", "targets", "label"], 24),
    "score_vs_rows": ("series", ["rank", "targets"], 12),
    "learning_curves": ("cells", ["rank", "targets", "label"], 12),
    "cost": ("cells", ["method", "rank", "targets", "label"], 40),
    "pareto": ("cells", ["method", "rank", "targets", "label"], 40),
    "verdicts": ("cells", ["method", "rank", "targets", "label"], 40),
}
"""By figure: what it draws per task and model, the columns that make one, and the most of them.

Where the method is not among the columns, twins (ours and PEFT's) stay together.
"""


def few(figure: str, table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keep what a figure can show, taken evenly in the study's order.

    Published numbers and comparisons that are not drawn ("not comparable") are kept as they are.

    Args:
        figure: its name; one that `MOST` does not name keeps all.
        table: the rows that it draws.

    Returns:
        The rows kept, in their order, and a sentence for the figure; "" where all are kept.
    """
    if figure not in MOST or table.empty:
        return table, ""
    unit, columns, most = MOST[figure]
    subject = _number(table, SUBJECT)
    kept = subject.isin(_evenly(subject.unique(), MOST_SUBJECTS))
    counted = table.method != "published"
    if "verdict" in table:
        counted &= table.verdict != "not comparable"
    shown = total = 0
    for _, part in table[counted].groupby(subject, sort=False):
        keys = _number(part, columns)
        chosen = _evenly(keys.unique(), most)
        kept[keys.index[~keys.isin(chosen)]] = False
        total += keys.nunique()
        shown += keys[kept[keys.index]].nunique()
    if shown == total:
        return table, ""
    what = f"{shown:,} of {total:,} {unit} are drawn, taken evenly in the study's order"
    return table[kept].reset_index(drop=True), f"{what}; the tables have all"


def _number(table: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Number the groups of a table in order of appearance, a number per row."""
    return table.groupby(columns, dropna=False, sort=False).ngroup()


def _evenly(values: np.ndarray, most: int) -> np.ndarray:
    """Take `most` of the values, the first and the last among them; all if they are no more."""
    places = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return values[places]


def say(figure: Figure, note: str) -> None:
    """Write a note above a figure; nothing if it is empty."""
    if note:
        figure.suptitle(note, fontsize=SMALL, style="italic")
