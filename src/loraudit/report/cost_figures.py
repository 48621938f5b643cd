"""Figures of what cells cost, and of scores against their price."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from loraudit.analysis.cells import (
    CELL,
    SCORED_CELL,
    SUBJECT,
    cell_name,
    collapsed,
)
from loraudit.analysis.cost import PRICES, TASKS, priced
from loraudit.analysis.cost import pareto as fronts
from loraudit.report import units
from loraudit.report.alt_text import each_subject, listed
from loraudit.report.figure_style import (
    BARS_FROM,
    SAME_SIZE,
    SMALL,
    STYLE,
    WIDTH,
    decades,
    epoch_name,
    legend,
    mark_collapsed,
    score_axis,
    spread_out,
    spread_text,
    subjects,
)
from loraudit.report.formatting import of_which, shown_cell, shown_set
from loraudit.report.looks import Look, cell_looks, look_of

PANELS: list[tuple[str, float, str]] = [
    ("bytes_tasks", 1e6, f"disk for {TASKS} tasks, MB"),
    ("peak_mib", 1, "peak memory, MiB"),
    ("step", 1e-3, "{} time per step, ms"),
]
"""Columns of the cost table, the unit of each, and what it is called; {} is the clock."""
NAME = 30
"""Characters of a cell's name on one line."""
VARIES = 1.02
"""A cost whose largest value is within this factor of the smallest is the same for all cells."""


def _varying(table: pd.DataFrame) -> list[tuple[str, float, str]]:
    """Return the panels in which some task's cells differ.

    The wall's time of runs on CPUs is left out (its clock is "wall" and there is no memory of a
    GPU): it counts what else the machine did.
    """
    groups = [part for _, part in table.groupby(SUBJECT)]
    shared = table.clock.eq("wall") & table.device_mib.isna()
    return [
        panel
        for panel in PANELS
        if any(part[panel[0]].max() > VARIES * part[panel[0]].min() for part in groups)
        and not (panel[0] == "step" and shared.any())
    ]


def no_cost(table: pd.DataFrame) -> str:
    """Say why costs are not drawn; "" where they can be."""
    alike = f"of what it shows, nothing differs by more than {100 * (VARIES - 1):.0f} %"
    return "" if _varying(table) else alike


def cost(table: pd.DataFrame) -> Figure:
    """Draw each cell's disk for ten tasks, peak memory and time per step; a panel row per task.

    What is the same for all cells has no panel. Lines on the bars of time are the standard
    deviation over runs, from `BARS_FROM` runs on.
    """
    panels = _varying(table) or PANELS[:1]
    groups = subjects(table)
    with plt.rc_context(STYLE):
        names = [
            [textwrap.fill(shown_cell(cell), NAME) for cell in part.to_dict("records")]
            for _, part in groups
        ]
        lines = [len(part) * max(name.count("\n") + 1 for name in part) for part in names]
        heights = [0.5 + 0.16 * count for count in lines]
        figure, grid = plt.subplots(
            len(groups),
            len(panels),
            figsize=(WIDTH, 0.2 + sum(heights)),
            height_ratios=heights,
            sharey="row",
            squeeze=False,
        )
        for row, labels, ((task, model), part) in zip(grid, names, groups, strict=True):
            for axes, panel in zip(row, panels, strict=True):
                _bars(axes, part, *panel)
            row[0].set_yticks(range(len(part)), labels)
            row[0].set_ylim(len(part) - 0.4, -0.6)
            row[0].set_title(f"{task}, {model}", loc="left")
    return figure


def _bars(axes: plt.Axes, part: pd.DataFrame, column: str, unit: float, label: str) -> None:
    """Draw one cost of one task's cells: bars in their method's colour, PEFT's open."""
    values = part[column] / unit
    looks = [look_of(method) for method in part.method]
    for place, (value, look) in enumerate(zip(values, looks, strict=True)):
        face = {"color": look.face, "edgecolor": look.colour, "linewidth": 0.8}
        axes.barh(place, value, height=0.7, **face)
    timed = column == "step"
    spread = 0 * values
    if timed:
        spread = part.step_sd.where(part.n >= BARS_FROM).fillna(0) / unit
        axes.hlines(range(len(part)), values - spread, values + spread, color="0", lw=1)
    for place, (value, reach) in enumerate(zip(values, values + spread, strict=True)):
        none = "no steps" if timed else "not known"
        text, end = (f"{value:,.0f}", reach) if value == value else (none, 0)
        at = {"xytext": (2, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (end, place), fontsize=SMALL, **at)
    axes.set_xlim(0, 1.4 * (values + spread).max())
    _few_ticks(axes)
    text = label.format(part.clock.iloc[0]) if timed else label
    axes.set_xlabel(f"{text}{NOISE}" if timed and _within_noise(part) else text)
    axes.grid(axis="y", visible=False)


def _few_ticks(axes: plt.Axes) -> None:
    """Give x few ticks, written as the numbers beside bars are: 1,100."""
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


NOISE = "\n(differences within noise)"


def _within_noise(part: pd.DataFrame) -> bool:
    """Tell whether even the largest difference of times is within their spread."""
    return len(part) > 1 and not part.steps_differ.iloc[0]


def pareto_rows(tidy: pd.DataFrame) -> pd.DataFrame:
    """Select what `pareto` draws: a row per run, with its cell's means and places on the fronts.

    Returns:
        `cost.pareto`'s columns, and for each run its seed, last epoch, score (`run_last`), whether
        it collapsed (`run_last_collapsed`) and prices (`run_<price>`).
    """
    own = priced(tidy)
    own = own.assign(last_collapsed=collapsed(own, "last"))
    kept = {name: f"run_{name}" for name in ("last", "last_collapsed", *PRICES)}
    cell = own.groupby(SCORED_CELL, dropna=False, sort=False).ngroup()  # in the order of `fronts`
    cells = fronts(tidy).loc[cell].set_index(own.index)
    return pd.concat([cells, own[["seed", "last_epoch", *kept]].rename(columns=kept)], axis=1)


def _prices(table: pd.DataFrame) -> dict[str, str]:
    """Return the prices over which scores can be drawn.

    Left out are numbers of parameters that most cells of every task share, and the wall's time of
    runs on CPUs, which counts what else the machine did.
    """
    groups = [part.parameters_trainable for _, part in _cells(table).groupby(SUBJECT)]
    told = {
        "parameters_trainable": any(spread_out(sizes, SAME_SIZE) for sizes in groups),
        "milliseconds_step": not (table.clock.eq("wall") & ~table.on_gpu.astype(bool)).any(),
    }
    return {name: label for name, label in PRICES.items() if told.get(name, True)}


def pareto(table: pd.DataFrame) -> Figure:
    """Draw the last epoch's score over its prices.

    Takes `pareto_rows`' rows. Dots are seeds, marks means; those that none beats have a black
    edge, and are joined where they differ clearly.
    """
    groups, prices = subjects(table), _prices(table)
    looks = cell_looks(table.to_dict("records"))
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.8 + 1.8 * len(groups))
        figure, grid = plt.subplots(
            len(groups), len(prices), figsize=size, sharey="row", squeeze=False
        )
        for row, ((task, model), part) in zip(grid, groups, strict=True):
            for axes, (price, label) in zip(row, prices.items(), strict=True):
                _front(axes, part, price, looks)
                text = label.format(part.clock.iloc[0])
                axes.set_xlabel(text if part[f"clear_{price}"].iloc[0] else text + OPEN)
                if price == "parameters_trainable":
                    decades(axes, part[price])
                else:
                    _few_ticks(axes)
                    axes.set_xlim(0, 1.1 * part[f"run_{price}"].max())
            row[0].set_title(f"{task}, {model}", loc="left")
            name = f"{part.metric.iloc[0]}, {epoch_name(part, 'last')}"
            score_axis(row[0], name, part.metric.iloc[0])
        ranks = any(_ranks_apart(part) for _, part in groups)
        tints = "\npale to full colour: from the lowest to the highest rank" if ranks else ""
        edges = "black edge: no cell is better and as cheap"
        legend(figure, f"{spread_text(table, CELL)}; {edges}{tints}")
    return figure


OPEN = "\n(no clear front)"
"""What stands below a panel whose front may be the seeds' chance."""


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell of `pareto_rows`' rows."""
    return table.drop_duplicates(CELL)


def _front(axes: plt.Axes, part: pd.DataFrame, price: str, looks: dict[str, Look]) -> None:
    """Draw one task's cells over a price."""
    cells = _cells(part)
    front = cells[cells[f"front_{price}"] == "on"].sort_values(price, kind="stable")
    if part[f"clear_{price}"].iloc[0]:
        axes.plot(front[price], front.last_mean, color="0.6", linewidth=0.8, zorder=1)
    for _, runs in part.groupby(CELL, dropna=False, sort=False):
        name = cell_name(runs.iloc[0].to_dict())
        axes.scatter(runs[f"run_{price}"], runs.run_last, s=7, alpha=0.5, **looks[name].dots())
        first = runs.iloc[0]
        edge = {"markeredgecolor": "0"} if first[f"front_{price}"] == "on" else {}
        axes.plot(first[price], first.last_mean, linestyle="none", **looks[name].marks() | edge)
        if first.n >= BARS_FROM:
            bars = {"fmt": "none", "ecolor": looks[name].colour, "elinewidth": 0.8}
            axes.errorbar(first[price], first.last_mean, yerr=first.last_sd, **bars)
    _name_cells(axes, part, looks)
    mark_collapsed(axes, part[f"run_{price}"], part, "run_last")


MOST_NAMED = 20
"""Cells of a task and model that each have a name in the legend; of more, each set of ranks has."""


def _ranks_apart(part: pd.DataFrame) -> bool:
    """Tell whether the legend names sets of ranks instead of cells."""
    return len(_cells(part)) > MOST_NAMED


def _name_cells(axes: plt.Axes, part: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Name a task's cells in the legend; a set of ranks by its highest, without the rank."""
    grouped = _ranks_apart(part)
    by = ["method", "targets", "label"] if grouped else CELL
    for _, cells in _cells(part).groupby(by, dropna=False, sort=False):
        cell = cells.sort_values("rank", na_position="first").iloc[-1].to_dict()
        name = shown_cell(cell)
        if grouped and not pd.isna(cell["rank"]):
            name = shown_set(cell["method"], cell["targets"], cell["label"])
        axes.plot([], [], linestyle="none", label=name, **looks[cell_name(cell)].marks())


def describe_cost(rows: pd.DataFrame) -> str:
    """Say the cheapest and the dearest cell by each kind of cost."""

    def say(part: pd.DataFrame) -> str:
        said = []
        for column, unit, label in _varying(rows):
            noise = column == "step" and _within_noise(part)
            also = ", which is within the spread over runs" if noise else ""
            clock = part.clock.iloc[0] if column == "step" else ""
            said.append(f"{label.format(clock)} {_span(part, column, unit)}{also}")
        return ", ".join(said)

    return f"Cost from the cheapest to the dearest cell. {each_subject(rows, say)}"


def _span(part: pd.DataFrame, column: str, unit: float = 1) -> str:
    """Say the smallest and largest value with their cells."""
    cells = part[part[column].notna()].to_dict("records")
    low, high = (pick(cells, key=lambda cell: cell[column]) for pick in (min, max))
    return " to ".join(f"{cell[column] / unit:,.0f} ({shown_cell(cell)})" for cell in (low, high))


def _mean(cell: dict) -> str:
    return units.with_unit(cell["metric"], cell["last_mean"])


def describe_pareto(rows: pd.DataFrame) -> str:
    """Name the cells on the front of each price, with their scores."""

    def say(part: pd.DataFrame) -> str:
        fronts = []
        for price, name in _prices(rows).items():
            cells = _cells(part)
            front = cells[cells[f"front_{price}"] == "on"].sort_values(price, kind="stable")
            front = front.to_dict("records")
            names = [f"{shown_cell(cell)} ({_mean(cell)})" for cell in front]
            noise = "" if part[f"clear_{price}"].iloc[0] else " (within noise: no clear front)"
            fronts.append(f"by {name.format(part.clock.iloc[0])} {', '.join(names)}{noise}")
        return listed(fronts)

    sick = [
        f"{cell['task']} {shown_cell(cell)}, {of_which(cell['last_collapsed'], cell['n'], 'runs')}"
        for cell in _cells(rows).to_dict("records")
        if cell.get("last_collapsed")
    ]
    also = f" Means with collapsed runs, which are marked: {listed(sick)}." if sick else ""
    return f"Cells that no other beats in score and price. {each_subject(rows, say)}{also}"
