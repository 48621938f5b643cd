"""Figures of section 7: what the updates of saved adapters look like."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraudit.report.figures import COLOURS, MARKERS, SMALL, STYLE, WIDTH, legend, nothing
from loraudit.studies.entries import MATRICES

SUBJECT = ["task", "model"]
CELL = ["rank", "targets", "label"]
MOST_SUBJECTS = 4
"""Tasks and models with a row of panels in section 7's figures; the tables have all."""
MOST_TICKS = 4
"""Labelled ticks along a side of a map."""
PROJECTIONS = {
    "update_norm": ("‖ΔW‖", COLOURS[6], "o"),
    "projected_weight": ("‖UᵀWV‖, U and V of W", COLOURS[1], "s"),
    "projected_update": ("‖UᵀWV‖, U and V of ΔW", COLOURS[0], "^"),
    "projected_random": ("‖UᵀWV‖, U and V random", "0.6", "D"),
}
"""Table 7's norms, each with its name, colour and marker."""


def _widest(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Keep, for each of the first tasks and models, the target set of most matrices.

    Of several with as many, the first label is kept and, where the table has them, the largest
    rank of it.
    """
    kept = []
    for _, part in list(table.groupby(SUBJECT, sort=False))[:most]:
        cells = [cell for _, cell in part.groupby(["targets", "label"], sort=False)]
        cell = max(cells, key=lambda rows: rows.matrix.nunique())
        kept.append(cell[cell["rank"] == cell["rank"].max()] if "rank" in cell else cell)
    return pd.concat(kept)


def _matrices(table: pd.DataFrame) -> list[str]:
    return [name for name in MATRICES if name in set(table.matrix)]


def _cell_title(cell: dict) -> str:
    """Name a cell by rank, targets and label."""
    return " ".join(filter(None, [f"r={cell['rank']:g}", cell["targets"], cell["label"]]))


def _matrix_panels(table: pd.DataFrame, x: str, y: str) -> tuple[Figure, list]:
    """Make a row of panels per task and model, a column per matrix, with labelled axes.

    Returns the figure and a list of (axes, rows of the panel).
    """
    subjects = list(table.groupby(SUBJECT, sort=False))
    matrices = _matrices(table)
    figure, grid = plt.subplots(
        len(subjects),
        len(matrices),
        figsize=(WIDTH, 0.6 + 1.5 * len(subjects)),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    panels = []
    for row, (subject, part) in zip(grid, subjects, strict=True):
        for axes, matrix in zip(row, matrices, strict=True):
            panels.append((axes, part[part.matrix == matrix]))
            axes.set_title(matrix, loc="left")
        cells = part[CELL].drop_duplicates().to_dict("records")
        shown = [*subject, *([_cell_title(cells[0])] if len(cells) == 1 else [])]
        row[0].set_title(f"{', '.join(shown)}\n{matrices[0]}", loc="left")
        row[0].set_ylabel(y)
    for axes in grid[-1]:
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure, panels


def spectra_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `spectra` draws: one cell per task and model (`_widest`), its first run."""
    rows = _widest(table, MOST_SUBJECTS)
    runs = rows.drop_duplicates(SUBJECT).run
    return rows[rows.run.isin(runs)]


def stable_rank_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `stable_rank` draws: without rank 1 where there are others (it is always 1)."""
    table = table[table["rank"] > 1] if (table["rank"] > 1).any() else table
    shown = table.merge(table[SUBJECT].drop_duplicates()[:MOST_SUBJECTS])
    return shown[[*SUBJECT, *CELL, "run", "layer", "matrix", "stable_rank"]]


def amplification_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `amplification` draws: one cell per task and model (`_widest`)."""
    return _widest(table, MOST_SUBJECTS)


def spectra(table: pd.DataFrame) -> Figure:
    """Draw the singular values of Delta W over their index: a line per layer, matrices apart."""
    with plt.rc_context(STYLE):
        rows = spectra_rows(table)
        figure, panels = _matrix_panels(rows, "index", "singular value of ΔW")
        colours = ScalarMappable(Normalize(rows.layer.min(), rows.layer.max()), "viridis")
        for axes, part in panels:
            for layer, values in part.groupby("layer"):
                look = {"color": colours.to_rgba(layer), "marker": "o", "markersize": 2}
                axes.plot(values["index"], values.singular_value, **look)
            axes.set_yscale("log")
        ticks = MaxNLocator(integer=True)
        figure.colorbar(colours, ax=[axes for axes, _ in panels], label="layer", ticks=ticks)
    return figure


def stable_rank(table: pd.DataFrame) -> Figure:
    """Draw the stable rank of Delta W over the layer: a line of means per cell, a dot per seed.

    The first cells have a colour each; the others are in the table only.
    """
    shown = stable_rank_rows(table)
    cells = shown[CELL].drop_duplicates().to_dict("records")
    with plt.rc_context(STYLE):
        figure, panels = _matrix_panels(shown, "layer", "stable rank of ΔW")
        for axes, part in panels:
            for cell, colour, marker in zip(cells, COLOURS, MARKERS, strict=False):
                rows = part[(part[CELL] == pd.Series(cell)).all(axis=1)]
                look = {"color": colour, "marker": marker}
                axes.scatter(rows.layer, rows.stable_rank, s=5, alpha=0.4, linewidths=0, **look)
                means = rows.groupby("layer").stable_rank.mean()
                axes.plot(means.index, means, markersize=3, label=_cell_title(cell), **look)
        hidden = len(cells) - len(COLOURS)
        title = f"{hidden} further cells are in the table" if hidden > 0 else None
        legend(figure, title)
    return figure


def amplification(table: pd.DataFrame) -> Figure:
    """Draw Table 7's norms over the layer, means over seeds, log axis.

    The gap between ||Delta W|| and ||U^T W V|| with U and V of Delta W is the amplification
    factor. One cell per task and model (`_widest`).
    """
    with plt.rc_context(STYLE):
        rows = amplification_rows(table)
        figure, panels = _matrix_panels(rows, "layer", "Frobenius norm")
        for axes, part in panels:
            means = part.groupby("layer")[list(PROJECTIONS)].mean()
            for name, (label, colour, marker) in PROJECTIONS.items():
                look = {"color": colour, "marker": marker, "markersize": 3}
                axes.plot(means.index, means[name], label=label, **look)
            axes.set_yscale("log")
        legend(figure, most=2)
    return figure


def pair_rows(table: pd.DataFrame, pair: str) -> pd.DataFrame:
    """Select what `subspaces` draws of one kind of pair: first, middle and last layer, and control.

    One cell (`_widest`) of the first task and model that has such a pair.
    """
    found = table[table.pair == pair] if len(table) else table
    if found.empty:
        return found
    rows = _widest(found, 1)
    layers = sorted(rows.layer.unique())
    shown = {layers[0], layers[len(layers) // 2], layers[-1]}
    return rows[rows.layer.isin(shown) | rows.control].reset_index(drop=True)


def subspaces(rows: pd.DataFrame) -> Figure:
    """Draw phi over i and j as maps: a row per matrix; a column per layer, the last the control.

    One colour scale for all maps, from 0 to the largest phi.
    """
    if rows.empty:
        return nothing("no two adapters of this study make such a pair")
    matrices = _matrices(rows)
    layers = sorted(rows[~rows.control].layer.unique())
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, grid = plt.subplots(
            len(matrices),
            len(layers) + 1,
            figsize=(WIDTH, 0.8 + (0.3 + min(0.08 * rows.i.nunique(), 1)) * len(matrices)),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        colours = ScalarMappable(Normalize(0, rows.phi.max()), "viridis")
        for row, matrix in zip(grid, matrices, strict=True):
            part = rows[rows.matrix == matrix]
            for axes, layer in zip(row, layers, strict=False):
                shown = part[~part.control & (part.layer == layer)]
                _map(axes, shown, colours, f"{matrix}, layer {layer}")
            _map(row[-1], part[part.control], colours, f"{matrix}, random")
        bar = {"aspect": 12 * len(matrices)}  # as wide whatever the number of rows
        figure.colorbar(colours, ax=grid.ravel().tolist(), label="φ(i, j)", **bar)
        cell = rows.iloc[0]
        side = f"{cell.side} singular directions"
        name = filter(None, [cell.task, cell.model, cell.targets, cell.label, side])
        figure.suptitle(", ".join(name))
        own, other = ("ΔW", "W") if cell.pair == "weights" else (cell["first"], cell["second"])
        figure.supylabel(f"i, directions of {own}")
        figure.supxlabel(f"j, directions of {other}")
    return figure


def _map(axes: plt.Axes, part: pd.DataFrame, colours: ScalarMappable, title: str) -> None:
    """Draw one map of phi, i downwards; nothing for a layer without this matrix."""
    axes.set_title(title, fontsize=SMALL)
    if part.empty:
        axes.axis("off")
        return
    grid = part.pivot(index="i", columns="j", values="phi")
    axes.imshow(grid, norm=colours.norm, cmap=colours.cmap, aspect="auto")
    steps = [1 + (count - 1) // MOST_TICKS for count in grid.shape]
    axes.set_yticks(range(0, grid.shape[0], steps[0]), grid.index[:: steps[0]])
    axes.set_xticks(range(0, grid.shape[1], steps[1]), grid.columns[:: steps[1]])
