"""The figure of tuning: the score on the selection rows over the learning rate that was tried."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from loraudit.analysis.cells import CELL, SUBJECT, cell_name, label_text
from loraudit.analysis.cost import without_twins
from loraudit.report import units
from loraudit.report.alt_text import collapsed_text, each_subject, listed
from loraudit.report.figure_style import (
    STYLE,
    TITLE,
    WIDTH,
    legend,
    mark_collapsed,
    score_axis,
    seeds,
    subjects,
)
from loraudit.report.formatting import label_words, shown_cell, shown_name, shown_set, values_text
from loraudit.report.looks import Look, cell_looks

CURVE = ["method", "rank", "targets", "label", "other"]
"""Columns of a curve: a cell, and the other values that were tried with the learning rates."""
Panel = tuple[str, pd.DataFrame, bool]
"""A panel's title, its trials, and whether it names its curves inside."""


def tuning_rows(tuning: pd.DataFrame) -> pd.DataFrame:
    """Select what the figure draws: the trials of all cells but PEFT's twins, which share ours.

    Cells whose learning rate is given, and that choose something else, are left to the table where
    others choose a rate.
    """
    ours = without_twins(tuning)
    rates = ours.groupby(CELL, dropna=False).learning_rate.transform("nunique")
    ours = ours[rates > 1] if (rates > 1).any() else ours
    others = [values_text(values, without="learning_rate") for values in ours["values"]]
    return ours.assign(other=others)


def tuning(table: pd.DataFrame) -> Figure:
    """Draw the score over the learning rate: a curve of means per cell, a dot per seed.

    A task and model with more than `MOST_CURVES` has a panel for each method and target set. A ring
    marks the chosen rate of each cell, a cross in it one at the edge of what was tried. Runs that
    collapsed have an asterisk. A rate at which a run diverged has no mean, and a mark on the axis.
    """
    looks = _looks(table)
    panels = _named_inside([panel for _, part in subjects(table) for panel in _panels(part)])
    split = len(panels) > table.groupby(SUBJECT).ngroups
    across = 2 if split else 1
    down = -(-len(panels) // across)
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.6 + (2.0 if split else 2.3) * down)
        shared = split and len({units.metric_of(part) for _, part, _ in panels}) == 1
        figure, grid = plt.subplots(down, across, figsize=size, squeeze=False, sharey=shared)
        for unused in grid.flat[len(panels) :]:
            unused.set_axis_off()
        for axes, (title, part, own) in zip(grid.flat, panels, strict=False):
            _panel(axes, part, looks, own)
            axes.set_title(textwrap.fill(title, 2 * TITLE // across), loc="left")
            if axes in grid[:, 0] or not shared:
                score_axis(axes, "score on selection rows", units.metric_of(part))
        last = grid[-1, 0]
        last.scatter([], [], **RING, label="chosen")
        if _diverged(table).any():
            last.scatter([], [], **DOWN, color="0.1", label="diverged (counts as worst)")
        if any(map(label_text, table.at_edge)):
            last.scatter([], [], **CROSS, label="at the edge of what was tried")
        legend(figure, f"curves: means over {seeds(table, [*SUBJECT, *CURVE])}")
    return figure


MOST_CURVES = 12
"""Curves that one panel can show."""


FEW, SHORT = 8, 6
"""The most curves that a panel can name inside of itself, and the characters of a name there."""


def _named_inside(panels: list[Panel]) -> list[Panel]:
    """Name the curves in one legend below the figure, where a panel has not room for all of its."""

    def fits(part: pd.DataFrame) -> bool:
        curves = part.drop_duplicates(CURVE).to_dict("records")
        return len(curves) <= FEW and all(len(_inside(curve)) <= SHORT for curve in curves)

    if all(fits(part) for _, part, own in panels if own):
        return panels
    return [(title, part, False) for title, part, _ in panels]


def _inside(curve: dict) -> str:
    """Name a curve within the panel of its method and target set: by rank and label."""
    if curve["rank"] != curve["rank"]:
        return ""  # has a name of its own, and few beside it
    rest = ", ".join(filter(None, [label_text(curve["label"]), label_text(curve["other"])]))
    return label_words(f"r{curve['rank']:g} {rest}").strip()


def _panels(part: pd.DataFrame) -> list[Panel]:
    """Split a task and model's trials into panels: title, rows, and whether it has its own legend.

    What trains no adapter shares the last panel.
    """
    first = part.iloc[0]
    where = f"{first.task}, {first.model}"
    if part.groupby(CURVE, dropna=False).ngroups <= MOST_CURVES:
        return [(where, part, False)]
    adapters = part[part["rank"].notna()]
    panels = [
        (f"{where}: {shown_set(method, targets)}", rows, True)
        for (method, targets), rows in adapters.groupby(["method", "targets"], sort=False)
    ]
    others = part[part["rank"].isna()]
    return [*panels, (f"{where}: no adapter", others, True)] if len(others) else panels


def _panel(axes: plt.Axes, part: pd.DataFrame, looks: dict[str, Look], own: bool) -> None:
    """Draw one panel's curves; in a legend of its own it names them without method and targets."""
    shown = []
    part = part.sort_values("rank", kind="stable") if own else part
    for _, curve in part.groupby(CURVE, dropna=False, sort=False):
        line = _curve(axes, curve, looks)
        shown.append((line, _inside(curve.iloc[0].to_dict()) or line.get_label()))
    if own:
        lines, names = zip(*shown, strict=True)
        axes.legend(lines, names, loc="lower left", ncols=2 if len(names) > 3 else 1)
        for line in lines:
            line.set_label("_nolegend_")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")


RING = {"s": 55, "facecolors": "none", "edgecolors": "0.1", "linewidths": 1, "zorder": 3}
DOWN = {"marker": 7, "s": 30, "linewidths": 0, "zorder": 3, "clip_on": False}
CROSS = {"s": 30, "marker": "x", "color": "0.1", "linewidths": 0.8, "zorder": 3}


def _looks(table: pd.DataFrame) -> dict[str, Look]:
    """Return the look of each curve: other values that were tried count as a label."""
    curves = table.drop_duplicates([*SUBJECT, *CURVE]).to_dict("records")
    named = [
        {**curve, "label": " ".join(map(label_text, (curve["label"], curve["other"]))).strip()}
        for curve in curves
    ]
    looks = cell_looks(named)
    both = zip(curves, named, strict=True)
    return {_name(curve): looks[cell_name(other)] for curve, other in both}


def _curve(axes: plt.Axes, curve: pd.DataFrame, looks: dict[str, Look]) -> Line2D:
    """Draw one cell's curve, and return its line of means."""
    first = curve.iloc[0]
    name = _name(first.to_dict())
    look = looks[name]
    means = _means(curve)
    sick = curve[_diverged(curve)].drop_duplicates("learning_rate")
    at = {"transform": axes.get_xaxis_transform(), "color": "0.1"}
    axes.scatter(sick.learning_rate, [0.02] * len(sick), **DOWN, **at)
    marked = curve.assign(score_collapsed=curve.get("collapsed", False))
    mark_collapsed(axes, curve.learning_rate, marked, "score")
    axes.scatter(curve.learning_rate, curve.score, s=7, alpha=0.75, **look.dots())
    drawn = {"linestyle": look.line, "label": shown_name(name), **look.marks()}
    (line,) = axes.plot(means.index, means, **drawn)
    chosen = curve[curve.chosen]
    if len(chosen):
        at = chosen.learning_rate.iloc[0]
        axes.scatter([at], [means[at]], **RING)
        if "learning_rate" in label_text(chosen.at_edge.iloc[0]):
            axes.scatter([at], [means[at]], **CROSS)
    return line


def _diverged(table: pd.DataFrame) -> pd.Series:
    """Tell of each trial whether it diverged."""
    return table.get("diverged", pd.Series(False, table.index)).astype(bool)


def _means(curve: pd.DataFrame) -> pd.Series:
    """Return the mean score at each learning rate, NaN where a run has none."""
    return curve.groupby("learning_rate").score.agg(lambda scores: scores.mean(skipna=False))


def _name(row: dict) -> str:
    """Name a curve: its cell, and the other values if there are any."""
    return ", ".join(filter(None, [cell_name(row), label_text(row["other"])]))


def describe_tuning(rows: pd.DataFrame) -> str:
    """Say which learning rate each cell takes, its score, and whether it is at the edge."""

    def say(part: pd.DataFrame) -> str:
        cells = []
        for _, cell in part[part.chosen].groupby(CELL[len(SUBJECT) :], dropna=False, sort=False):
            first = cell.iloc[0]
            edge = ", at the edge of what was tried" if label_text(first.at_edge) else ""
            rate, mean = first.learning_rate, cell.score.mean()
            score = units.with_unit(units.metric_of(cell), mean)
            cells.append(f"{shown_name(_name(first.to_dict()))} {rate:g} ({score}{edge})")
        return listed(cells, 8)

    text = "Chosen learning rates, with their mean score on the selection rows."
    sick = collapsed_text(rows.assign(last_collapsed=rows.get("collapsed", False)))
    lost = []
    for _, part in rows[_diverged(rows)].groupby(CELL, dropna=False, sort=False):
        rates = ", ".join(f"{rate:g}" for rate in part.learning_rate.unique())
        lost.append(f"{shown_cell(part.iloc[0].to_dict())} at {rates}")
    also = f" Diverged, which counts as the worst: {listed(lost)}." if lost else ""
    return f"{text} {each_subject(rows, say)}{sick}{also}"
