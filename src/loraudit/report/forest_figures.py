"""Figures of differences, one row each with its interval: verdicts, published numbers, switches."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from loraudit.analysis.cells import SUBJECT, cell_name, first_choice
from loraudit.analysis.judging import telling
from loraudit.analysis.statistics import SIGNIFICANCE
from loraudit.report import units
from loraudit.report.alt_text import each_subject, listed
from loraudit.report.figure_style import (
    EPOCHS,
    SMALL,
    STYLE,
    WIDTH,
    legend,
    nothing,
    subjects,
)
from loraudit.report.formatting import JUDGED, cell_words, counted, interval, points
from loraudit.report.looks import OPEN, SIZE_OPEN, WORDS
from loraudit.studies.scores import unit_of

ANOTHER = ", another protocol"
"""What a row's name says of a number that was made under another protocol."""


def verdicts(table: pd.DataFrame) -> Figure:
    """Draw each comparable cell's difference to its published number, with its two intervals."""
    if table.empty or (table.verdict == "not comparable").all():
        return nothing("no cell of this study can be compared with a published number")
    rows = table[table.verdict != "not comparable"]
    names = [
        f"{row['task']} {cell_name(row)}, n={row['n']}{_sick(row)} | {row['published']} "
        f"({row['epoch']} epoch){ANOTHER if row['protocol'] == 'another' else ''}"
        for row in rows.to_dict("records")
    ]
    return _verdict_forest(rows, names, "ours minus published")


def published(table: pd.DataFrame) -> Figure:
    """Draw the differences of scores by seed to published numbers, where they can be compared."""
    rows = table[table.verdict != "not comparable"]
    shown = [name for name in telling(rows) if name != "selection"]
    names = [
        f"{cell_words(row, shown)}, "
        f"{row['selection']}, n={row['n']}{ANOTHER if row['protocol'] == 'another' else ''}"
        for row in rows.to_dict("records")
    ]
    subtractions = (rows.ours + " minus " + rows.published).drop_duplicates()
    return _verdict_forest(rows, names, "; ".join(subtractions))


def _judged(row: dict) -> str:
    """Write a judged difference with its 95 % interval."""
    return f"{points(row['difference'], JUDGED)} {interval(row['low'], row['high'], JUDGED)}"


def describe_published(table: pd.DataFrame) -> str:
    """Count the words, and say the differences with their intervals."""
    rows = table[table.verdict != "not comparable"]
    counts = counted(rows.verdict)
    shown = telling(rows)
    differences = [
        f"{cell_words(row, shown)} {_judged(row)} {row['verdict']}"
        for row in rows.to_dict("records")
    ]
    return f"Differences to published numbers in points, {counts}. {listed(differences)}."


def switch_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Select what `switches` draws: each task's differences at the first choice of an epoch.

    The base's last epoch beside the choice is one of them; the table has the other choices, and the
    tasks that predict text, whose differences are not in points.
    """
    if "metric" in table:
        table = table[table.metric.map(unit_of) == "points"]
    if table.empty:
        return table
    parts = [part[part.epoch == first_choice(part)] for _, part in table.groupby(SUBJECT)]
    return table.loc[pd.concat(parts).index.sort_values()]


def switches(table: pd.DataFrame) -> Figure:
    """Draw what each switch of an ablation changes: one panel per task, one row per switch.

    That is the difference to the base runs of the same seeds, with the interval that belongs to the
    adjusted test. A filled mark has an adjusted p below 0.05, an open one has not.
    """
    if table.empty:
        return nothing("no switch and base share two seeds")
    groups = subjects(table)
    with plt.rc_context(STYLE):
        names = [_switch_names(part) for _, part in groups]
        heights = [0.3 + _forest_height(rows) for rows in names]
        figure, column = plt.subplots(
            len(groups),
            1,
            figsize=(WIDTH, 0.6 + sum(heights)),
            height_ratios=heights,
            sharex=True,
            squeeze=False,
        )
        for axes, rows, ((task, model), part) in zip(column[:, 0], names, groups, strict=True):
            found = _found(part)
            looks = [(SWITCH, "o") if own else (OPEN, "o") for own in found]
            _forest(axes, part, rows, looks, found)
            _equal_bands(axes, part)
            base = units.with_unit(units.metric_of(part), part.base.iloc[0])
            sick = _sick({"collapsed": _most(part, "collapsed_base")})
            shown = EPOCHS[part.epoch.iloc[0]]
            title = f"{task}, {model}: base {base} ({shown}), n={part.n.max()}{sick}"
            axes.set_title(title)
        column[-1, 0].set_xlabel("switched minus base, points (same seeds, adjusted interval)")
        for colour, face, word in (
            (SWITCH, SWITCH, "adjusted p < 0.05"),
            (OPEN, "white", "adjusted p higher, or not tested"),
        ):
            look = {"edgecolors": colour, "facecolors": face, "marker": "o"}
            column[0, 0].scatter([], [], label=word, **look)
        legend(figure, most=2)
    return figure


def _equal_bands(axes: plt.Axes, part: pd.DataFrame) -> None:
    """Draw the margin behind the switches that are asked to be equal to the base."""
    for place, (asks, margin) in enumerate(zip(part.asks, part.margin, strict=True)):
        if asks == "equivalence":
            band = {"color": "0.92", "zorder": 0, "linewidth": 0, "label": EQUAL_BAND}
            axes.barh(place, 200 * margin, left=-100 * margin, height=1.0, **band)


EQUAL_BAND = "margin of a switch that is asked to be equal; p is of lying within"
SWITCH = SIZE_OPEN
"""The colour of a switch of which something was shown."""


def _found(part: pd.DataFrame) -> list[bool]:
    """Tell of each row whether its difference survives the adjustment."""
    p = part["p_holm"] if "p_holm" in part else pd.Series(float("nan"), part.index)
    return (p < SIGNIFICANCE).tolist()


def _sick(row: dict) -> str:
    """Say in a row's name how many runs collapsed; nothing where none did."""
    count = row.get("collapsed", 0)
    return f", {count:g} collapsed" if count else ""


def _most(part: pd.DataFrame, column: str) -> int:
    return int(part[column].max()) if column in part else 0


def _switch_names(part: pd.DataFrame) -> list[str]:
    """Name a panel's rows: each switch once, with the most of its runs that collapsed."""
    sick = {name: _most(rows, "collapsed") for name, rows in part.groupby("switch", sort=False)}
    names = part.switch.map(lambda name: f"{name}{_sick({'collapsed': sick[name]})}")
    return names.where(~part.switch.duplicated(), "").tolist()


def _forest(
    axes: plt.Axes,
    rows: pd.DataFrame,
    names: list[str],
    looks: list[tuple],
    filled: Sequence[bool] | None = None,
) -> None:
    """Draw one row per difference: its marker, its interval, and both as text at the right.

    A 90 % interval, where there is one, is a thick line on the thin one of the 95 % interval.
    `filled` tells which markers are (None: all).
    """
    full = [True] * len(rows) if filled is None else filled
    both = "low90" in rows
    digits = JUDGED if both else 1
    for place, (row, (colour, marker), fill) in enumerate(
        zip(rows.itertuples(), looks, full, strict=True)
    ):
        middle, low, high = (100 * value for value in (row.difference, row.low, row.high))
        if low == low:
            axes.plot([low, high], [place, place], color=colour, linewidth=1.0 if both else 1.4)
        if both and row.low90 == row.low90:
            inner = [100 * row.low90, 100 * row.high90]
            axes.plot(inner, [place, place], color=colour, linewidth=2.8, solid_capstyle="butt")
        mark = {"edgecolors": colour, "facecolors": colour if fill else "white", "marker": marker}
        axes.scatter([middle], [place], s=22, zorder=3, **mark)
        text = f"{points(row.difference, digits)} {interval(row.low, row.high, digits)}"
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
        _forest(axes, rows, names, [WORDS[word] for word in rows.verdict])
        for place, margin in enumerate(100 * rows.margin):
            band = {"color": "0.92", "zorder": 0, "linewidth": 0}
            name = f"margin, ±{margin:g}" if rows.margin.nunique() == 1 else "margin of the task"
            label = name if place == 0 else None
            axes.barh(place, 2 * margin, left=-margin, height=1.0, label=label, **band)
        known = [(place, sd) for place, sd in enumerate(100 * rows.published_sd) if sd == sd]
        if known:
            places, sds = zip(*known, strict=True)
            bars = {"height": 0.5, "color": "0.75", "label": "± of the published number"}
            axes.barh(places, [2 * sd for sd in sds], left=[-sd for sd in sds], zorder=1, **bars)
        axes.set_xlabel(f"{ours}, points (thick: 90 %, thin: 95 %)")
        for word, (colour, marker) in WORDS.items():
            if word in set(rows.verdict):
                axes.scatter([], [], color=colour, marker=marker, label=word)
        legend(figure)
    return figure


def describe_verdicts(rows: pd.DataFrame) -> str:
    """Count the words, and say the differences with their intervals."""
    rows = rows[rows.verdict != "not comparable"]
    if rows.empty:
        return "Empty: no cell of this study can be compared with a published number."
    counts = counted(rows.verdict)
    differences = [
        f"{row['task']} {cell_name(row)} {_judged(row)} {row['verdict']}{_sick(row)}"
        for row in rows.to_dict("records")
    ]
    return f"Differences to published numbers in points, {counts}. {listed(differences)}."


def _effect(row: dict) -> str:
    """Name a switch, its difference and, where there is one, its interval."""
    span = interval(row["low"], row["high"])
    return " ".join(filter(None, [row["switch"], points(row["difference"]), span]))


def describe_switches(rows: pd.DataFrame) -> str:
    """Say what each switch changes at the first epoch choice of the table."""

    def say(part: pd.DataFrame) -> str:
        shown = switch_rows(part)
        said = (
            f"{_effect(row)}{' (adjusted p < 0.05)' if own else ''}{_sick(row)}"
            for row, own in zip(shown.to_dict("records"), _found(shown), strict=True)
        )
        return f"{shown.epoch.iloc[0]} epoch: {listed(said)}"

    text = "Switched minus base, in points with adjusted interval."
    return f"{text} {each_subject(rows, say)}"
