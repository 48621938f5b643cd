"""The tables of a large study are thinned to what a figure can show, and the figure says so."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from loraudit.analysis.cells import SUBJECT
from loraudit.report.figure_registry import Limit
from loraudit.report.figure_style import SMALL

MOST_SUBJECTS = 12
"""Tasks and models, together, that a figure with a limit shows."""


NOTE_ROOM = 18
"""Characters of a note for each inch of a figure's width."""


def thinned(table: pd.DataFrame, limit: Limit | None) -> tuple[pd.DataFrame, str]:
    """Keep what a figure can show, taken evenly in the study's order.

    Published numbers and comparisons that are not drawn ("not comparable") are kept as they are.

    Args:
        table: the rows to draw.
        limit: how much the figure can show; None keeps all.

    Returns:
        The rows kept, in their order, and a sentence for the figure; "" where all are kept.
    """
    if limit is None or table.empty:
        return table, ""
    subject = _number(table, SUBJECT)
    kept = subject.isin(_evenly(subject.unique(), MOST_SUBJECTS))
    counted = table.method != "published"
    if "verdict" in table:
        counted &= table.verdict != "not comparable"
    drawn = total = 0
    for _, part in table[counted].groupby(subject, sort=False):
        units = _number(part, list(limit.columns))
        chosen = _evenly(units.unique(), limit.most)
        kept[units.index[~units.isin(chosen)]] = False
        total += units.nunique()
        drawn += units[kept[units.index]].nunique()
    if drawn == total:
        return table, ""
    return table[kept].reset_index(drop=True), note_of(drawn, total, limit.unit)


def note_of(drawn: int, total: int, unit: str) -> str:
    """Say of how many cells, or whatever the unit is, a figure draws some."""
    what = f"{drawn:,} of {total:,} {unit} are drawn, taken evenly in the study's order"
    return f"{what}; the tables have all"


def _number(table: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Number the groups of a table in order of appearance, a number per row."""
    return table.groupby(columns, dropna=False, sort=False).ngroup()


def _evenly(values: np.ndarray, most: int) -> np.ndarray:
    """Take `most` of the values, the first and the last among them; all if they are no more."""
    places = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return values[places]


def write_note(figure: Figure, note: str) -> None:
    """Write a note above a figure, in as many lines as it needs; nothing if it is empty."""
    if note:
        room = int(NOTE_ROOM * figure.get_figwidth())
        figure.suptitle(textwrap.fill(note, room), fontsize=SMALL, style="italic")
