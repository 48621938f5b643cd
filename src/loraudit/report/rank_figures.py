"""The figure of moving ranks: which rank is in use where and when."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraudit.analysis.cells import CELL, SUBJECT
from loraudit.report.alt_text import each_subject, listed
from loraudit.report.figure_style import STYLE, WIDTH
from loraudit.report.formatting import shown_cell
from loraudit.studies.entries import MATRICES

MOST_CELLS = 6
"""Panels of the rank map; the table has all cells."""


def rank_rows(ranks: pd.DataFrame) -> pd.DataFrame:
    """Average the rank in use over seeds: a row per cell, matrix, layer and step of any change.

    Args:
        ranks: `collect.ranks`: a row per run, layer and step at which the run's ranks moved; rows
            of the last step close each run.

    Returns:
        The cells' columns, matrix, layer, step, in_use (mean over seeds) and seeds (their number),
        of the first `MOST_CELLS` cells.
    """
    tables = []
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
        tables.append(rows.assign(**{key: first[key] for key in CELL}, seeds=len(wide)))
    return pd.concat(tables, ignore_index=True) if tables else ranks


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
        counts = table.seeds.drop_duplicates().tolist()
        count = f"mean of {min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "")
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
    axes.set_title(f"{cell['task']}, {cell['model']}\n{shown_cell(cell.to_dict())}", loc="left")
    return image


def describe_ranks(rows: pd.DataFrame) -> str:
    """Say each cell's mean rank per matrix after the last step."""

    def say(part: pd.DataFrame) -> str:
        cells = []
        for _, cell in part.groupby(CELL[len(SUBJECT) :], dropna=False, sort=False):
            means = cell[cell.step == cell.step.max()].groupby("matrix").in_use.mean()
            ends = ", ".join(f"{matrix} {mean:.1f}" for matrix, mean in means.items())
            cells.append(f"{shown_cell(cell.iloc[0].to_dict())} {ends}")
        return listed(cells, 6)

    return f"Mean rank per matrix after the last step. {each_subject(rows, say)}"
