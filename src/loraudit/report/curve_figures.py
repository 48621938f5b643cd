"""The figure of learning curves: loss and score over epochs."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraudit.analysis.cells import CELL, SUBJECT, cell_name
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
from loraudit.report.formatting import shown_cell, shown_name
from loraudit.report.looks import Look, cell_looks

FEWEST = 4
"""Epochs from which on scores over epochs are a curve."""


def no_curves(history: pd.DataFrame) -> str:
    """Say why there are no learning curves; "" where a cell has enough epochs with a score."""
    cells = history[history.score.notna()].groupby(CELL, dropna=False)
    epochs = int(cells.epoch.nunique().max()) if cells.ngroups else 0
    if epochs >= FEWEST:
        return ""
    return f"{epochs} scored epochs make no curve" if epochs > 1 else "one scored epoch is no curve"


def learning_curves(history: pd.DataFrame) -> Figure:
    """Draw training loss (left) and score (right) over epochs: a mean line per cell.

    Thin lines are seeds. Epochs that were not scored have no point. PEFT's lines are dashed, so
    that a twin that agrees lies on ours. Runs that collapsed are marked at the epochs at which that
    is known.
    """
    history = history.assign(split=_splits(history))
    mixed = history.groupby(SUBJECT).split.transform("nunique") > 1
    names = pd.Series([cell_name(cell) for cell in history.to_dict("records")], history.index)
    history = history.assign(name=names)
    groups = subjects(history)
    looks = cell_looks(history.drop_duplicates("name").to_dict("records"))
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.6 + 1.8 * len(groups))
        figure, grid = plt.subplots(len(groups), 2, figsize=size, squeeze=False, sharex="row")
        for row, ((task, model), runs) in zip(grid, groups, strict=True):
            for (name, split), part in runs.groupby(["name", "split"], sort=False):
                shown = shown_name(name)
                label = f"{shown} ({split} rows)" if mixed[part.index[0]] else shown
                for axes, column in zip(row, ("train_loss", "score"), strict=True):
                    _curve(axes, part, column, looks[name], label)
            sick = runs.assign(score_collapsed=runs.get("collapsed", False))
            mark_collapsed(row[1], runs.epoch, sick, "score")
            row[0].set_title(textwrap.fill(f"{task}, {model}", TITLE), loc="left")
            row[0].set_ylabel("training loss")
            splits = runs.split.unique()
            name = f"{splits[0]} score" if len(splits) == 1 else "score"
            score_axis(row[1], name, units.metric_of(runs))
            for axes in row:
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, f"thin lines: {seeds(history, CELL)}, lines with marks: means")
    return figure


def _curve(axes: plt.Axes, part: pd.DataFrame, column: str, look: Look, label: str) -> None:
    """Draw one cell's loss or score: a thin line per seed, and the line of means.

    Where a seed has one value it is a dot.
    """
    for _, run in part.groupby("seed"):
        axes.plot(run.epoch, run[column], color=look.colour, linewidth=0.5, alpha=0.5)
        if run[column].notna().sum() == 1:
            axes.scatter(run.epoch, run[column], s=7, alpha=0.75, **look.dots())
    means = part.groupby("epoch")[column].mean()
    axes.plot(means.index, means, linestyle=look.line, label=label, **look.marks())


def _splits(history: pd.DataFrame) -> pd.Series:
    """Return the rows that each score is of."""
    return history.get("split", pd.Series("validation", history.index))


def describe_learning_curves(rows: pd.DataFrame) -> str:
    """Say each cell's score at the first and the last epoch that have one."""

    def say(part: pd.DataFrame) -> str:
        cells = []
        for _, line in part.groupby(CELL[len(SUBJECT) :], dropna=False, sort=False):
            scored = line.groupby("epoch").score.mean().dropna()
            metric = units.metric_of(line)
            ends = [units.score(metric, mean) for mean in (*scored[:1], *scored[1:][-1:])]
            name = shown_cell(line.iloc[0].to_dict())
            cells.append(f"{name} {' to '.join(ends) or 'undefined'}")
        return listed(cells, 6)

    splits = " or ".join(_splits(rows).unique())
    text = f"Score on {splits} rows in percent, first to last epoch scored, mean of seeds."
    last = rows[rows.epoch == rows.groupby(CELL, dropna=False).epoch.transform("max")]
    sick = collapsed_text(last.assign(last_collapsed=last.get("collapsed", False)))
    return f"{text} {each_subject(rows, say)}{sick}"
