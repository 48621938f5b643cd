"""The forest of a study's verdicts on claims: effect, interval, and what each claim allows."""

import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loraudit.report.alt_text import listed
from loraudit.report.claim_tables import (
    allowed_text,
    effect_text,
    in_unit,
    possible,
    unit_text,
    verdict_text,
)
from loraudit.report.figure_style import SMALL, STYLE, WIDTH, legend, nothing
from loraudit.report.looks import WORDS
from loraudit.studies.claims import QUANTITIES

NAME = 34
"""Characters of a row's name on one line."""
AXIS = 48
"""Characters of a panel's axis on one line."""


def claim_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have an effect to draw."""
    return table[table.parts > 0] if len(table) else table


def claims(table: pd.DataFrame) -> Figure:
    """Draw a panel for each quantity and unit, with a row for each claim, task and model.

    What is counted has its bound and no interval.
    """
    if table.empty:
        return nothing("no claim could be tested on this study's runs")
    groups = [part for _, part in table.groupby(["quantity", "unit", "log"], sort=False)]
    names = [[_name(row) for row in part.to_dict("records")] for part in groups]
    heights = [0.65 + len(part) * (0.125 * _most_lines(part) + 0.09) for part in names]
    with plt.rc_context(STYLE):
        figure, column = plt.subplots(
            len(groups),
            1,
            figsize=(WIDTH, 0.45 + sum(heights)),
            height_ratios=heights,
            squeeze=False,
        )
        for axes, part, rows in zip(column[:, 0], groups, names, strict=True):
            _panel(axes, part.to_dict("records"), rows)
        for word in dict.fromkeys(table.unadjusted):
            colour, marker = WORDS[word]
            full = colour if word != "undecided" else "white"
            look = {"color": full, "edgecolors": colour, "marker": marker}
            column[0, 0].scatter([], [], label=word, **look)
        if (table.verdict != table.unadjusted).any():
            open_look = {"facecolors": "white", "edgecolors": "0", "marker": "o"}
            column[0, 0].scatter([], [], label="open: not after Holm's correction", **open_look)
        legend(figure, "band: what a claim allows; lines: thick 90 %, thin 95 % interval")
    return figure


def _most_lines(names: list[str]) -> int:
    """Return the lines of the longest name: the rows of a panel are all as high as its row."""
    return max(name.count("\n") + 1 for name in names)


def _name(row: dict) -> str:
    where = f"{row['task']}, {row['model']}, n={row['n']:g}, {row['scale']}"
    lines = [*textwrap.wrap(str(row["claim"]), NAME), *textwrap.wrap(where, NAME)]
    return "\n".join(lines)


def _panel(axes: plt.Axes, rows: list[dict], names: list[str]) -> None:
    """Draw one unit's rows from top to bottom."""
    low, high = _room(rows)
    for place, row in enumerate(rows):
        left, right = (_clipped(row[key], row, low, high) for key in ("region_low", "region_high"))
        axes.barh(place, right - left, left=left, height=0.92, color="0.9", linewidth=0, zorder=0)
        colour, marker = WORDS[row["unadjusted"]]
        for inner, outer, width in (("low", "high", 1.0), ("low90", "high90", 2.8)):
            if row[inner] == row[inner] and row[inner] != row[outer]:
                ends = [_clipped(possible(row, key), row, low, high) for key in (inner, outer)]
                axes.plot(ends, [place] * 2, color=colour, linewidth=width, solid_capstyle="butt")
        full = row["verdict"] == row["unadjusted"] != "undecided"
        face = colour if full else "white"
        effect = in_unit(row["effect"], row)
        axes.scatter([effect], [place], s=24, c=[face], edgecolors=colour, marker=marker, zorder=3)
        beyond = {"color": colour, "clip_on": False, "linewidths": 0, "s": 22, "zorder": 3}
        for edge, out, arrow in zip((low, high), _beyond(row, low, high), "<>", strict=True):
            if out:
                axes.scatter([edge], [place], marker=arrow, label=GOES_ON, **beyond)
        where = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        axes.annotate(_beside(row), (1.02, place), fontsize=SMALL, **where)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    if bool(rows[0]["log"]):
        axes.set_xscale("log")
        few = high < 100 * low  # on more than two decades only these have room
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axvline(1, color="0.2", linewidth=0.8)
    elif low < 0 < high:
        axes.axvline(0, color="0.2", linewidth=0.8)
    axes.set_xlim(low, high)
    axes.set_xlabel(_axis(rows[0]))


GOES_ON = "goes on beyond the axis"
WIDE = 4.0
"""How many times as far from 0 as the median row one reaches that does not stretch the axis."""


def _room(rows: list[dict]) -> tuple[float, float]:
    """Return the ends of a panel's axis, on which distances are seen beside that from 0, or 1.

    Of differences, a few rows that reach far do not hide the others.
    """
    ends = [_ends(row) for row in rows]
    if bool(rows[0]["log"]):
        lows, highs = zip(*ends, strict=True)
        low, high = min(1.0, *lows), max(1.0, *highs)
        margin = (high / low) ** 0.06
        return low / margin, high * margin
    reach = [max(map(abs, both)) for both in ends]
    most = WIDE * float(np.median(reach))
    lows, highs = zip(*(b for b, far in zip(ends, reach, strict=True) if far <= most), strict=True)
    low, high = min(0.0, *lows), max(0.0, *highs)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _beyond(row: dict, low: float, high: float) -> tuple[bool, bool]:
    """Tell whether a row's effect or interval goes on to the left and to the right of the axis."""
    known = [row["effect"], *(possible(row, end) for end in ("low", "high"))]
    shown = [in_unit(value, row) for value in known if np.isfinite(value)]
    return min(shown) < low, max(shown) > high


def _axis(row: dict) -> str:
    """Name a panel's quantity and unit, in lines that fit below it."""
    known = QUANTITIES.get(row["quantity"])
    label = known.label if known else str(row["quantity"])
    unit = "" if row["unit"] == "number" else f", {row['unit']}"
    return textwrap.fill(f"{label}{unit}", AXIS)


def _beside(row: dict) -> str:
    """Return the effect and its interval for the right margin, without the unit."""
    return effect_text(row).removesuffix(unit_text(row))


def _ends(row: dict) -> tuple[float, float]:
    """Return the smallest and largest finite value that a row shows, in its unit."""
    ends = [row["effect"], *(possible(row, end) for end in ("low", "high"))]
    ends += [row["region_low"], row["region_high"]]
    known = [in_unit(end, row) for end in ends if np.isfinite(end)]
    return min(known), max(known)


def _clipped(value: float, row: dict, low: float, high: float) -> float:
    """Return a value in its row's unit; an infinite one is the panel's edge."""
    if math.isfinite(value):
        return in_unit(value, row)
    return high if value > 0 else low


def describe_claims(rows: pd.DataFrame) -> str:
    """Say each claim's effect, what it allows, and the verdict."""
    said = [
        f"{row['claim']} on {row['task']} ({row['model']}) {effect_text(row)}, holds if "
        f"{allowed_text(row)}: {verdict_text(row)}"
        for row in rows.to_dict("records")
    ]
    return f"Effects beside what claims allow. {listed(said)}."
