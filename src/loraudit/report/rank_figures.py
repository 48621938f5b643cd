"""Figures of moving ranks and quantised bases: which rank is where and when, score over bits."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraudit.analysis.comparisons import cell_name, text
from loraudit.report.figures import (
    CELL,
    STYLE,
    WIDTH,
    legend,
    look,
    percent_axis,
    seeds,
    subjects,
)
from loraudit.studies.entries import MATRICES

MOST_CELLS = 6
"""Panels of the rank map; the table has all cells."""
FULL = "32"
"""The name of a base that is not quantised, on the axis of bits."""


def rank_rows(ranks: pd.DataFrame) -> pd.DataFrame:
    """Average the rank in use over seeds: a row per cell, matrix, layer and step of any change.

    Args:
        ranks: `collect.ranks`: a row per run, layer and step at which the run's ranks moved; rows
            of the last step close each run.

    Returns:
        The cells' columns, matrix, layer, step, in_use (mean over seeds) and seeds (their number),
        of the first `MOST_CELLS` cells.
    """
    found = []
    for _, cell in list(ranks.groupby(CELL, dropna=False, sort=False))[:MOST_CELLS]:
        steps = sorted(cell.step.unique())
        wide = [
            run.pivot(index="step", columns=["matrix", "layer"], values="in_use")
            .reindex(steps)
            .ffill()
            for _, run in cell.groupby("run")
        ]
        mean = sum(wide[1:], wide[0]) / len(wide)
        rows = mean.stack(["matrix", "layer"], future_stack=True).rename("in_use").reset_index()
        first = cell.iloc[0]
        found.append(rows.assign(**{key: first[key] for key in CELL}, seeds=len(wide)))
    return pd.concat(found, ignore_index=True) if found else ranks


def ranks(table: pd.DataFrame) -> Figure:
    """Draw the rank in use over steps as a map: a panel per cell, a line per matrix and layer."""
    cells = list(table.groupby(CELL, dropna=False, sort=False))
    norm = PowerNorm(0.5, 0, table.in_use.max())  # small ranks differ in colour, too
    rows = -(-len(cells) // 2)
    with plt.rc_context(STYLE):
        lines = table.groupby(["matrix", "layer"]).ngroups
        size = (WIDTH, 0.6 + rows * (0.6 + 0.055 * max(lines, 12)))
        figure, grid = plt.subplots(rows, min(2, len(cells)), figsize=size, squeeze=False)
        for axes in grid.flat[len(cells) :]:
            axes.axis("off")
        for axes, (_, part) in zip(grid.flat, cells, strict=False):
            image = _rank_map(axes, part, norm)
        for axes in grid[:, 0]:
            axes.set_ylabel("matrix, layers downwards")
        shown = table.seeds.drop_duplicates().tolist()
        count = f"mean of {min(shown)}" + (f" to {max(shown)}" if len(shown) > 1 else "")
        figure.colorbar(image, ax=grid, label=f"rank in use ({count} seeds)", shrink=0.6)
    return figure


def _rank_map(axes: plt.Axes, part: pd.DataFrame, norm: Normalize):
    """Draw one cell's map; steps run to the right, matrices and layers downwards."""
    matrices = [name for name in MATRICES if name in set(part.matrix)]
    wide = part.pivot(index=["matrix", "layer"], columns="step", values="in_use")
    wide = wide.sort_index(key=lambda i: i.map(MATRICES.index) if i.name == "matrix" else i)
    steps = wide.columns.to_numpy(dtype=float)
    image = axes.pcolormesh(steps, np.arange(len(wide) + 1), wide.to_numpy()[:, :-1], norm=norm)
    counts = [int((wide.index.get_level_values("matrix") == name).sum()) for name in matrices]
    ends = np.cumsum(counts)
    for end in ends[:-1]:
        axes.axhline(end, color="white", linewidth=1)
    axes.set_yticks(ends - np.array(counts) / 2, matrices)
    axes.tick_params(left=False)
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("optimizer step")
    cell = part.iloc[0]
    axes.set_title(f"{cell['task']}, {cell['model']}\n{cell_name(cell.to_dict())}", loc="left")
    return image


def bits_rows(tidy: pd.DataFrame) -> pd.DataFrame:
    """Select what `score_vs_bits` draws: the runs, each with the name of its line.

    A line is a cell of the study with the bits left out of its name.
    """
    columns = [*CELL, "run", "seed", "metric", "base_bits", "best", "last"]
    rows = tidy[columns].copy()
    bare = [re.sub(r"base_bits(None|\d+)-?", "", text(label)).strip("-") for label in rows.label]
    cells = rows.assign(label=bare).to_dict("records")
    return rows.assign(line=[cell_name(cell) for cell in cells])


def score_vs_bits(table: pd.DataFrame) -> Figure:
    """Draw the last epoch's score over the bits of the frozen base: a line of means per cell.

    Dots are seeds, bars the standard deviation over seeds (n - 1). Lines with one base have a
    marker alone.
    """
    bits = sorted(table.base_bits.dropna().unique())
    names = [f"{value:g}" for value in bits] + ([FULL] if table.base_bits.isna().any() else [])
    place = {name: number for number, name in enumerate(names)}
    table = table.assign(
        place=[place[FULL if value != value else f"{value:g}"] for value in table.base_bits]
    )
    looks = {name: number for number, name in enumerate(table.line.unique())}
    groups = subjects(table)
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.9 + 2.2 * len(groups))
        figure, grid = plt.subplots(len(groups), 1, figsize=size, squeeze=False)
        for (axes,), ((task, model), part) in zip(grid, groups, strict=True):
            for name, line in part.groupby("line", sort=False):
                _bits_line(axes, line, name, looks[name], len(looks))
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
            axes.set_xlabel("bits of a frozen weight")
            axes.set_title(f"{task}, {model}", loc="left")
            percent_axis(axes, f"last-epoch {part.metric.iloc[0]}")
        legend(figure, f"bars: SD over {seeds(table, CELL)}", most=2)
    return figure


def _bits_line(axes: plt.Axes, line: pd.DataFrame, name: str, number: int, lines: int) -> None:
    """Draw one line, moved a little sideways so that bars do not hide each other."""
    shift = min(0.12, 0.6 / lines) * (number - (lines - 1) / 2)
    found = line.groupby("place")["last"].agg(["mean", "std"])
    series = look(number)
    axes.scatter(line.place + shift, line["last"], s=5, alpha=0.5, linewidths=0, **series)
    error = found["std"].fillna(0)
    axes.errorbar(found.index + shift, found["mean"], yerr=error, label=name, **series)
