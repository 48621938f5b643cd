"""Figures: tables in, matplotlib figures out; and saving them with the CSV behind each.

Every figure is `WIDTH` inches wide with text of 7 pt or more (loraudit.mplstyle). Colours are Okabe
and Ito's, told apart by colour-blind readers; every series also has a marker or a dash of its own.
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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loraudit.analysis.comparisons import cell_name
from loraudit.analysis.cost import PRICES, TASKS
from loraudit.base.files import write_atomic
from loraudit.report.tables import METHOD_NAMES, interval, points
from loraudit.studies.methods import LORA_METHODS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = {"lora": "-", "peft": "--", "alora": (0, (6, 1)), "adalora": (0, (1, 1))}
BASELINES = {"head": ":", "bitfit": (0, (5, 1, 1, 1, 1, 1)), "full": "-."}
PUBLISHED_DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)), (0, (1, 3)))
VERDICTS = {
    "reproduced": (COLOURS[2], "o"),
    "not reproduced": (COLOURS[1], "s"),
    "undecided": ("0.45", "D"),
}
EPOCHS = {"best": "best epoch", "last": "last epoch"}
STYLE = {
    key: value
    for key, value in matplotlib.rc_params_from_file(
        Path(__file__).with_name("loraudit.mplstyle")
    ).items()
    if not key.startswith("backend")
}
"""Matplotlib's defaults and our style: a matplotlibrc of the user's changes no figure."""
WIDTH = STYLE["figure.figsize"][0]
SMALL = STYLE["xtick.labelsize"]
LEGEND_ROWS, LEGEND_ROW = 3, 0.15
"""Rows of a legend that a figure has room for, and the height in inches of a further one."""
TITLE = 36
"""Characters that fit above a panel of half the width."""


def save(figure: Figure, table: pd.DataFrame, stem: Path) -> None:
    """Write <stem>.svg, <stem>.png and <stem>.csv; equal data give equal bytes."""
    with plt.rc_context(STYLE):
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
            write_atomic(stem.with_suffix(suffix), partial(figure.savefig, metadata=metadata))
    write_atomic(stem.with_suffix(".csv"), partial(table.to_csv, index=False))
    plt.close(figure)


def look(number: int) -> dict:
    """Return colour and marker of the n-th series; 49 are all different."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + turn) % len(MARKERS)],
    }


def legend(figure: Figure, title: str | None = None, most: int = 3) -> None:
    """Put all panels' legend below a figure, in as many columns as its labels leave room.

    Figures have room for `LEGEND_ROWS`; for more they grow.
    """
    found: dict = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = max(1, min(most, int(90 / (max(map(len, found), default=1) + 8))))
    more = max(0, math.ceil(len(found) / columns) - LEGEND_ROWS)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LEGEND_ROW * more)
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=columns, title=title
    )


def seeds(table: pd.DataFrame, by: list[str]) -> str:
    """Say how many seeds the cells of a table have: "n = 3 seeds", "n = 2 to 5 seeds"."""
    counts = table.groupby(by, dropna=False).seed.nunique()
    low, high = counts.min(), counts.max()
    shown = f"{low}" if low == high else f"{low} to {high}"
    return f"n = {shown} seed{'s' if high > 1 else ''}"


def nothing(reason: str) -> Figure:
    """Draw a figure that says why there is nothing to draw."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.6))
    axes.axis("off")
    axes.text(0.5, 0.5, reason, ha="center", va="center")
    return figure


CELL = ["task", "model", "method", "rank", "targets", "label"]


def _spread(tidy: pd.DataFrame) -> str:
    """Say what the bars of a score figure are."""
    return f"bars: SD over {seeds(tidy[tidy.method != 'published'], CELL)}"


def percent_axis(axes: plt.Axes, name: str) -> None:
    """Write fractions on the y axis as percent."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.set_ylabel(f"{name}, %")


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """Number names by their first appearance: a name's look is the same in every panel."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def subjects(table: pd.DataFrame) -> list[tuple]:
    """Split a table by task and model."""
    return list(table.groupby(["task", "model"], sort=False))


def _panels(tidy: pd.DataFrame, name: str) -> tuple[Figure, list]:
    """Make one row of panels per task and model, one column per epoch choice.

    Returns the figure and a list of (axes, our runs of the panel, its published numbers, "best" |
    "last").
    """
    places = _numbered(tidy.label[tidy.method == "published"])
    groups = subjects(tidy)
    figure, grid = plt.subplots(
        len(groups), 2, figsize=(WIDTH, 0.5 + 1.9 * len(groups)), sharey="row", squeeze=False
    )
    panels = []
    for row, ((task, model), rows) in zip(grid, groups, strict=True):
        ours = rows[rows.method != "published"]
        numbers = rows[rows.method == "published"]
        numbers = numbers.assign(place=numbers.label.map(places))
        for axes, epoch in zip(row, EPOCHS, strict=True):
            axes.set_title(textwrap.fill(f"{task}, {model}: {EPOCHS[epoch]}", TITLE))
            axes.set_xlabel(name)
            panels.append((axes, ours, numbers, epoch))
        percent_axis(row[0], f"validation {rows.metric.iloc[0]}")
    return figure, panels


def _series(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split adapter runs by what has a look of its own, in order of appearance.

    That is a target set and label; our LoRA and PEFT's share one, methods that move ranks do not.
    """
    adapters = runs[runs["rank"].notna() & (runs.method != "published")]
    keys = adapters.targets + adapters.label.map(lambda label: f" {label}" if label else "")
    keys += adapters.method.map(lambda name: "" if name in LORA_METHODS else f" {name}")
    return [(key, adapters[keys == key]) for key in keys.drop_duplicates()]


def _line_name(part: pd.DataFrame) -> str:
    """Name a line by method, targets and label."""
    first = part.iloc[0]
    return f"{METHOD_NAMES[first.method]}, {first.targets} {first.label}".strip()


def score_rows(tidy: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Select what the score figures draw: our runs, and published numbers as method "published".

    Only numbers that a cell of the study can be compared with; `label` then says whose they are,
    `published_sd` is their ±.
    """
    columns = [*CELL, "seed", "metric", "best", "last", "parameters_trainable", "rows_train"]
    runs = tidy[columns].assign(published_sd=float("nan"))
    first = runs.drop_duplicates(CELL).fillna({"label": ""})
    found = verdicts[verdicts.verdict != "not comparable"] if len(verdicts) else verdicts
    rows = []
    for row in found.to_dict("records"):
        method = "lora" if row["method"] in LORA_METHODS else row["method"]
        name = " ".join(filter(None, [METHOD_NAMES[method].split(" (")[0], _text(row["targets"])]))
        row["label"] = _text(row["label"])
        same = pd.Series(True, first.index)
        for key in [*CELL, "metric"]:
            same &= first[key].isna() if pd.isna(row[key]) else first[key] == row[key]
        for cell in first[same].to_dict("records"):
            theirs = {"method": "published", "label": f"{row['published']}, {name}", "seed": None}
            scores = {"best": None, "last": None, row["epoch"]: row["published_value"]}
            rows.append({**cell, **theirs, **scores, "published_sd": row["published_sd"]})
    if not rows:
        return runs
    numbers = pd.DataFrame(rows).drop_duplicates(["task", "model", "label", "rank", "rows_train"])
    return pd.concat([runs, numbers.astype(runs.dtypes.to_dict(), errors="ignore")])


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value)


def _published(axes: plt.Axes, numbers: pd.DataFrame, x: str, epoch: str) -> None:
    """Draw published numbers as lines with their ± as a band: across where they have one x."""
    shown = numbers[numbers[epoch].notna()]
    for (name, place), rows in shown.groupby(["label", "place"], sort=False):
        dash = PUBLISHED_DASHES[place % len(PUBLISHED_DASHES)]
        line = {"color": "0.15", "linestyle": dash, "linewidth": 1, "label": f"{name}, published"}
        band = {"color": "0.5", "alpha": 0.18, "linewidth": 0, "zorder": 0}
        rows = rows.sort_values(x)
        low, high = rows[epoch] - rows.published_sd, rows[epoch] + rows.published_sd
        if rows[x].nunique() > 1:
            axes.plot(rows[x], rows[epoch], **line)
            axes.fill_between(rows[x], low, high, **band)
        else:
            axes.axhline(rows[epoch].iloc[0], **line)
            axes.axhspan(low.fillna(rows[epoch]).iloc[0], high.fillna(rows[epoch]).iloc[0], **band)


def score_vs_rank(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the rank: a line of means per target set and method, a dot per seed.

    Bars are the standard deviation over seeds (n - 1). Baselines are horizontal lines of means.
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "rank r")
        looks = _numbered(key for key, _ in _series(tidy))
        for axes, runs, numbers, epoch in panels:
            for key, series in _series(runs):
                for _, part in series.groupby("method", sort=False):
                    _rank_line(axes, part, epoch, looks[key])
            _baselines(axes, runs, epoch)
            _published(axes, numbers, "rank", epoch)
            ranks = sorted(runs["rank"].dropna().unique())
            axes.set_xscale("log", base=2)
            axes.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
            axes.minorticks_off()
            axes.set_xlim(ranks[0] / 1.25, ranks[-1] * 1.25)
        legend(figure, _spread(tidy))
    return figure


def _rank_line(axes: plt.Axes, part: pd.DataFrame, epoch: str, number: int) -> None:
    method = part.method.iloc[0]
    shift = 1.03 if method == "peft" else 0.97  # side by side where the twins agree
    found = part.groupby("rank")[epoch].agg(["mean", "std"])
    series = look(number)
    axes.scatter(part["rank"] * shift, part[epoch], s=6, alpha=0.5, linewidths=0, **series)
    axes.errorbar(
        found.index * shift,
        found["mean"],
        yerr=found["std"].fillna(0),
        linestyle=LINES[method],
        markerfacecolor="white" if method == "peft" else series["color"],
        label=_line_name(part),
        **series,
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
        axes.axhline(mean, color="0.35", linestyle=BASELINES[method], linewidth=1, label=name)


def score_vs_rows(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the number of training rows: a line per method, rank and target set.

    Dots are means over seeds, bars the standard deviation (n - 1).
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "training rows")
        keys = ["method", "rank", "targets"]
        ours = tidy[tidy.method != "published"][keys].drop_duplicates().itertuples(index=False)
        looks = _numbered(_method_name(*cell) for cell in ours)
        for axes, runs, numbers, epoch in panels:
            for cell, part in runs.groupby(keys, dropna=False, sort=False):
                method, name = cell[0], _method_name(*cell)
                found = part.groupby("rows_train")[epoch].agg(["mean", "std"])
                axes.errorbar(
                    found.index,
                    found["mean"],
                    yerr=found["std"].fillna(0),
                    markerfacecolor="none" if method == "peft" else None,
                    linestyle=LINES.get(method, "-."),
                    label=name,
                    **look(looks[name]),
                )
            _published(axes, numbers, "rows_train", epoch)
            _decades(axes, runs.rows_train)
        legend(figure, _spread(tidy))
    return figure


def _method_name(method: str, rank: float, targets: str | None) -> str:
    return METHOD_NAMES[method] + ("" if pd.isna(rank) else f", r{rank:g} {targets}")


def score_vs_parameters(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the trainable parameters (head included, log axis), a dot per cell.

    Dots are means over seeds, bars the standard deviation (n - 1).
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "trainable parameters, head included")
        names = [key for key, _ in _series(tidy)] + [name for _, name, _ in _baseline_parts(tidy)]
        looks = _numbered(names)
        for axes, runs, numbers, epoch in panels:
            cells = [
                (_line_name(part), part, looks[key], method)
                for key, rows in _series(runs)
                for method, part in rows.groupby("method", sort=False)
            ]
            cells += [
                (name, part, looks[name], method) for method, name, part in _baseline_parts(runs)
            ]
            for label, part, number, method in cells:
                found = part.groupby("parameters_trainable")[epoch].agg(["mean", "std"])
                axes.errorbar(
                    found.index,
                    found["mean"],
                    yerr=found["std"].fillna(0),
                    linestyle=LINES.get(method, "none"),
                    markerfacecolor="none" if method == "peft" else None,
                    markersize=4 if method != "peft" else 7,
                    label=label,
                    **look(number),
                )
            _published(axes, numbers, "parameters_trainable", epoch)
            _decades(axes, runs.parameters_trainable)
        legend(figure, _spread(tidy))
    return figure


def _decades(axes: plt.Axes, values: pd.Series) -> None:
    """Make x logarithmic over whole decades, and label at most five of them: none overlap."""
    axes.set_xscale("log")
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    axes.set_xlim(10**low / 1.5, 1.5 * 10 ** max(high, low + 1))  # none on the edge
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_minor_formatter(NullFormatter())


def learning_curves(history: pd.DataFrame) -> Figure:
    """Draw training loss (left) and validation score (right) over epochs: a mean line per cell.

    Bands reach from the lowest to the highest seed. PEFT's lines are dashed, so that a twin that
    agrees lies on ours.
    """
    groups = subjects(history)
    every = pd.Series([cell_name(cell) for cell in history.to_dict("records")], history.index)
    looks = _numbered(every.str.replace("peft", "lora"))  # a colour for both of a pair
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.6 + 1.8 * len(groups))
        figure, grid = plt.subplots(len(groups), 2, figsize=size, squeeze=False, sharex="row")
        for row, ((task, model), runs) in zip(grid, groups, strict=True):
            for name, part in runs.groupby(every[runs.index], sort=False):
                series = look(looks[name.replace("peft", "lora")])
                dash = LINES.get(part.method.iloc[0], "-.")
                for axes, column in zip(row, ("train_loss", "score"), strict=True):
                    found = part.groupby("epoch")[column].agg(["mean", "min", "max"])
                    mean = found["mean"]
                    axes.plot(found.index, mean, linestyle=dash, label=name, **series)
                    axes.fill_between(
                        found.index, found["min"], found["max"], color=series["color"], alpha=0.12
                    )
            row[0].set_title(textwrap.fill(f"{task}, {model}", TITLE))
            row[0].set_ylabel("training loss")
            percent_axis(row[1], "validation score")
            for axes in row:
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, f"bands: lowest to highest of {seeds(history, CELL)}")
    return figure


def crosscheck_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `crosscheck` draws: each check's largest difference over all cells."""
    largest = table.groupby(["dtype", "check"], sort=False).difference.idxmax()
    return table.loc[largest].reset_index(drop=True)


def crosscheck(table: pd.DataFrame) -> Figure:
    """Draw each check's largest difference over all cells beside its tolerance, log axis.

    A difference of exactly 0 is drawn at the left edge and written as 0.
    """
    worst = table.groupby(["dtype", "check"], sort=False)[["difference", "tolerance"]].max()
    with plt.rc_context(STYLE):
        dtypes = list(dict.fromkeys(table["dtype"]))
        size = (WIDTH, 0.9 + 0.15 * table["check"].nunique())
        figure, row = plt.subplots(1, len(dtypes), figsize=size, sharey=True, squeeze=False)
        for axes, dtype in zip(row[0], dtypes, strict=True):
            part = worst.loc[dtype]
            floor = 1e-18
            axes.scatter(part.difference.clip(lower=floor), part.index, s=14, color=COLOURS[0])
            limited = part[part.tolerance > 0]
            axes.scatter(limited.tolerance, limited.index, marker="|", s=60, color=COLOURS[1])
            for name, value in part.difference.items():
                if value == 0:
                    place = {"xytext": (5, -2.5), "textcoords": "offset points"}
                    axes.annotate("0", (floor, name), fontsize=SMALL, **place)
            axes.set_xscale("log")
            axes.set_xlim(floor / 3, 1)
            axes.set_xticks([1e-18, 1e-12, 1e-6])  # none at an edge, where panels meet
            axes.set_title(dtype)
            axes.margins(y=0.02)
        row[0][0].invert_yaxis()
        figure.supxlabel("largest difference (vertical bar: tolerance)", fontsize=SMALL + 1)
    return figure


def _forest(axes: plt.Axes, rows: pd.DataFrame, names: list[str], looks: list[tuple]) -> None:
    """Draw one row per difference: its marker, its interval, and both as text at the right."""
    for place, (row, (colour, marker)) in enumerate(zip(rows.itertuples(), looks, strict=True)):
        middle, low, high = (100 * value for value in (row.difference, row.low, row.high))
        if low == low:
            axes.plot([low, high], [place, place], color=colour, linewidth=1.4)
        axes.scatter([middle], [place], s=22, color=colour, marker=marker, zorder=3)
        text = f"{points(row.difference)} {interval(row.low, row.high)}"
        where = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        axes.annotate(text, (1.02, place), fontsize=SMALL, **where)
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 32) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color="0.2", linewidth=0.8)


def _forest_height(names: list[str]) -> float:
    """Return inches for the rows of a forest, by how many lines their names take."""
    lines = [len(textwrap.wrap(name, 32)) for name in names]
    return len(names) * max(0.2, 0.125 * max(lines) + 0.05)


def _verdict_forest(rows: pd.DataFrame, names: list[str], ours: str) -> Figure:
    """Draw differences to published numbers with the margin as a band and their ± as bars."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + _forest_height(names)))
        _forest(axes, rows, names, [VERDICTS[word] for word in rows.verdict])
        margin = 100 * rows.margin.iloc[0]
        axes.axvspan(-margin, margin, color="0.92", zorder=0, label=f"margin, ±{margin:g}")
        known = [(place, sd) for place, sd in enumerate(100 * rows.published_sd) if sd == sd]
        if known:
            places, sds = zip(*known, strict=True)
            bars = {"height": 0.5, "color": "0.75", "label": "± of the published number"}
            axes.barh(places, [2 * sd for sd in sds], left=[-sd for sd in sds], zorder=1, **bars)
        axes.set_xlabel(f"{ours}, points")
        for word, (colour, marker) in VERDICTS.items():
            if word in set(rows.verdict):
                axes.scatter([], [], color=colour, marker=marker, label=word)
        legend(figure)
    return figure


def verdicts(table: pd.DataFrame) -> Figure:
    """Draw each comparable cell's difference to its published number, with 95 % interval."""
    if table.empty or (table.verdict == "not comparable").all():
        return nothing("no cell of this study can be compared with a published number")
    rows = table[table.verdict != "not comparable"]
    names = [
        f"{row['task']} {cell_name(row)}, n={row['n']} | {row['published']} ({row['epoch']} epoch)"
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

    Circles are the difference of best epochs, squares of last epochs, both to the base runs of the
    same seeds, with 95 % t intervals.
    """
    if table.empty:
        return nothing("no switch and base share two seeds")
    groups = subjects(table)
    with plt.rc_context(STYLE):
        names = [part.switch.where(~part.switch.duplicated(), "").tolist() for _, part in groups]
        heights = [0.3 + _forest_height(rows) for rows in names]
        figure, column = plt.subplots(
            len(groups),
            1,
            figsize=(WIDTH, 0.6 + sum(heights)),
            height_ratios=heights,
            sharex=True,
            squeeze=False,
        )
        for axes, shown, ((task, model), part) in zip(column[:, 0], names, groups, strict=True):
            _forest(axes, part, shown, [_switch_look(epoch) for epoch in part.epoch])
            base = 100 * part[part.epoch == "best"].base.iloc[0]
            axes.set_title(f"{task}, {model}: base {base:.1f} %, n={part.n.max()}")
        column[-1, 0].set_xlabel("switched minus base, points (same seeds, 95 % interval)")
        for epoch, name in EPOCHS.items():
            colour, marker = _switch_look(epoch)
            column[0, 0].scatter([], [], color=colour, marker=marker, label=name)
        legend(figure)
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
    groups = subjects(table)
    with plt.rc_context(STYLE):
        heights = [0.5 + 0.16 * len(part) for _, part in groups]
        figure, grid = plt.subplots(
            len(groups),
            len(panels),
            figsize=(WIDTH, 0.2 + sum(heights)),
            height_ratios=heights,
            sharey="row",
            squeeze=False,
        )
        for row, ((task, model), part) in zip(grid, groups, strict=True):
            names = [cell_name(cell) for cell in part.to_dict("records")]
            for axes, (column, unit, label) in zip(row, panels, strict=True):
                values = part[column] / unit
                bars = axes.barh(range(len(part)), values, color=COLOURS[0], height=0.7)
                shown = [f"{value:,.0f}" for value in values]
                axes.bar_label(bars, shown, fontsize=SMALL, padding=2)
                axes.set_xlim(0, 1.4 * values.max())
                axes.xaxis.set_major_locator(MaxNLocator(3))
                axes.set_xlabel(label)
                axes.grid(axis="y", visible=False)
            row[0].set_yticks(range(len(part)), names)
            row[0].invert_yaxis()
            row[0].set_title(f"{task}, {model}", loc="left")
    return figure


def pareto(table: pd.DataFrame) -> Figure:
    """Draw the last epoch's score over three prices; cells that none beats are filled and joined.

    Takes `cost.pareto`'s rows. Bars are the standard deviation over seeds (n - 1).
    """
    groups = subjects(table)
    looks = _numbered(cell_name(cell) for cell in table.to_dict("records"))
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.8 + 1.8 * len(groups))
        figure, grid = plt.subplots(
            len(groups), len(PRICES), figsize=size, sharey="row", squeeze=False
        )
        for row, ((task, model), part) in zip(grid, groups, strict=True):
            for axes, (price, label) in zip(row, PRICES.items(), strict=True):
                _front(axes, part, price, looks)
                axes.set_xlabel(label)
                if price == "parameters_trainable":
                    _decades(axes, part[price])
                else:
                    axes.xaxis.set_major_locator(MaxNLocator(3))
                    axes.set_xlim(0, 1.1 * part[price].max())
            row[0].set_title(f"{task}, {model}", loc="left")
            percent_axis(row[0], f"last-epoch {part.metric.iloc[0]}")
        title = "bars: SD over seeds; filled and joined: no cell is better and as cheap"
        legend(figure, title)
    return figure


def _front(axes: plt.Axes, part: pd.DataFrame, price: str, looks: dict[str, int]) -> None:
    """Draw one task's cells over a price; the legend's markers are filled whatever the cell's."""
    front = part[part[f"front_{price}"]].sort_values(price)
    axes.plot(front[price], front.last_mean, color="0.4", linewidth=0.8, zorder=1)
    for cell in part.to_dict("records"):
        name = cell_name(cell)
        series = look(looks[name])
        fill = series["color"] if cell[f"front_{price}"] else "white"
        axes.errorbar(
            cell[price],
            cell["last_mean"],
            yerr=cell["last_sd"] if cell["last_sd"] == cell["last_sd"] else 0,
            linestyle="none",
            elinewidth=0.7,
            markersize=5,
            markerfacecolor=fill,
            **series,
        )
        axes.plot([], [], linestyle="none", markersize=5, label=name, **series)
