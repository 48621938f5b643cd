"""The figure of learning curves: loss and score over epochs."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraudit.analysis.cells import CELL, SUBJECT, cell_name
from loraudit.report.alt_text import collapsed_text, each_subject, listed
from loraudit.report.figure_style import (
    STYLE,
    TITLE,
    WIDTH,
    legend,
    line_of,
    look,
    mark_collapsed,
    numbered,
    percent_axis,
    seeds,
    subjects,
)


def learning_curves(history: pd.DataFrame) -> Figure:
    """Draw training loss (left) and score (right) over epochs: a mean line per cell.

    Bands reach from the lowest to the highest seed. Epochs that were not scored have no point.
    PEFT's lines are dashed, so that a twin that
    agrees lies on ours. Runs that collapsed are marked at the epochs at which that is known.
    """
    history = history.assign(split=_splits(history))
    groups = subjects(history)
    names = pd.Series([cell_name(cell) for cell in history.to_dict("records")], history.index)
    mixed = history.groupby(SUBJECT).split.transform("nunique") > 1
    names = names.where(~mixed, names + " (" + history.split + " rows)")
    looks = numbered(names.str.replace("peft", "lora"))  # twins share a colour
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.6 + 1.8 * len(groups))
        figure, grid = plt.subplots(len(groups), 2, figsize=size, squeeze=False, sharex="row")
        for row, ((task, model), runs) in zip(grid, groups, strict=True):
            for name, part in runs.groupby(names[runs.index], sort=False):
                series = look(looks[name.replace("peft", "lora")])
                dash = line_of(part.method.iloc[0])
                for axes, column in zip(row, ("train_loss", "score"), strict=True):
                    span = part.groupby("epoch")[column].agg(["mean", "min", "max"])
                    axes.plot(span.index, span["mean"], linestyle=dash, label=name, **series)
                    axes.fill_between(
                        span.index, span["min"], span["max"], color=series["color"], alpha=0.12
                    )
            sick = runs.assign(score_collapsed=runs.get("collapsed", False))
            mark_collapsed(row[1], runs.epoch, sick, "score")
            row[0].set_title(textwrap.fill(f"{task}, {model}", TITLE))
            row[0].set_ylabel("training loss")
            splits = runs.split.unique()
            percent_axis(row[1], f"{splits[0]} score" if len(splits) == 1 else "score")
            for axes in row:
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, f"bands: lowest to highest of {seeds(history, CELL)}")
    return figure


def _splits(history: pd.DataFrame) -> pd.Series:
    """Return the rows that each score is of."""
    return history.get("split", pd.Series("validation", history.index))


def describe_learning_curves(rows: pd.DataFrame) -> str:
    """Say each cell's score at the first and the last epoch that have one."""

    def say(part: pd.DataFrame) -> str:
        cells = []
        for _, line in part.groupby(CELL[len(SUBJECT) :], dropna=False, sort=False):
            scored = line.groupby("epoch").score.mean().dropna()
            ends = [f"{100 * mean:.1f}" for mean in (*scored[:1], *scored[1:][-1:])]
            cells.append(f"{cell_name(line.iloc[0].to_dict())} {' to '.join(ends) or 'undefined'}")
        return listed(cells, 6)

    splits = " or ".join(_splits(rows).unique())
    text = f"Score on {splits} rows in percent, first to last epoch scored, mean of seeds."
    last = rows[rows.epoch == rows.groupby(CELL, dropna=False).epoch.transform("max")]
    sick = collapsed_text(last.assign(last_collapsed=last.get("collapsed", False)))
    return f"{text} {each_subject(rows, say)}{sick}"
