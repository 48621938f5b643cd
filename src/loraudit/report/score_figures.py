"""Figures of scores: over rank and trainable parameters, training rows, and bits of the base."""

import math
import re
import textwrap
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from loraudit.analysis.cells import (
    CELL,
    SUBJECT,
    all_choices,
    cell_name,
    label_text,
)
from loraudit.analysis.cost import without_twins
from loraudit.report import units
from loraudit.report.alt_text import collapsed_text, each_subject, listed
from loraudit.report.figure_style import (
    COLUMN,
    SAME_SIZE,
    SMALL,
    STYLE,
    TITLE,
    WIDTH,
    decades,
    draw_means,
    epoch_name,
    legend,
    mark_collapsed,
    numbered,
    score_axis,
    shown_choice,
    spread_out,
    spread_text,
    subjects,
)
from loraudit.report.formatting import shown_name, shown_set
from loraudit.report.looks import Look, cell_looks, lines_apart
from loraudit.studies.methods import METHODS, names_of
from loraudit.studies.spec import CHOICES

PUBLISHED_DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)), (0, (1, 3)))
FAR = 0.5
FOOT = 0.15
"""A head or majority class further below a panel than `FAR` of its height is said in words, at its
foot, of which each takes the share `FOOT`."""
MANY_LINES, BESIDE = 4, 0.07
"""From how many lines on those of one rank are drawn beside each other, in higher panels, and how
far apart, as a share of a doubling of the rank."""
FULL = "32"
"""The name of a base that is not quantised, on the axis of bits."""


def score_rows(tidy: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Select what the score figures draw: our runs, and published numbers as method "published".

    `parameters` counts those that are trained beside the head, and is missing where there are none.
    A published number is drawn only if a cell of the study can be compared with it; `label` then
    says whose number it is, `published_sd` is its ±.
    """
    made = all_choices(tidy)
    scored = [*made, *(f"{choice}_epoch" for choice in made)]
    scored = [name for name in scored if name in tidy]
    sick = [name for choice in made if (name := f"{choice}_collapsed") in tidy]
    kept = [name for name in ("rows_validation", "majority") if name in tidy]
    columns = [*CELL, "seed", "metric", *scored, *sick, "rows_train", *kept]
    beside = tidy.parameters_trainable - tidy.parameters_head
    runs = tidy[columns].assign(parameters=beside.where(beside > 0), published_sd=float("nan"))
    first = runs.drop_duplicates(CELL).fillna({"label": ""})
    comparable = verdicts[verdicts.verdict != "not comparable"] if len(verdicts) else verdicts
    rows = []
    for row in comparable.to_dict("records"):
        method = METHODS[row["method"]].published_as or row["method"]
        bare = METHODS[method].label.split(" (")[0]  # without "(ours)"
        name = f"{bare} {label_text(row['targets'])}".strip()
        row["label"] = label_text(row["label"])
        same = pd.Series(True, first.index)
        for key in [*CELL, "metric"]:
            same &= first[key].isna() if pd.isna(row[key]) else first[key] == row[key]
        for cell in first[same].to_dict("records"):
            theirs = {"method": "published", "label": f"{row['published']}, {name}", "seed": None}
            scores = dict.fromkeys(scored) | {row["epoch"]: row["published_value"]}
            scores |= dict.fromkeys(sick, False)
            rows.append({**cell, **theirs, **scores, "published_sd": row["published_sd"]})
    if not rows:
        return runs
    numbers = pd.DataFrame(rows).drop_duplicates([*SUBJECT, "label", "rank", "rows_train"])
    return pd.concat([runs, numbers.astype(runs.dtypes.to_dict(), errors="ignore")])


def _ours(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.method != "published"]


def _shown(rows: pd.DataFrame) -> str:
    """Return the choice of an epoch that the panel of a task and model shows.

    Beside published numbers it is theirs: the first choice by which any of them was made.
    """
    numbers = rows[rows.method == "published"]
    theirs = [choice for choice in CHOICES if choice in rows and numbers[choice].notna().any()]
    return theirs[0] if theirs else shown_choice(_ours(rows))


def _scored(rows: pd.DataFrame) -> str:
    """Name the score of a task and model: "validation accuracy, best epoch"."""
    name = epoch_name(_ours(rows), _shown(rows))
    return f"validation {rows.metric.iloc[0]}, {name}"


def _lines(runs: pd.DataFrame) -> list[tuple[str, Look, pd.DataFrame]]:
    """Split adapter runs into lines: name, look and runs of each method, target set and label.

    A method's are in the order of what they train. A line looks as its cell of the highest rank;
    many of one colour are told apart by its shade.
    """
    adapters = runs[runs["rank"].notna() & (runs.method != "published")]
    keys = ["method", "targets", "label"]
    parts = [part for _, part in adapters.groupby(keys, dropna=False, sort=False)]
    methods = numbered(adapters.method)
    parts.sort(key=lambda part: (methods[part.method.iloc[0]], _size(part)))
    highest = [part.loc[part["rank"].idxmax()].to_dict() for part in parts]
    looks = cell_looks(adapters.to_dict("records"))
    apart = lines_apart([looks[cell_name(cell)] for cell in highest])
    names = [shown_set(line["method"], line["targets"], line["label"]) for line in highest]
    return list(zip(names, apart, parts, strict=True))


def _size(line: pd.DataFrame) -> float:
    """Return the trained parameters per rank of a line, which grow with its target set."""
    return round((line.parameters / line["rank"]).median())


def _baselines(runs: pd.DataFrame, trains: str) -> list[tuple[str, Look, pd.DataFrame]]:
    """Split runs that train weights, or the head: name, look and runs of each method and label."""
    parts = []
    for method in names_of(trains=trains):
        own = runs[runs.method == method]
        looks = cell_looks(own.to_dict("records"))
        for _, part in own.groupby("label", sort=False):
            name = cell_name(part.iloc[0].to_dict())
            parts.append((shown_name(name), looks[name], part))
    return parts


def _band(axes: plt.Axes, name: str, look: Look, scores: pd.Series) -> None:
    """Draw a baseline across a panel: a line at the mean, a band from lowest to highest seed."""
    line = {"color": look.colour, "linestyle": look.line, "linewidth": 1}
    axes.axhline(scores.mean(), zorder=1.5, **line)
    axes.plot([], [], label=name, **look.marks(), linestyle=look.line, linewidth=1)
    axes.axhspan(scores.min(), scores.max(), color=look.colour, alpha=0.15, linewidth=0, zorder=0)


def _published(axes: plt.Axes, numbers: pd.DataFrame, x: str, epoch: str) -> None:
    """Draw published numbers as lines with their ± as a band: across where they have one x."""
    scored = numbers[numbers[epoch].notna()]
    for (name, place), rows in scored.groupby(["label", "place"], sort=False):
        dash = PUBLISHED_DASHES[place % len(PUBLISHED_DASHES)]
        line = {"color": "0.15", "linestyle": dash, "linewidth": 1, "label": f"{name}, published"}
        band = {"color": "0.5", "alpha": 0.18, "linewidth": 0, "zorder": 0}
        rows = rows.sort_values(x, kind="stable")
        low, high = rows[epoch] - rows.published_sd, rows[epoch] + rows.published_sd
        if rows[x].nunique() > 1:
            axes.plot(rows[x], rows[epoch], **line)
            axes.fill_between(rows[x], low, high, **band)
        else:
            axes.axhline(rows[epoch].iloc[0], **line)
            axes.axhspan(low.fillna(rows[epoch]).iloc[0], high.fillna(rows[epoch]).iloc[0], **band)


def _placed(tidy: pd.DataFrame) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Return of each task and model its name, our runs, and its numbers with a `place` each."""
    places = numbered(tidy.label[tidy.method == "published"])
    parts = []
    for (task, model), rows in subjects(tidy):
        numbers = rows[rows.method == "published"]
        numbers = numbers.assign(place=numbers.label.map(places))
        parts.append((f"{task}, {model}", _ours(rows), numbers))
    return parts


def hero_axes(rows: pd.DataFrame) -> list[str]:
    """Return what the scores can be drawn over: "rank", "parameters", both or none."""
    cells = without_twins(_ours(rows)).drop_duplicates(CELL)
    return [
        name
        for name, factor in {"rank": 1.0, "parameters": SAME_SIZE}.items()
        if any(spread_out(part[name], factor) for _, part in cells.groupby(SUBJECT))
    ]


def no_hero(rows: pd.DataFrame) -> str:
    """Say why scores are not drawn over rank and parameters; "" where they can be."""
    return "" if hero_axes(rows) else "most cells have one rank and about as many parameters"


HERO_NAMES = {"rank": "rank", "parameters": "parameters without head"}


def hero(tidy: pd.DataFrame) -> Figure:
    """Draw the score over rank and over trainable parameters, a row of panels per task and model.

    Dots are seeds, marks means. What has no rank, or trains nothing but the head, is a band
    from the lowest to the highest seed. The dotted line is the
    score of the majority class, the bar at the side the sampling error of the validation rows.
    """
    parts, shown = _placed(tidy), hero_axes(tidy) or ["parameters"]
    across = 1 if len(parts) < 3 else 2  # tasks beside each other
    down = math.ceil(len(parts) / across)
    with plt.rc_context({**STYLE, "axes.titlesize": 7, "axes.labelsize": 7}):
        many = any(_aside(_lines(runs)) for _, runs, _ in parts)
        size = (COLUMN * across, 0.75 + (2.0 if many else 1.55) * down)
        figure, grid = plt.subplots(down, across * len(shown), figsize=size, squeeze=False)
        panels = grid.reshape(down * across, len(shown))
        for unused in panels[len(parts) :].flat:
            unused.set_axis_off()
        for row, (name, runs, numbers) in zip(panels, parts, strict=False):
            _hero_row(dict(zip(shown, row, strict=True)), name, runs, numbers)
        legend(figure, spread_text(_ours(tidy), CELL), most=2 * across)
    return figure


def _hero_row(
    row: dict[str, plt.Axes], name: str, runs: pd.DataFrame, numbers: pd.DataFrame
) -> None:
    """Draw the panels of one task and model, `row`, by what they are drawn over."""
    both = pd.concat([runs, numbers])
    choice = _shown(both)
    lines = _lines(runs)
    for x, axes in row.items():
        axes.sharey(next(iter(row.values())))
        aside = _aside(lines) if x == "rank" else {}
        for label, look, part in lines:
            at = part[x] * aside.get(_place(look), 1)
            draw_means(axes, at, part[choice], look, label)
            mark_collapsed(axes, at, part, choice)
        for label, look, part in _baselines(runs, "weights"):
            if part[x].isna().all():
                _band(axes, label, look, part[choice])
            else:
                draw_means(axes, part[x], part[choice], look, label, joined=False)
                mark_collapsed(axes, part[x], part, choice)
        _published(axes, numbers, x, choice)
        axes.set_xlabel(HERO_NAMES[x])
    if "rank" in row:
        _rank_axis(row["rank"], runs)
    if "parameters" in row:
        decades(row["parameters"], runs.parameters.dropna(), most=4)
    first, *others = row.values()
    for axes in others:
        axes.tick_params(labelleft=False)
    _sampling_error([first, *others][-1], runs, choice)
    heads = [(label, look, part[choice]) for label, look, part in _baselines(runs, "head")]
    _below(row.values(), runs, heads)
    first.set_title(textwrap.fill(name, TITLE), loc="left")
    metric = runs.metric.iloc[0]
    score_axis(first, f"{metric}, {epoch_name(runs, choice)}", metric)


def _place(look: Look) -> tuple:
    """Return what a line shares with PEFT's twins of it, and with no other."""
    return look.marker, look.colour


def _aside(lines: list[tuple[str, Look, pd.DataFrame]]) -> dict[tuple, float]:
    """Return the factors by which lines' ranks are moved, so that many do not hide each other."""
    places = list(dict.fromkeys(_place(look) for _, look, _ in lines))
    if len(places) < MANY_LINES:
        return {}
    middle = (len(places) - 1) / 2
    return {place: 2 ** (BESIDE * (n - middle)) for n, place in enumerate(places)}


def _rank_axis(axes: plt.Axes, runs: pd.DataFrame) -> None:
    """Make x the rank, in powers of two, with a tick at each that was trained (eight at most)."""
    ranks = _ticked(runs["rank"].dropna().unique())
    axes.set_xscale("log", base=2)
    step = math.ceil(len(ranks) / 8)
    axes.set_xticks(ranks[::step], [f"{rank:g}" for rank in ranks[::step]])
    axes.xaxis.set_minor_locator(NullLocator())


def _ticked(ranks: Iterable[float]) -> list[float]:
    """Return the ranks that have a tick: none next to another, and powers of two before others."""
    ticked: list[float] = []
    for rank in sorted(ranks, key=lambda rank: (not math.log2(rank).is_integer(), rank)):
        if all(abs(math.log2(rank / other)) >= 0.5 for other in ticked):
            ticked.append(rank)
    return sorted(ticked)


def _below(
    row: Iterable[plt.Axes], runs: pd.DataFrame, low: Iterable[tuple[str, Look, pd.Series]] = ()
) -> None:
    """Draw what scores low: heads without adapter, and the majority class where it is known.

    `row` are panels of one y axis that have all else, `low` the names, looks and scores of the
    former. What is more than `FAR` of their height below them is said in words at their foot, and
    the axis starts above it.
    """
    (first, *others), said, metric = row, [], units.metric_of(runs)
    for name, look, scores in low:
        if _near(first, scores.max()):
            for axes in (first, *others):
                _band(axes, name, look, scores)
        else:
            said.append(f"{name}: {units.with_unit(metric, scores.mean())}")
    for score in _majority_scores(runs).head(1):
        if _near(first, score):
            line = {"color": "0", "linestyle": ":", "linewidth": 1, "label": MAJORITY}
            for axes in (first, *others):
                axes.axhline(score, **line)
        else:
            said.append(f"{MAJORITY}: {units.with_unit(metric, score)}")
    if said:
        bottom, top = first.get_ylim()
        first.set_ylim(bottom - FOOT * len(said) * (top - bottom), top)
        place = {"transform": first.transAxes, "ha": "left", "va": "bottom", "fontsize": SMALL}
        first.text(0.03, 0.02, "\n".join(said), **place)


MAJORITY = "majority class"


def _near(axes: plt.Axes, score: float) -> bool:
    """Tell whether a score is near enough to what a panel shows to be drawn in it."""
    low, high = axes.get_ylim()
    return low - score <= FAR * (high - low)


def _majority_scores(runs: pd.DataFrame) -> pd.Series:
    """Return what is known of the majority class's score: a value per run, or nothing."""
    return runs["majority"].dropna() if "majority" in runs else pd.Series(dtype=float)


def sampling_error(runs: pd.DataFrame, choice: str) -> float:
    """Return one standard error of an accuracy by the choice of validation rows: sqrt(p q / n).

    p is the mean of the best cell, n the fewest validation rows of a run. NaN for other metrics.
    """
    if "rows_validation" not in runs or runs.metric.iloc[0] != "accuracy":
        return float("nan")
    score = runs.groupby(CELL, dropna=False)[choice].mean().max()
    return float(np.sqrt(score * (1 - score) / runs.rows_validation.min()))


def _sampling_error(axes: plt.Axes, runs: pd.DataFrame, choice: str) -> None:
    """Draw the sampling error of the rows as a bar right of a panel, at the best cell's mean."""
    error = sampling_error(runs, choice)
    if not error > 0:
        return
    score = runs.groupby(CELL, dropna=False)[choice].mean().max()
    axes.errorbar(
        [1.05],
        [score],
        yerr=[error],
        transform=axes.get_yaxis_transform(),
        clip_on=False,
        color="0",
        linewidth=1,
        capsize=2,
        label="±1 SE of the rows",
    )


def score_vs_rows(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the number of training rows: a line per method, rank and target set.

    Dots are seeds, marks means.
    """
    keys = ["method", "rank", "targets"]
    parts = _placed(tidy)
    ours = _ours(tidy).assign(label="")
    looks = cell_looks(ours.drop_duplicates(keys).to_dict("records"))
    with plt.rc_context(STYLE):
        across = min(2, len(parts))
        down = math.ceil(len(parts) / across)
        size = (WIDTH, 0.6 + 1.9 * down)
        figure, grid = plt.subplots(down, across, figsize=size, squeeze=False)
        for unused in grid.flat[len(parts) :]:
            unused.set_axis_off()
        for axes, (name, runs, numbers) in zip(grid.flat, parts, strict=False):
            both = pd.concat([runs, numbers])
            choice = _shown(both)
            for _, part in runs.groupby(keys, dropna=False, sort=False):
                cell = cell_name({**part.iloc[0].to_dict(), "label": ""})
                draw_means(axes, part.rows_train, part[choice], looks[cell], shown_name(cell))
                mark_collapsed(axes, part.rows_train, part, choice)
            _published(axes, numbers, "rows_train", choice)
            _below([axes], runs)
            decades(axes, runs.rows_train)
            axes.set_title(textwrap.fill(name, TITLE), loc="left")
            axes.set_xlabel("training rows")
            score_axis(axes, textwrap.fill(_scored(both), 28), both.metric.iloc[0])
        legend(figure, spread_text(_ours(tidy), [*CELL, "rows_train"]))
    return figure


def bits_rows(tidy: pd.DataFrame) -> pd.DataFrame:
    """Select what `score_vs_bits` draws: the runs, each with the name of its group.

    Cells that differ in the bits alone have one name: that of the cell without the bits.
    """
    kept = all_choices(tidy)
    sick = [f"{choice}_collapsed" for choice in kept]
    made = [f"{choice}_epoch" for choice in kept]
    columns = [*CELL, "run", "seed", "metric", "base_bits", *kept, *made, *sick, "majority"]
    rows = tidy[[name for name in columns if name in tidy]].copy()
    labels = [re.sub(r"base_bits(None|\d+)-?", "", label_text(label)) for label in rows.label]
    cells = rows.assign(label=[label.strip("-") for label in labels]).to_dict("records")
    return rows.assign(line=[cell_name(cell) for cell in cells])


def _bits(table: pd.DataFrame) -> list[str]:
    known = [f"{value:g}" for value in sorted(table.base_bits.dropna().unique())]
    return known + ([FULL] if table.base_bits.isna().any() else [])


def no_bits(rows: pd.DataFrame) -> str:
    """Say why scores are not drawn over bits; "" where they can be."""
    return "" if len(_bits(rows)) > 1 else "all bases have as many bits"


def score_vs_bits(table: pd.DataFrame) -> Figure:
    """Draw the score over the bits of the frozen base: groups of cells, a column of dots for each.

    Dots are seeds, marks means.
    """
    names = _bits(table)
    place = {name: number for number, name in enumerate(names)}
    table = table.assign(
        place=[place[FULL if value != value else f"{value:g}"] for value in table.base_bits]
    )
    looks = _bits_looks(table)
    order = {name: number for number, name in enumerate(looks)}
    groups = subjects(table)
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.9 + 2.2 * len(groups))
        figure, grid = plt.subplots(len(groups), 1, figsize=size, squeeze=False)
        for (axes,), ((task, model), part) in zip(grid, groups, strict=True):
            choice = shown_choice(part)
            for name, line in part.groupby("line", sort=False):
                step = min(0.12, 0.7 / len(order))
                at = line.place + step * (order[name] - (len(order) - 1) / 2)
                draw_means(axes, at, line[choice], looks[name], shown_name(name), joined=False)
                mark_collapsed(axes, at, line, choice)
            _below([axes], part)
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
            for edge in range(len(names) - 1):
                axes.axvline(edge + 0.5, color="0.8", linewidth=0.6)
            axes.grid(axis="x", visible=False)
            axes.set_xlabel("bits of a frozen weight")
            axes.set_title(f"{task}, {model}", loc="left")
            score_axis(axes, _scored(part), part.metric.iloc[0])
        legend(figure, spread_text(table, CELL), most=2)
    return figure


def _bits_looks(table: pd.DataFrame) -> dict[str, Look]:
    """Return the look of each group of cells that differ in the bits alone: that of its first."""
    looks = cell_looks(table.to_dict("records"))
    firsts = table.drop_duplicates("line").to_dict("records")
    return {cell["line"]: looks[cell_name(cell)] for cell in firsts}


def describe_hero(rows: pd.DataFrame) -> str:
    """Say the mean scores of each line by rank, or by parameters where ranks do not differ."""
    if "rank" in hero_axes(rows):
        return _describe_scores(rows, "rank", " at r={}")
    return _describe_scores(rows, "parameters", " with {} parameters")


def describe_score_vs_rows(rows: pd.DataFrame) -> str:
    """Say the mean scores of each line by training rows."""
    return _describe_scores(rows, "rows_train", " on {} rows")


def _describe_scores(rows: pd.DataFrame, x: str, at: str) -> str:
    """Say each line's means at the choice of an epoch that is drawn."""

    def say(part: pd.DataFrame) -> str:
        choice, lines, metric = _shown(part), [], units.metric_of(part)
        for name, line in _described_lines(part):
            means = line[choice].astype(float).groupby(line[x], dropna=False).mean().dropna()
            values = [
                units.score(metric, mean) + ("" if pd.isna(place) else at.format(f"{place:,.0f}"))
                for place, mean in means.items()
            ]
            if values:
                lines.append(f"{name} {', '.join(values)}")
        majority = _majority_scores(part)
        if len(majority):
            lines.append(f"the majority class {100 * majority.iloc[0]:.1f}")
        return f"{epoch_name(_ours(part), choice)}, {listed(lines, 6)}"

    sick = collapsed_text(_ours(rows), _shown(rows))
    return f"Mean scores in percent. {each_subject(rows, say)}{sick}"


def _described_lines(rows: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Split a score figure's rows into its lines; PEFT's twins of ours are left out."""
    for (method, targets, label), part in without_twins(rows).groupby(
        ["method", "targets", "label"], dropna=False, sort=False
    ):
        if method == "published":
            yield f"published {label}", part
        else:
            yield shown_set(method, targets, label), part


def describe_score_vs_bits(rows: pd.DataFrame) -> str:
    """Say the mean scores of each group by the bits of the base."""

    def say(part: pd.DataFrame) -> str:
        choice, lines, metric = shown_choice(part), [], units.metric_of(part)
        for name, line in part.groupby("line", sort=False):
            means = line.groupby("base_bits", dropna=False)[choice].mean()
            at = ["full precision" if bits != bits else f"{bits:g} bits" for bits in means.index]
            values = [
                f"{units.score(metric, mean)} at {a}" for mean, a in zip(means, at, strict=True)
            ]
            lines.append(f"{name} {', '.join(values)}")
        return f"{epoch_name(part, choice)}, {listed(lines, 6)}"

    sick = collapsed_text(rows, shown_choice(rows))
    return f"Mean scores in percent. {each_subject(rows, say)}{sick}"
