"""Figures of what cells cost, and of scores against their price."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraudit.analysis.cells import cell_name
from loraudit.analysis.cost import PRICES, TASKS
from loraudit.analysis.cost import pareto as pareto_rows
from loraudit.report.alt_text import each_subject, listed
from loraudit.report.figure_style import (
    COLOURS,
    SMALL,
    STYLE,
    WIDTH,
    decades,
    legend,
    look,
    mark_collapsed,
    numbered,
    percent_axis,
    subjects,
)
from loraudit.report.formatting import of_which

__all__ = ["cost", "describe_cost", "describe_pareto", "pareto", "pareto_rows"]


def cost(table: pd.DataFrame) -> Figure:
    """Draw each cell's disk for ten tasks, peak memory and time per step; a panel row per task.

    Lines on the bars of time are the standard deviation over runs.
    """
    panels = [
        ("bytes_tasks", 1e6, f"disk for {TASKS} tasks, MB"),
        ("peak_mib", 1, "peak memory, MiB"),
        ("step", 1e-3, "{} time per step, ms"),
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
                axes.barh(range(len(part)), values, color=COLOURS[0], height=0.7)
                timed = column == "step"
                spread = part.step_sd.fillna(0) / unit if timed else 0 * values
                axes.hlines(range(len(part)), values - spread, values + spread, color="0.1", lw=1)
                for place, (value, reach) in enumerate(zip(values, values + spread, strict=True)):
                    at = {"xytext": (2, 0), "textcoords": "offset points", "va": "center"}
                    axes.annotate(f"{value:,.0f}", (reach, place), fontsize=SMALL, **at)
                axes.set_xlim(0, 1.4 * (values + spread).max())
                axes.xaxis.set_major_locator(MaxNLocator(3))
                text = label.format(part.clock.iloc[0])
                axes.set_xlabel(f"{text}{NOISE}" if timed and _within_noise(part) else text)
                axes.grid(axis="y", visible=False)
            row[0].set_yticks(range(len(part)), names)
            row[0].invert_yaxis()
            row[0].set_title(f"{task}, {model}", loc="left")
    return figure


NOISE = "\n(differences within noise)"


def _within_noise(part: pd.DataFrame) -> bool:
    """Tell whether even the largest difference of times is within their spread."""
    return len(part) > 1 and not part.steps_differ.iloc[0]


def pareto(table: pd.DataFrame) -> Figure:
    """Draw the last epoch's score over three prices.

    Cells that none beats are filled, and joined where they differ clearly; those that are off the
    front by no more than the spread are pale. Takes `cost.pareto`'s rows. Bars are the standard
    deviation over seeds (n - 1).
    """
    groups = subjects(table)
    looks = numbered(cell_name(cell) for cell in table.to_dict("records"))
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.8 + 1.8 * len(groups))
        figure, grid = plt.subplots(
            len(groups), len(PRICES), figsize=size, sharey="row", squeeze=False
        )
        for row, ((task, model), part) in zip(grid, groups, strict=True):
            for axes, (price, label) in zip(row, PRICES.items(), strict=True):
                _front(axes, part, price, looks)
                text = label.format(part.clock.iloc[0])
                axes.set_xlabel(text if part[f"clear_{price}"].iloc[0] else text + OPEN)
                if price == "parameters_trainable":
                    decades(axes, part[price])
                else:
                    axes.xaxis.set_major_locator(MaxNLocator(3))
                    axes.set_xlim(0, 1.1 * (part[price] + part[f"{price}_sd"].fillna(0)).max())
            row[0].set_title(f"{task}, {model}", loc="left")
            percent_axis(row[0], f"last-epoch {part.metric.iloc[0]}")
        title = (
            "bars: SD over seeds; filled: no cell is better and as cheap; pale: within noise of it"
        )
        legend(figure, title)
    return figure


OPEN = "\n(no clear front)"
"""What stands below a panel whose front may be the seeds' chance."""


def _front(axes: plt.Axes, part: pd.DataFrame, price: str, looks: dict[str, int]) -> None:
    """Draw one task's cells over a price; the legend's markers are filled whatever the cell's."""
    front = part[part[f"front_{price}"] == "on"].sort_values(price, kind="stable")
    if part[f"clear_{price}"].iloc[0]:
        axes.plot(front[price], front.last_mean, color="0.4", linewidth=0.8, zorder=1)
    for cell in part.to_dict("records"):
        name = cell_name(cell)
        series = look(looks[name])
        solid = {"on": 1.0, "within noise": 0.35, "beaten": 0.0}[cell[f"front_{price}"]]
        fill = [1 - solid * (1 - part) for part in to_rgb(series["color"])]
        axes.errorbar(
            cell[price],
            cell["last_mean"],
            yerr=cell["last_sd"],
            xerr=None if price == "parameters_trainable" else cell[f"{price}_sd"],
            linestyle="none",
            elinewidth=0.7,
            markersize=5,
            markerfacecolor=fill,
            **series,
        )
        axes.plot([], [], linestyle="none", markersize=5, label=name, **series)
    sick = part.assign(last_mean_collapsed=part.get("last_collapsed", 0) > 0)
    mark_collapsed(axes, part[price], sick, "last_mean", "mean with collapsed runs")


def describe_cost(rows: pd.DataFrame) -> str:
    """Say the cheapest and the dearest cell by each kind of cost."""

    def say(part: pd.DataFrame) -> str:
        return (
            f"disk for {TASKS} tasks {_span(part, 'bytes_tasks', 1e6)} MB, peak memory "
            f"{_span(part, 'peak_mib')} MiB, {part.clock.iloc[0]} time per step "
            f"{_span(part, 'step', 1e-3)} ms"
            f"{', which is within the spread over runs' if _within_noise(part) else ''}"
        )

    return f"Cost from the cheapest to the dearest cell. {each_subject(rows, say)}"


def _span(part: pd.DataFrame, column: str, unit: float = 1) -> str:
    """Say the smallest and largest value with their cells."""
    cells = part.to_dict("records")
    low, high = (pick(cells, key=lambda cell: cell[column]) for pick in (min, max))
    return " to ".join(f"{cell[column] / unit:,.0f} ({cell_name(cell)})" for cell in (low, high))


def describe_pareto(rows: pd.DataFrame) -> str:
    """Name the cells on the front of each price, with their scores."""

    def say(part: pd.DataFrame) -> str:
        fronts = []
        for price, name in PRICES.items():
            front = (
                part[part[f"front_{price}"] == "on"]
                .sort_values(price, kind="stable")
                .to_dict("records")
            )
            cells = [f"{cell_name(cell)} ({100 * cell['last_mean']:.1f} %)" for cell in front]
            noise = "" if part[f"clear_{price}"].iloc[0] else " (within noise: no clear front)"
            fronts.append(f"by {name.format(part.clock.iloc[0])} {', '.join(cells)}{noise}")
        return listed(fronts)

    sick = [
        f"{cell['task']} {cell_name(cell)}, {of_which(cell['last_collapsed'], cell['n'], 'runs')}"
        for cell in rows.to_dict("records")
        if cell.get("last_collapsed")
    ]
    also = f" Means with collapsed runs, which are marked: {listed(sick)}." if sick else ""
    return f"Cells that no other beats in score and price. {each_subject(rows, say)}{also}"
