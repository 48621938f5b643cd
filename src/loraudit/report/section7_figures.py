"""Figures of section 7: what the updates of saved adapters look like."""

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraudit.analysis.cells import SUBJECT, label_text
from loraudit.report.alt_text import each_subject
from loraudit.report.figure_style import SMALL, STYLE, TITLE, WIDTH, legend, nothing
from loraudit.report.formatting import label_words
from loraudit.report.looks import (
    BLACK,
    LABEL_LINES,
    MATRIX_COLOURS,
    METHOD_COLOURS,
    TARGET_MARKERS,
    cell_looks,
    lines_apart,
    look_of,
    tint,
)
from loraudit.studies.entries import MATRICES

SERIES = ["rank", "targets", "label"]
"""Columns that make one line of a task and model: our LoRA is the only method here."""
MOST_SUBJECTS = 4
"""Tasks and models with a row of panels in section 7's figures; the tables have all."""
LABEL = 24
"""Characters in a line of a cell's name beside its row."""
LORA = METHOD_COLOURS["lora"]
PAIR = ["first", "second"]
"""Columns that name the two runs of a pair, by rank and seed."""
PROJECTIONS = {
    "update_norm": ("‖ΔW‖", LORA, "o"),
    "projected_weight": ("‖UᵀWV‖, U and V of W", BLACK, "s"),
    "projected_update": ("‖UᵀWV‖, U and V of ΔW", tint(LORA, 0.5), "^"),
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


def _series_title(cell: dict) -> str:
    """Name a cell by rank, targets and label."""
    label = label_words(cell["label"] or "")
    return " ".join(filter(None, [f"r={cell['rank']:g}", cell["targets"], label]))


def _matrix_panels(table: pd.DataFrame, x: str, y: str, ticks: int = 4) -> tuple[Figure, list]:
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
        cells = part[SERIES].drop_duplicates().to_dict("records")
        title = [*subject, *([_series_title(cells[0])] if len(cells) == 1 else [])]
        row[0].set_title(f"{', '.join(title)}\n{matrices[0]}", loc="left")
        row[0].set_ylabel(y)
    for axes in grid[-1]:
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    return figure, panels


def spectra_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `spectra` draws: one cell per task and model (`_widest`), its first run."""
    rows = _widest(table, MOST_SUBJECTS)
    runs = rows.drop_duplicates(SUBJECT).run
    return rows[rows.run.isin(runs)]


def stable_rank_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `stable_rank` draws: without rank 1 where there are others (it is always 1)."""
    table = table[table["rank"] > 1] if (table["rank"] > 1).any() else table
    kept = table.merge(table[SUBJECT].drop_duplicates()[:MOST_SUBJECTS])
    kept = kept.assign(label=kept.label.map(label_text))  # a CSV that is read has NaN for none
    return kept[[*SUBJECT, *SERIES, "run", "layer", "matrix", "stable_rank"]]


def amplification_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `amplification` draws: one cell per task and model (`_widest`)."""
    return _widest(table, MOST_SUBJECTS)


def intruder_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `intruders` draws: a row per run and matrix, the mean over its layers.

    Cells without matrix of their own (full fine-tuning) are drawn for the matrices that LoRA has.
    """
    kept = table.merge(table[SUBJECT].drop_duplicates()[:MOST_SUBJECTS])
    adapted = kept[kept["rank"].notna()]
    rows = kept.merge(adapted[[*SUBJECT, "matrix"]].drop_duplicates())
    by = [*SUBJECT, "method", *SERIES, "run", "matrix", "of", "below"]
    return rows.groupby(by, dropna=False, sort=False).intruders.mean().reset_index()


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


MOST_CELLS = 7
"""Lines that can be told apart in a panel; the table has all cells."""


def stable_rank(table: pd.DataFrame) -> Figure:
    """Draw the stable rank of Delta W over the layer: a line of means per cell, a dot per seed.

    Of more than `MOST_CELLS` cells those of one rank are drawn, that of the most target sets; the
    others are in the CSV only.
    """
    table = stable_rank_rows(table)
    every, cells = _drawn_cells(table)
    looks = lines_apart(list(cell_looks({**cell, "method": "lora"} for cell in cells).values()))
    lines = _lines(cells)
    with plt.rc_context(STYLE):
        figure, panels = _matrix_panels(table, "layer", "stable rank of ΔW")
        for axes, part in panels:
            for cell, look in zip(cells, looks, strict=True):
                rows = part[(part[SERIES] == pd.Series(cell)).all(axis=1)]
                axes.scatter(rows.layer, rows.stable_rank, s=5, alpha=0.4, **look.dots())
                means = rows.groupby("layer").stable_rank.mean()
                marks = look.marks() | {"linestyle": lines.get(cell["targets"], look.line)}
                axes.plot(means.index, means, label=_series_title(cell), **marks)
        hidden = len(every) - len(cells)
        title = f"{hidden} further cells are in the CSV" if hidden > 0 else None
        legend(figure, title)
    return figure


def _drawn_cells(table: pd.DataFrame) -> tuple[list[dict], list[dict]]:
    """Return all cells of a table, and those that are drawn."""
    every = table[SERIES].drop_duplicates().to_dict("records")
    return every, _of_one_rank(every) if len(every) > MOST_CELLS else every


def _of_one_rank(cells: list[dict]) -> list[dict]:
    """Return the cells of the rank that has the most target sets, the highest of several."""
    sets: dict[float, set] = {}
    for cell in cells:
        sets.setdefault(cell["rank"], set()).add(cell["targets"])
    rank = max(sets, key=lambda rank: (len(sets[rank]), rank))
    return [cell for cell in cells if cell["rank"] == rank][:MOST_CELLS]


def _lines(cells: list[dict]) -> dict[str, str | tuple]:
    """Return a line for each target set, where cells differ in nothing else that a look shows.

    Lines over all layers lie close together, so that markers alone don't tell them apart.
    """
    if len({cell["label"] for cell in cells}) > 1:
        return {}
    names = dict.fromkeys(cell["targets"] for cell in cells)
    return dict(zip(names, LABEL_LINES, strict=False))


def intruders(rows: pd.DataFrame) -> Figure:
    """Draw intruder dimensions per matrix: a line per cell, a dot per run, a tick for the mean."""
    cells = rows[["method", *SERIES]].drop_duplicates()
    cells = cells.sort_values("rank", kind="stable").to_dict("records")  # full fine-tuning last
    labels = [textwrap.fill(_intruder_cell(cell), LABEL) for cell in cells]
    places = {_cell_key(cell): place for place, cell in enumerate(cells)}
    lines = sum(label.count("\n") + 1 for label in labels)
    subjects = rows[SUBJECT].drop_duplicates().shape[0]
    with plt.rc_context(STYLE):
        figure, panels = _matrix_panels(rows, "", "", ticks=2)
        figure.set_size_inches(WIDTH, 0.8 + subjects * (0.45 + 0.16 * lines))
        for axes, part in panels:
            at = [places[_cell_key(row)] for row in part.to_dict("records")]
            colours = [look_of(method).colour for method in part.method]
            dot = {"s": 10, "color": colours, "label": "a run, mean over layers"}
            axes.scatter(part.intruders, at, **dot)
            means = part.intruders.groupby(at).mean()
            look = {"s": 90, "marker": "|", "color": BLACK, "label": "mean of the runs"}
            axes.scatter(means, means.index, **look)
            axes.set_yticks(range(len(labels)), labels, fontsize=SMALL)
            axes.set_ylim(len(labels) - 0.4, -0.6)
        edge = 0.05 * max(1.0, rows.intruders.max())
        axes.set_xlim(-edge, rows.intruders.max() + edge)  # all panels share x
        legend(figure, f"number among the {rows['of'].max()} leading directions")
    return figure


def _cell_key(cell: dict) -> tuple:
    return tuple(_text(cell[name]) for name in ("method", *SERIES))


def _intruder_cell(cell: dict) -> str:
    if cell["rank"] == cell["rank"]:
        return _series_title({name: _text(cell[name]) for name in SERIES})
    return " ".join(filter(None, ["full", _text(cell["label"])]))


def _text(value: Any) -> Any:
    return "" if value != value else value


def describe_intruders(rows: pd.DataFrame) -> str:
    """Say the mean number of intruder dimensions of each cell."""

    def say(part: pd.DataFrame) -> str:
        means = part.groupby(["method", *SERIES], dropna=False, sort=False).intruders.mean()
        cells = (dict(zip(means.index.names, key, strict=True)) for key in means.index)
        return ", ".join(
            f"{_intruder_cell(cell)} {mean:.2f}" for cell, mean in zip(cells, means, strict=True)
        )

    most, below = rows["of"].max(), rows.below.iloc[0]
    return (
        f"Intruder dimensions among the {most} leading directions of a trained matrix (largest "
        f"cosine below {below:g}), mean over layers, matrices and runs. {each_subject(rows, say)}"
    )


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
    """Select what `subspaces` draws of one kind of pair: phi, and what random directions give.

    At each j, i is as large as it can be up to j, so that phi is the share of the first i
    directions of one side that the other side's span holds. One cell (`_widest`) per task and
    model.

    Returns:
        The pair's columns, layer, matrix, i, j and phi, and `random`: what random directions give
        on average. That is max(i, j) / d; d is taken from the random pair of the same matrix at its
        largest i and j, where chance counts least.
    """
    pairs = table[table.pair == pair] if len(table) else table
    if pairs.empty:
        return pairs
    rows = _widest(pairs, MOST_SUBJECTS)
    control = rows.control.astype(bool)
    key = [*SUBJECT, "matrix"]
    drawn = rows[control].sort_values(["i", "j"]).drop_duplicates(key, keep="last")
    rate = drawn.assign(rate=drawn.phi / drawn[["i", "j"]].max(axis=1))[[*key, "rate"]]
    rows = rows[~control].drop(columns="control")
    most = rows.i.where(rows.i <= rows.j).groupby([rows.task, rows.model, rows.j]).transform("max")
    rows = rows[rows.i == most].merge(rate, on=key, how="left")
    random = rows[["i", "j"]].max(axis=1) * rows.rate
    return rows.drop(columns="rate").assign(random=random)


def rank_pair_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `subspaces` draws of two ranks."""
    return pair_rows(table, "ranks")


def seed_pair_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `subspaces` draws of two seeds."""
    return pair_rows(table, "seeds")


def weight_pair_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `subspaces` draws of an update and W."""
    return pair_rows(table, "weights")


def subspaces(rows: pd.DataFrame) -> Figure:
    """Draw phi minus its mean over random directions: a line per matrix, a row of panels per task.

    Left over j, means over layers and pairs; right over the layer, at the smallest j, means over
    pairs. Where there are several pairs, each is a dot beside the mean.
    """
    if rows.empty:
        return nothing("no two adapters of this study make such a pair")
    rows = rows.assign(above=rows.phi - rows.random)
    groups = list(rows.groupby(SUBJECT, sort=False))
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.7 + 1.8 * len(groups))
        figure, grid = plt.subplots(len(groups), 2, figsize=size, sharey="row", squeeze=False)
        for (left, right), (subject, part) in zip(grid, groups, strict=True):
            first = part.j.min()
            for matrix in _matrices(part):
                own = part[part.matrix == matrix]
                _matrix_line(left, own, "j", matrix)
                _matrix_line(right, own[own.j == first], "layer", matrix)
            _subspace_axes(left, right, part, subject)
        legend(figure, most=6)
    return figure


def _matrix_line(axes: plt.Axes, rows: pd.DataFrame, over: str, matrix: str) -> None:
    """Draw a matrix's mean phi above random as a line, and each pair of runs as a dot."""
    look = {"color": MATRIX_COLOURS[matrix], "marker": TARGET_MARKERS.get(matrix, "o")}
    means = rows.groupby(over).above.mean()
    axes.plot(means.index, means, label=matrix, markersize=3, **look)
    by_pair = rows.groupby([*PAIR, over]).above.mean().reset_index()
    if len(by_pair) > len(means):
        axes.scatter(by_pair[over], by_pair.above, s=4, alpha=0.5, linewidths=0, **look)


def _subspace_axes(left: plt.Axes, right: plt.Axes, part: pd.DataFrame, subject: tuple) -> None:
    """Label the panels of one task and model, and draw what random directions would give."""
    cell, first = part.iloc[0], part.j.min()
    name = ", ".join(filter(None, [*subject, cell.targets, _text(cell.label)]))
    sides, other = _sides(part)
    left.set_title(textwrap.fill(f"{name}: {sides}", 2 * TITLE), loc="left")
    left.set_ylabel("φ above random")
    left.set_xlabel(f"j, first directions of {other}")
    right.set_xlabel(f"layer (j = {first})")
    for axes in (left, right):
        axes.axhline(0, color="0", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _sides(part: pd.DataFrame) -> tuple[str, str]:
    """Say which runs are compared, and name the side over whose directions j counts."""
    pairs = part[PAIR].drop_duplicates()
    if part.pair.iloc[0] == "weights":
        return "ΔW and W", "W"
    if len(pairs) == 1:
        own, other = (_side_name(code) for code in pairs.iloc[0])
        return f"{own} and {other}", other
    own, other = (_side_name(code.split()[0]) for code in pairs.iloc[0])
    sides = own if own == other else f"{own} and {other}"
    return f"{sides}, {len(pairs)} pairs of seeds and their mean", other


def _side_name(code: str) -> str:
    """Write a side of a pair out: "rank 8 (seed 0)" of "r8 s0", "rank 8" of "r8"."""
    rank, *seed = code.split()
    return f"rank {rank[1:]}" + "".join(f" (seed {number[1:]})" for number in seed)


def describe_spectra(rows: pd.DataFrame) -> str:
    """Say the span of the largest singular values, and how far the second is below."""

    def say(part: pd.DataFrame) -> str:
        grid = part.pivot(index=["layer", "matrix"], columns="index", values="singular_value")
        text = f"largest value {grid[1].min():.2g} to {grid[1].max():.2g}"
        if 2 in grid and grid[1].any():
            text += f", the second in the median {(grid[2] / grid[1]).median():.2g} of the first"
        return text

    return f"Singular values of the update over layers and matrices. {each_subject(rows, say)}"


def describe_stable_rank(rows: pd.DataFrame) -> str:
    """Say where the stable rank of the cells that are drawn is lowest and where it is highest."""
    rows = stable_rank_rows(rows)
    drawn = [(rows[SERIES] == pd.Series(cell)).all(axis=1) for cell in _drawn_cells(rows)[1]]
    rows = rows[pd.concat(drawn, axis=1).any(axis=1)] if drawn else rows

    def say(part: pd.DataFrame) -> str:
        means = part.groupby(["matrix", "layer"]).stable_rank.mean().dropna()
        if means.empty:
            return "not defined, no adapter has moved"
        places = (("lowest", means.idxmin()), ("highest", means.idxmax()))
        ends = [f"{word} {means[at]:.2f} in {at[0]} of layer {at[1]}" for word, at in places]
        return ", ".join(ends)

    return f"Stable rank, mean over the cells drawn and their seeds. {each_subject(rows, say)}"


def describe_amplification(rows: pd.DataFrame) -> str:
    """Say the medians of Table 7's norms."""

    def say(part: pd.DataFrame) -> str:
        middle = part.median(numeric_only=True)
        return (
            f"the update's norm {middle.update_norm:.2g}, W in its own directions "
            f"{middle.projected_weight:.2g}, in the update's {middle.projected_update:.2g}, in "
            f"random ones {middle.projected_random:.2g}"
        )

    return f"Median Frobenius norms over layers and matrices. {each_subject(rows, say)}"


def describe_subspaces(rows: pd.DataFrame) -> str:
    """Say phi of the first directions by matrix and its range over pairs, and what is random."""

    def say(part: pd.DataFrame) -> str:
        first = part[part.j == part.j.min()]
        means = first.groupby("matrix")[["phi", "random"]].mean()
        pairs = first.groupby(["matrix", *PAIR]).phi.mean()
        texts = []
        for matrix in _matrices(part):
            text, own = f"{matrix} {means.phi[matrix]:.2g}", pairs[matrix]
            if len(own) > 1:
                text += f", {own.min():.2g} to {own.max():.2g} over {len(own)} pairs"
            texts.append(f"{text} (random {means.random[matrix]:.2g})")
        return f"at j = {part.j.min()}, {'; '.join(texts)}"

    return f"Similarity φ of directions, mean over layers. {each_subject(rows, say)}"
