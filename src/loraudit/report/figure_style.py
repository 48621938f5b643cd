"""How all figures look, and how they are saved.

Every figure is `WIDTH` inches wide with text of 7 pt or more (loraudit.mplstyle); the one of
scores over rank and parameters is `COLUMN` inches wide for each task, a column of a paper. What
colours and markers mean is in looks.py.

Every seed is a dot, and a mark is the mean of a cell. A bar is the standard deviation over seeds
(n - 1) and is drawn from `BARS_FROM` seeds on: of fewer it says less than the dots do.

Figures are drawn for a light page; a dark page turns black and white round in its own style sheet.
"""

import math
import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loraudit.analysis.cells import SUBJECT, choices_of, collapsed
from loraudit.base.files import write_atomic
from loraudit.report.looks import Look
from loraudit.report.units import axis_name
from loraudit.studies.scores import unit_of
from loraudit.studies.spec import CHOICES

EPOCHS: dict[str, str] = {choice: f"{choice} epoch" for choice in CHOICES}
"""What figures call the epoch of a score, by how it is chosen."""
STYLE = {
    key: value
    for key, value in matplotlib.rc_params_from_file(
        Path(__file__).with_name("loraudit.mplstyle")
    ).items()
    if not key.startswith("backend")
}
"""Matplotlib's defaults and our style: a matplotlibrc of the user's changes no figure."""
WIDTH = STYLE["figure.figsize"][0]
COLUMN = 3.35
"""Inches of 8.5 cm, the width of a column."""
BARS_FROM = 5
"""Seeds from which on a mean has a bar."""
SAME_SIZE = 2.0
"""Numbers of parameters within this factor are one place on an axis of decades."""
SMALL = STYLE["xtick.labelsize"]
LEGEND_ROWS, LEGEND_ROW = 3, 0.15
"""Rows of a legend that a figure has room for, and the height in inches of a further one."""
TITLE = 36
"""Characters that fit above a panel of half the width."""


def save(figure: Figure, table: pd.DataFrame, stem: Path) -> None:
    """Write <stem>.svg, <stem>.png and <stem>.csv; equal data give equal bytes on one machine."""
    save_picture(figure, stem)
    save_rows(table, stem)


def save_picture(figure: Figure, stem: Path) -> None:
    """Write <stem>.svg and <stem>.png, laid out once, and close the figure."""
    with plt.rc_context(STYLE):
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
            write_atomic(stem.with_suffix(suffix), partial(figure.savefig, metadata=metadata))
            figure.set_layout_engine("none")  # laying out again would take as long as drawing
    plt.close(figure)


def save_rows(table: pd.DataFrame, stem: Path) -> None:
    """Write the rows that a figure draws to <stem>.csv."""
    write_atomic(stem.with_suffix(".csv"), partial(table.to_csv, index=False))


def draw_means(
    axes: plt.Axes, x: pd.Series, scores: pd.Series, look: Look, label: str, joined: bool = True
) -> None:
    """Draw a cell or a line of cells: a dot per run, a mark per mean, and bars where n allows.

    Args:
        axes: the panel.
        x: the place of each run.
        scores: of each run; those that are missing are left out.
        look: how the cell is drawn.
        label: its name in the legend.
        joined: whether a line joins the means.
    """
    known = scores.notna() & x.notna()
    runs = scores[known].astype(float).groupby(x[known]).agg(["mean", "std", "count"])
    axes.scatter(x[known], scores[known], s=7, alpha=0.75, **look.dots())
    line = look.line if joined else "none"
    axes.plot(runs.index, runs["mean"], linestyle=line, label=label, **look.marks())
    many = runs[runs["count"] >= BARS_FROM]
    if len(many):
        bars = {"fmt": "none", "ecolor": look.colour, "elinewidth": 1}
        axes.errorbar(many.index, many["mean"], yerr=many["std"], **bars)


def spread_text(table: pd.DataFrame, by: list[str]) -> str:
    """Say what dots and marks are: "dots: n = 3 seeds, marks: means", and bars where there are."""
    most = table.groupby(by, dropna=False).seed.nunique().max()
    bars = f", bars: SD (n - 1) from n = {BARS_FROM} on" if most >= BARS_FROM else ""
    return f"dots: {seeds(table, by)}, marks: means{bars}"


def shown_choice(runs: pd.DataFrame) -> str:
    """Return the choice of an epoch that figures show of runs: the first that all of them made."""
    return choices_of(runs)[0]


def epoch_name(runs: pd.DataFrame, choice: str) -> str:
    """Return what figures call a choice of an epoch; runs of one epoch made none."""
    column = f"{choice}_epoch"
    one = column in runs and (runs[column] == 1).all() and (runs.get("last_epoch") == 1).all()
    return "one epoch" if one else EPOCHS[choice]


COLLAPSED = {"marker": (8, 2, 0), "s": 42, "color": "0", "linewidths": 0.7, "zorder": 4}
"""The mark of a run that collapsed to a constant answer: a black asterisk, which no series has."""


def mark_collapsed(
    axes: plt.Axes, x: pd.Series, runs: pd.DataFrame, choice: str, name: str = "collapsed run"
) -> None:
    """Mark the runs that collapsed at a choice's epoch, at `x` and their score; and the legend."""
    sick = collapsed(runs, choice)
    if sick.any():
        axes.scatter(x[sick], runs[choice][sick], **COLLAPSED, label=name)


def legend(figure: Figure, title: str | None = None, most: int = 3) -> None:
    """Put all panels' legend below a figure, in as many columns as its labels leave room.

    A figure has room for `LEGEND_ROWS`; with more it grows.
    """
    handles: dict = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    width, height = figure.get_size_inches()
    columns = next(n for n in range(most, 0, -1) if n == 1 or _fits(figure, handles, n))
    more = max(0, math.ceil(len(handles) / columns) - LEGEND_ROWS)
    figure.set_size_inches(width, height + LEGEND_ROW * more)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, title=title
    )


def _fits(figure: Figure, handles: dict, columns: int) -> bool:
    """Tell whether a legend in so many columns is no wider than its figure."""
    trial = figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns)
    wide = trial.get_window_extent(figure.canvas.get_renderer()).width
    trial.remove()
    return wide <= figure.bbox.width


def seeds(table: pd.DataFrame, by: list[str]) -> str:
    """Say how many seeds the cells of a table have: "n = 3 seeds", "n = 2 to 5 seeds"."""
    counts = table.groupby(by, dropna=False).seed.nunique()
    low, high = counts.min(), counts.max()
    span = f"{low}" if low == high else f"{low} to {high}"
    return f"n = {span} seed{'s' if high > 1 else ''}"


def nothing(reason: str) -> Figure:
    """Draw a figure that says why there is nothing to draw."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.6))
    axes.axis("off")
    axes.text(0.5, 0.5, reason, ha="center", va="center")
    return figure


def score_axis(axes: plt.Axes, name: str, metric: str) -> None:
    """Name the y axis of scores; fractions are written as percent, others in their own unit."""
    if unit_of(metric) != "points":
        axes.set_ylabel(textwrap.fill(axis_name(name, metric), TITLE))
        return
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.set_ylabel(f"{name}, %")


def decades(axes: plt.Axes, values: pd.Series, most: int = 5) -> None:
    """Make x logarithmic over whole decades, and label at most `most` of them: none overlap."""
    axes.set_xscale("log")
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    axes.set_xlim(10**low / 1.5, 1.5 * 10 ** max(high, low + 1))  # none on the edge
    axes.xaxis.set_major_locator(LogLocator(numticks=most))
    axes.xaxis.set_minor_formatter(NullFormatter())


MOST_AT_ONE = 0.75
"""The share of cells that may be at one of two places of an axis that is worth drawing."""


def spread_out(values: pd.Series, factor: float = 1.0) -> bool:
    """Tell whether cells lie apart on an axis: at three places, or at two with enough at each.

    Args:
        values: a value per cell, above 0; those that are missing are left out.
        factor: values within it of the smallest of a place are one place.
    """
    places: list[list[float]] = []
    for value in sorted(values.dropna()):
        if not places or value > factor * places[-1][0]:
            places.append([])
        places[-1].append(value)
    sizes = list(map(len, places))
    return len(sizes) > 2 or (len(sizes) == 2 and max(sizes) <= MOST_AT_ONE * sum(sizes))


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Number names by their first appearance: a name's look is the same in every panel."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def subjects(table: pd.DataFrame) -> list[tuple]:
    """Split a table by task and model."""
    return list(table.groupby(SUBJECT, sort=False))
