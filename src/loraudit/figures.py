"""Figures: tables in, matplotlib figures out; and saving them with the CSV behind each.

Colours are Okabe and Ito's, told apart by colour-blind readers; every series also has a marker.
"""

import io
import itertools
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from loraudit.compare import cell_name
from loraudit.cost import TASKS
from loraudit.files import write_atomic
from loraudit.spec import MATRICES
from loraudit.tables import METHOD_NAMES, interval, points

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = {"lora": "-", "peft": "--"}
BASELINES = {"head": ":", "bitfit": (0, (5, 1, 1, 1, 1, 1)), "full": "-."}
VERDICTS = {
    "reproduced": (COLOURS[2], "o"),
    "not reproduced": (COLOURS[1], "s"),
    "undecided": ("0.45", "D"),
}
EPOCHS = {"best": "best epoch", "last": "last epoch"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "loraudit",
    "svg.fonttype": "none",
    "figure.dpi": 100,
    "savefig.dpi": 200,
}


def save(figure: Figure, table: pd.DataFrame, stem: Path) -> None:
    """Write <stem>.svg, <stem>.png and <stem>.csv; equal data give equal bytes."""
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        with plt.rc_context(STYLE):
            figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches="tight")
        content = buffer.getvalue()
        write_atomic(
            stem.with_suffix(f".{suffix}"), lambda path, content=content: path.write_bytes(content)
        )
    write_atomic(stem.with_suffix(".csv"), lambda path: table.to_csv(path, index=False))
    plt.close(figure)


def _panels(tidy: pd.DataFrame, name: str) -> tuple[Figure, list]:
    """Make one row of panels per task and model, one column per epoch choice.

    Returns the figure and a list of (axes, rows of the panel, "best" | "last").
    """
    groups = list(tidy.groupby(["task", "model"], sort=False))
    figure, grid = plt.subplots(
        len(groups), 2, figsize=(8.2, 3.4 * len(groups)), sharey="row", squeeze=False
    )
    panels = []
    for row, ((task, model), runs) in zip(grid, groups, strict=True):
        for axes, epoch in zip(row, EPOCHS, strict=True):
            axes.set_title(f"{task}, {model}: {EPOCHS[epoch]}", fontsize=9)
            axes.set_xlabel(name)
            panels.append((axes, runs, epoch))
        row[0].set_ylabel(f"validation {runs.metric.iloc[0]}")
    return figure, panels


def _legend(figure: Figure, axes: plt.Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)


def _series(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split adapter runs by target set and label, in order of appearance."""
    adapters = runs[runs["rank"].notna()]
    keys = adapters.targets + adapters.label.map(lambda label: f" {label}" if label else "")
    return [(key, adapters[keys == key]) for key in keys.drop_duplicates()]


def score_vs_rank(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the rank: a line of means per target set and method, a dot per seed.

    Bars are the standard deviation over seeds (n - 1). Baselines are horizontal lines of means.
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "rank r")
        for axes, runs, epoch in panels:
            for number, (key, series) in enumerate(_series(runs)):
                for method, part in series.groupby("method", sort=False):
                    _rank_line(axes, part, epoch, number, f"{METHOD_NAMES[method]}, {key}")
            _baselines(axes, runs, epoch)
            ranks = sorted(runs["rank"].dropna().unique())
            axes.set_xscale("log", base=2)
            axes.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
            axes.minorticks_off()
        _legend(figure, panels[0][0])
    return figure


def _rank_line(axes: plt.Axes, part: pd.DataFrame, epoch: str, number: int, label: str) -> None:
    method = part.method.iloc[0]
    shift = 1.03 if method == "peft" else 0.97  # side by side where the twins agree
    found = part.groupby("rank")[epoch].agg(["mean", "std"])
    colour = COLOURS[number % len(COLOURS)]
    look = {"color": colour, "marker": MARKERS[number % len(MARKERS)]}
    axes.scatter(part["rank"] * shift, part[epoch], s=10, alpha=0.5, **look)
    fill = "white" if method == "peft" else colour
    axes.errorbar(
        found.index * shift,
        found["mean"],
        yerr=found["std"].fillna(0),
        linestyle=LINES[method],
        markerfacecolor=fill,
        markersize=5,
        capsize=3,
        label=label,
        **look,
    )


def _baseline_parts(runs: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Split baseline runs by method and label; returns method, name for the legend, and runs."""
    found = []
    for method in BASELINES:
        for label, part in runs[runs.method == method].groupby("label", sort=False):
            found.append((method, f"{METHOD_NAMES[method]} {label}".strip(), part))
    return found


def _baselines(axes: plt.Axes, runs: pd.DataFrame, epoch: str) -> None:
    for method, name, part in _baseline_parts(runs):
        mean = part[epoch].mean()
        axes.axhline(mean, color="0.35", linestyle=BASELINES[method], label=name)


def score_vs_rows(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the number of training rows: a line per method, rank and target set.

    Dots are means over seeds, bars the standard deviation (n - 1).
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "training rows")
        for axes, runs, epoch in panels:
            cells = runs.groupby(["method", "rank", "targets"], dropna=False, sort=False)
            for number, ((method, rank, targets), part) in enumerate(cells):
                adapter = "" if pd.isna(rank) else f", r{rank:g} {targets}"
                found = part.groupby("rows_train")[epoch].agg(["mean", "std"])
                axes.errorbar(
                    found.index,
                    found["mean"],
                    yerr=found["std"].fillna(0),
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[number % len(MARKERS)],
                    markerfacecolor="none" if method == "peft" else None,
                    linestyle=LINES.get(method, "-."),
                    capsize=3,
                    label=f"{METHOD_NAMES[method]}{adapter}",
                )
            _whole_decades(axes, runs.rows_train)
        _legend(figure, panels[0][0])
    return figure


def score_vs_parameters(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the trainable parameters (head included, log axis), a dot per cell.

    Dots are means over seeds, bars the standard deviation (n - 1).
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "trainable parameters, head included")
        for axes, runs, epoch in panels:
            cells = [
                (f"{METHOD_NAMES[method]}, {key}", part, number, method)
                for number, (key, series) in enumerate(_series(runs))
                for method, part in series.groupby("method", sort=False)
            ]
            cells += [
                (name, part, len(COLOURS) - 1 - number, method)
                for number, (method, name, part) in enumerate(_baseline_parts(runs))
            ]
            for label, part, number, method in cells:
                found = part.groupby("parameters_trainable")[epoch].agg(["mean", "std"])
                colour = COLOURS[number % len(COLOURS)]
                axes.errorbar(
                    found.index,
                    found["mean"],
                    yerr=found["std"].fillna(0),
                    linestyle=LINES.get(method, "none"),
                    color=colour,
                    marker=MARKERS[number % len(MARKERS)],
                    markerfacecolor="none" if method == "peft" else colour,
                    markersize=5 if method != "peft" else 8,
                    capsize=3,
                    label=label,
                )
            _whole_decades(axes, runs.parameters_trainable)
        _legend(figure, panels[0][0])
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Draw training loss (left) and validation score (right) over epochs: a mean line per cell.

    Bands reach from the lowest to the highest seed. PEFT's lines are dashed, so that a twin that
    agrees lies on ours.
    """
    groups = list(history.groupby(["task", "model"], sort=False))
    with plt.rc_context(STYLE):
        size = (8.2, 3.0 * len(groups))
        figure, grid = plt.subplots(len(groups), 2, figsize=size, squeeze=False, sharex="row")
        for row, ((task, model), runs) in zip(grid, groups, strict=True):
            names = pd.Series([cell_name(cell) for cell in runs.to_dict("records")], runs.index)
            twins = names.str.replace("peft", "lora")  # a colour for both of a pair
            colours = dict(zip(twins.unique(), itertools.cycle(COLOURS), strict=False))
            for name, part in runs.groupby(names, sort=False):
                colour, dash = colours[twins[part.index[0]]], LINES.get(part.method.iloc[0], "-.")
                for axes, column in zip(row, ("train_loss", "score"), strict=True):
                    found = part.groupby("epoch")[column].agg(["mean", "min", "max"])
                    axes.plot(found.index, found["mean"], dash, color=colour, label=name)
                    axes.fill_between(
                        found.index, found["min"], found["max"], color=colour, alpha=0.12
                    )
            row[0].set_title(f"{task}, {model}: training loss", fontsize=9)
            row[1].set_title(f"{task}, {model}: validation score", fontsize=9)
            for axes in row:
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, grid[0][0])
    return figure


def _whole_decades(axes: plt.Axes, values: pd.Series) -> None:
    """Make x logarithmic over whole decades, and label these alone: labels never overlap."""
    axes.set_xscale("log")
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    axes.set_xlim(10**low, 10 ** max(high, low + 1))
    axes.xaxis.set_minor_formatter(NullFormatter())


def crosscheck(table: pd.DataFrame) -> Figure:
    """Draw each check's largest difference over all cells beside its tolerance, log axis.

    A difference of exactly 0 is drawn at the left edge and written as 0.
    """
    worst = table.groupby(["dtype", "check"], sort=False)[["difference", "tolerance"]].max()
    with plt.rc_context(STYLE):
        dtypes = list(dict.fromkeys(table["dtype"]))
        height = 1.2 + 0.21 * table["check"].nunique()
        size = (3.0 + 2.6 * len(dtypes), height)
        figure, row = plt.subplots(1, len(dtypes), figsize=size, sharey=True, squeeze=False)
        for axes, dtype in zip(row[0], dtypes, strict=True):
            part = worst.loc[dtype]
            floor = 1e-18
            axes.scatter(part.difference.clip(lower=floor), part.index, color=COLOURS[0], zorder=3)
            limited = part[part.tolerance > 0]
            axes.scatter(
                limited.tolerance, limited.index, marker="|", s=120, color=COLOURS[1], zorder=3
            )
            for name, value in part.difference.items():
                if value == 0:
                    axes.annotate("0", (floor, name), xytext=(6, -3), textcoords="offset points")
            axes.set_xscale("log")
            axes.set_xlim(floor / 3, 1)
            axes.set_xticks([1e-18, 1e-12, 1e-6])  # none at an edge, where panels meet
            axes.set_title(dtype, fontsize=9)
            axes.set_xlabel("largest difference (bar: tolerance)")
        row[0][0].invert_yaxis()
        figure.tight_layout()
    return figure


def _forest(axes: plt.Axes, rows: pd.DataFrame, names: list[str], looks: list[tuple]) -> None:
    """Draw one row per difference: its marker, its interval, and both as text at the right."""
    for place, (row, (colour, marker)) in enumerate(zip(rows.itertuples(), looks, strict=True)):
        middle, low, high = (100 * value for value in (row.difference, row.low, row.high))
        if low == low:
            axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        axes.scatter([middle], [place], color=colour, marker=marker, zorder=3)
        text = f"{points(row.difference)} {interval(row.low, row.high)}"
        axes.annotate(
            text, (1.01, place), xycoords=("axes fraction", "data"), fontsize=8, va="center"
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color="0.2", linewidth=1)


def _nothing(reason: str) -> Figure:
    """Draw a figure that says why there is nothing to draw."""
    figure, axes = plt.subplots(figsize=(7.0, 0.8))
    axes.axis("off")
    axes.text(0.5, 0.5, reason, ha="center", va="center")
    return figure


def _verdict_forest(rows: pd.DataFrame, names: list[str], ours: str) -> Figure:
    """Draw differences to published numbers with the equivalence margin as a band."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.0, 1.2 + 0.32 * len(rows)))
        _forest(axes, rows, names, [VERDICTS[word] for word in rows.verdict])
        margin = 100 * rows.margin.iloc[0]
        axes.axvspan(-margin, margin, color="0.9", zorder=0)
        axes.set_xlabel(f"{ours}, points (grey: within {margin:g})")
        for word, (colour, marker) in VERDICTS.items():
            if word in set(rows.verdict):
                axes.scatter([], [], color=colour, marker=marker, label=word)
        figure.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        figure.tight_layout()
    return figure


def verdicts(table: pd.DataFrame) -> Figure:
    """Draw each comparable cell's difference to its published number, with 95 % interval."""
    if table.empty or (table.verdict == "not comparable").all():
        return _nothing("no cell of this study can be compared with a published number")
    rows = table[table.verdict != "not comparable"]
    names = [
        f"{row['task']} {cell_name(row)} | {row['published']} ({row['epoch']} epoch)"
        for row in rows.to_dict("records")
    ]
    return _verdict_forest(rows, names, "ours minus published")


def published(table: pd.DataFrame) -> Figure:
    """Draw published per-seed results' differences to other published numbers."""
    names = [f"{row.task}, {row.selection}, n={row.n}" for row in table.itertuples()]
    pairs = (table.ours + " minus " + table.published).drop_duplicates()
    return _verdict_forest(table, names, "; ".join(pairs))


def switches(table: pd.DataFrame) -> Figure:
    """Draw what each switch of an ablation changes: one panel per task, one row per switch.

    Filled circles are the difference of best epochs, open squares of last epochs, both to the base
    runs of the same seeds, with 95 % t intervals.
    """
    if table.empty:
        return _nothing("no switch and base share two seeds")
    groups = list(table.groupby(["task", "model"], sort=False))
    with plt.rc_context(STYLE):
        figure, column = plt.subplots(
            len(groups),
            1,
            figsize=(7.0, sum(0.9 + 0.28 * len(part) for _, part in groups)),
            sharex=True,
            squeeze=False,
        )
        for axes, ((task, model), part) in zip(column[:, 0], groups, strict=True):
            names = part.switch.where(~part.switch.duplicated(), "").tolist()
            _forest(axes, part, names, [_switch_look(epoch) for epoch in part.epoch])
            base = 100 * part[part.epoch == "best"].base.iloc[0]
            axes.set_title(f"{task}, {model}: base {base:.1f} %, n={part.n.max()}", fontsize=9)
        column[-1, 0].set_xlabel("switched minus base, points (same seeds, 95 % interval)")
        for epoch, name in EPOCHS.items():
            colour, marker = _switch_look(epoch)
            column[0, 0].scatter([], [], color=colour, marker=marker, label=name)
        figure.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        figure.tight_layout()
    return figure


def _switch_look(epoch: str) -> tuple[str, str]:
    return {"best": (COLOURS[0], "o"), "last": (COLOURS[4], "s")}[epoch]


def cost(table: pd.DataFrame) -> Figure:
    """Draw each cell's disk for ten tasks, peak memory and time per step; a panel row per task."""
    panels = [
        ("bytes_tasks", 1e6, f"disk for {TASKS} tasks, MB"),
        ("peak_mib", 1, "peak memory, MiB"),
        ("seconds_step", 1e-3, "time per step, ms"),
    ]
    groups = list(table.groupby(["task", "model"], sort=False))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(groups),
            len(panels),
            figsize=(8.2, sum(1.0 + 0.25 * len(part) for _, part in groups)),
            sharey="row",
            squeeze=False,
        )
        for row, ((task, model), part) in zip(grid, groups, strict=True):
            names = [cell_name(cell) for cell in part.to_dict("records")]
            for axes, (column, unit, label) in zip(row, panels, strict=True):
                values = part[column] / unit
                bars = axes.barh(range(len(part)), values, color=COLOURS[0], height=0.7)
                axes.bar_label(bars, [f"{value:,.0f}" for value in values], fontsize=7, padding=2)
                axes.set_xlim(0, 1.25 * values.max())
                axes.set_xlabel(label)
                axes.grid(axis="y", visible=False)
            row[0].set_yticks(range(len(part)), names)
            row[0].invert_yaxis()
            row[0].set_title(f"{task}, {model}", fontsize=9, loc="left")
        figure.tight_layout()
    return figure


SUBJECT = ["task", "model"]
CELL = ["rank", "targets", "label"]
MOST_SUBJECTS = 4
"""Tasks and models with a row of panels in section 7's figures; the tables have all."""
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
        figsize=(8.2, 0.5 + 2.4 * len(subjects)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    panels = []
    for row, (subject, part) in zip(grid, subjects, strict=True):
        for axes, matrix in zip(row, matrices, strict=True):
            panels.append((axes, part[part.matrix == matrix]))
            axes.set_title(matrix, fontsize=9, loc="left")
        cells = part[CELL].drop_duplicates().to_dict("records")
        shown = [*subject, *([_cell_title(cells[0])] if len(cells) == 1 else [])]
        row[0].set_title(f"{', '.join(shown)}\n{matrices[0]}", fontsize=9, loc="left")
        row[0].set_ylabel(y)
    for axes in grid[-1]:
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, panels


def _legend_below(figure: Figure, axes: plt.Axes, columns: int, title: str | None = None) -> None:
    """Put the legend of one panel below a figure with constrained layout."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def spectra(table: pd.DataFrame) -> Figure:
    """Draw the singular values of Delta W over their index, a line per layer, a panel per matrix.

    One cell per task and model (`_widest`), and its first run.
    """
    with plt.rc_context(STYLE):
        rows = _widest(table, MOST_SUBJECTS)
        figure, panels = _matrix_panels(rows, "index", "singular value of ΔW")
        colours = ScalarMappable(Normalize(rows.layer.min(), rows.layer.max()), "viridis")
        for axes, part in panels:
            first = part[part.run == part.run.iloc[0]] if len(part) else part
            for layer, values in first.groupby("layer"):
                look = {"color": colours.to_rgba(layer), "marker": "o", "markersize": 3}
                axes.plot(values["index"], values.singular_value, **look)
            axes.set_yscale("log")
        ticks = MaxNLocator(integer=True)
        figure.colorbar(colours, ax=[axes for axes, _ in panels], label="layer", ticks=ticks)
    return figure


def stable_rank(table: pd.DataFrame) -> Figure:
    """Draw the stable rank of Delta W over the layer: a line of means per cell, a dot per seed.

    Rank 1 is left out where there are others: its stable rank is 1. The first cells have a colour
    each; the others are in the table only.
    """
    table = table[table["rank"] > 1] if (table["rank"] > 1).any() else table
    cells = table[CELL].drop_duplicates().to_dict("records")
    with plt.rc_context(STYLE):
        shown = table.merge(table[SUBJECT].drop_duplicates()[:MOST_SUBJECTS])
        figure, panels = _matrix_panels(shown, "layer", "stable rank of ΔW")
        for axes, part in panels:
            for cell, colour, marker in zip(cells, COLOURS, MARKERS, strict=False):
                rows = part[(part[CELL] == pd.Series(cell)).all(axis=1)]
                look = {"color": colour, "marker": marker}
                axes.scatter(rows.layer, rows.stable_rank, s=6, alpha=0.4, **look)
                means = rows.groupby("layer").stable_rank.mean()
                axes.plot(means.index, means, markersize=4, label=_cell_title(cell), **look)
        hidden = len(cells) - len(COLOURS)
        title = f"{hidden} further cells are in the table" if hidden > 0 else None
        _legend_below(figure, panels[0][0], 3, title)
    return figure


def amplification(table: pd.DataFrame) -> Figure:
    """Draw Table 7's norms over the layer, means over seeds, log axis.

    The gap between ||Delta W|| and ||U^T W V|| with U and V of Delta W is the amplification
    factor. One cell per task and model (`_widest`).
    """
    with plt.rc_context(STYLE):
        rows = _widest(table, MOST_SUBJECTS)
        figure, panels = _matrix_panels(rows, "layer", "Frobenius norm")
        for axes, part in panels:
            means = part.groupby("layer")[list(PROJECTIONS)].mean()
            for name, (label, colour, marker) in PROJECTIONS.items():
                look = {"color": colour, "marker": marker, "markersize": 4}
                axes.plot(means.index, means[name], label=label, **look)
            axes.set_yscale("log")
        _legend_below(figure, panels[0][0], 2)
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
        return _nothing("no two adapters of this study make such a pair")
    matrices = _matrices(rows)
    layers = sorted(rows[~rows.control].layer.unique())
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, grid = plt.subplots(
            len(matrices),
            len(layers) + 1,
            figsize=(8.2, 1.0 + (0.7 + 0.1 * rows.i.nunique()) * len(matrices)),
            squeeze=False,
            layout="constrained",
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
        figure.suptitle(", ".join(name), fontsize=9)
        own, other = ("ΔW", "W") if cell.pair == "weights" else (cell["first"], cell["second"])
        figure.supylabel(f"i, directions of {own}", fontsize=9)
        figure.supxlabel(f"j, directions of {other}", fontsize=9)
    return figure


def _map(axes: plt.Axes, part: pd.DataFrame, colours: ScalarMappable, title: str) -> None:
    """Draw one map of phi, i downwards; nothing for a layer without this matrix."""
    axes.set_title(title, fontsize=8)
    if part.empty:
        axes.axis("off")
        return
    grid = part.pivot(index="i", columns="j", values="phi")
    axes.imshow(grid, norm=colours.norm, cmap=colours.cmap, aspect="auto")
    axes.set_xticks(range(grid.shape[1]), grid.columns, fontsize=7)
    axes.set_yticks(range(grid.shape[0]), grid.index, fontsize=7)
