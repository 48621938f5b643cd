"""Figures of scores: over rank, trainable parameters, training rows, and bits of the base."""

import re
import textwrap
from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from loraudit.analysis.cells import (
    CELL,
    SUBJECT,
    all_choices,
    cell_name,
    choices_of,
    label_text,
)
from loraudit.analysis.cost import without_twins
from loraudit.report.alt_text import collapsed_text, each_subject, listed
from loraudit.report.figure_style import (
    EPOCHS,
    STYLE,
    TITLE,
    WIDTH,
    decades,
    legend,
    line_of,
    look,
    mark_collapsed,
    numbered,
    percent_axis,
    seeds,
    subjects,
)
from loraudit.studies.methods import METHODS, names_of
from loraudit.studies.spec import CHOICES

PUBLISHED_DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)), (0, (1, 3)))
FULL = "32"
"""The name of a base that is not quantised, on the axis of bits."""


def score_rows(tidy: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Select what the score figures draw: our runs, and published numbers as method "published".

    A published number is drawn only if a cell of the study can be compared with it; `label` then
    says whose number it is, `published_sd` is its ±.
    """
    made = all_choices(tidy)
    scored = [*made, *(f"{choice}_epoch" for choice in made)]
    scored = [name for name in scored if name in tidy]
    sick = [name for choice in made if (name := f"{choice}_collapsed") in tidy]
    columns = [*CELL, "seed", "metric", *scored, *sick, "parameters_trainable", "rows_train"]
    runs = tidy[columns].assign(published_sd=float("nan"))
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


def _spread(tidy: pd.DataFrame) -> str:
    """Say what the bars of a score figure are."""
    return f"bars: SD over {seeds(tidy[tidy.method != 'published'], CELL)}"


def _panels(tidy: pd.DataFrame, name: str) -> tuple[Figure, list]:
    """Make one row of panels per task and model, one column for each of two epoch choices.

    These are the first that all runs of a row made, and the last epoch; beside published numbers
    they are best and last, by which those were made.

    Returns the figure and a list of (axes, our runs of the panel, its published numbers, choice).
    """
    places = numbered(tidy.label[tidy.method == "published"])
    groups = subjects(tidy)
    shown = [_shown_choices(rows) for _, rows in groups]
    figure, grid = plt.subplots(
        len(groups),
        max(map(len, shown)),
        figsize=(WIDTH, 0.5 + 1.9 * len(groups)),
        sharey="row",
        squeeze=False,
    )
    panels = []
    for row, ((task, model), rows), choices in zip(grid, groups, shown, strict=True):
        for unused in row[len(choices) :]:
            unused.set_axis_off()
        ours = rows[rows.method != "published"]
        numbers = rows[rows.method == "published"]
        numbers = numbers.assign(place=numbers.label.map(places))
        for axes, epoch in zip(row, choices, strict=False):
            axes.set_title(textwrap.fill(f"{task}, {model}: {EPOCHS[epoch]}", TITLE))
            axes.set_xlabel(name)
            panels.append((axes, ours, numbers, epoch))
        percent_axis(row[0], f"validation {rows.metric.iloc[0]}")
    return figure, panels


def _shown_choices(rows: pd.DataFrame) -> list[str]:
    """Return the choices of an epoch whose panels a task and model have."""
    ours = rows[rows.method != "published"]
    choices = [c for c in choices_of(ours) if c != "selected" or len(ours) == len(rows)]
    return list(dict.fromkeys((choices[0], "last")))


def _series(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split adapter runs by what has a look of its own, in order of appearance.

    That is a target set and label; our LoRA and PEFT's share one, methods that move ranks do not.
    """
    adapters = runs[runs["rank"].notna() & (runs.method != "published")]
    keys = adapters.targets + adapters.label.map(lambda label: f" {label}" if label else "")
    keys += adapters.method.map(lambda name: "" if METHODS[name].twin else f" {name}")
    return [(key, adapters[keys == key]) for key in keys.drop_duplicates()]


def _line_name(part: pd.DataFrame) -> str:
    """Name a line by method, targets and label."""
    first = part.iloc[0]
    return f"{METHODS[first.method].label}, {first.targets} {first.label}".strip()


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


def score_vs_rank(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the rank: a line of means per target set and method, a dot per seed.

    Bars are the standard deviation over seeds (n - 1). Baselines are horizontal lines of means.
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "rank r")
        looks = numbered(key for key, _ in _series(tidy))
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
    scores = part.groupby("rank")[epoch].agg(["mean", "std"])
    series = look(number)
    axes.scatter(part["rank"] * shift, part[epoch], s=6, alpha=0.5, linewidths=0, **series)
    mark_collapsed(axes, part["rank"] * shift, part, epoch)
    axes.errorbar(
        scores.index * shift,
        scores["mean"],
        yerr=scores["std"],
        linestyle=line_of(method),
        markerfacecolor="white" if method == "peft" else series["color"],
        label=_line_name(part),
        **series,
    )


def _baseline_parts(runs: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Split baseline runs by method and label; returns method, name for the legend, and runs."""
    parts = []
    for method in names_of(trains="weights") + names_of(trains="head"):
        for label, part in runs[runs.method == method].groupby("label", sort=False):
            parts.append((method, f"{METHODS[method].label} {label}".strip(), part))
    return parts


def _baselines(axes: plt.Axes, runs: pd.DataFrame, epoch: str) -> None:
    for method, name, part in _baseline_parts(runs):
        mean = part[epoch].mean()
        axes.axhline(mean, color="0.35", linestyle=line_of(method), linewidth=1, label=name)
        ranks = runs["rank"]  # a baseline has none: its runs stand at the left
        mark_collapsed(axes, pd.Series(ranks.min() / 1.15, part.index), part, epoch)


def score_vs_rows(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the number of training rows: a line per method, rank and target set.

    Dots are means over seeds, bars the standard deviation (n - 1).
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "training rows")
        keys = ["method", "rank", "targets"]
        ours = tidy[tidy.method != "published"][keys].drop_duplicates().itertuples(index=False)
        looks = numbered(_method_name(*cell) for cell in ours)
        for axes, runs, numbers, epoch in panels:
            for cell, part in runs.groupby(keys, dropna=False, sort=False):
                method, name = cell[0], _method_name(*cell)
                scores = part.groupby("rows_train")[epoch].agg(["mean", "std"])
                axes.errorbar(
                    scores.index,
                    scores["mean"],
                    yerr=scores["std"],
                    markerfacecolor="none" if method == "peft" else None,
                    linestyle=line_of(method),
                    label=name,
                    **look(looks[name]),
                )
                mark_collapsed(axes, part.rows_train, part, epoch)
            _published(axes, numbers, "rows_train", epoch)
            decades(axes, runs.rows_train)
        legend(figure, _spread(tidy))
    return figure


def _method_name(method: str, rank: float, targets: str | None) -> str:
    return METHODS[method].label + ("" if pd.isna(rank) else f", r{rank:g} {targets}")


def score_vs_parameters(tidy: pd.DataFrame) -> Figure:
    """Draw the score over the trainable parameters (head included, log axis), a dot per cell.

    Dots are means over seeds, bars the standard deviation (n - 1).
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(tidy, "trainable parameters, head included")
        names = [key for key, _ in _series(tidy)] + [name for _, name, _ in _baseline_parts(tidy)]
        looks = numbered(names)
        for axes, runs, numbers, epoch in panels:
            lines = [
                (_line_name(part), part, looks[key], method)
                for key, rows in _series(runs)
                for method, part in rows.groupby("method", sort=False)
            ]
            lines += [
                (name, part, looks[name], method) for method, name, part in _baseline_parts(runs)
            ]
            for label, part, number, method in lines:
                scores = part.groupby("parameters_trainable")[epoch].agg(["mean", "std"])
                axes.errorbar(
                    scores.index,
                    scores["mean"],
                    yerr=scores["std"],
                    linestyle=line_of(method) if METHODS[method].trains == "adapter" else "none",
                    markerfacecolor="none" if method == "peft" else None,
                    markersize=4 if method != "peft" else 7,
                    label=label,
                    **look(number),
                )
                mark_collapsed(axes, part.parameters_trainable, part, epoch)
            _published(axes, numbers, "parameters_trainable", epoch)
            decades(axes, runs.parameters_trainable)
        legend(figure, _spread(tidy))
    return figure


def bits_rows(tidy: pd.DataFrame) -> pd.DataFrame:
    """Select what `score_vs_bits` draws: the runs, each with the name of its line.

    A line is a cell of the study with the bits left out of its name.
    """
    columns = [*CELL, "run", "seed", "metric", "base_bits", *choices_of(tidy), "last_collapsed"]
    rows = tidy[[name for name in columns if name in tidy]].copy()
    labels = [re.sub(r"base_bits(None|\d+)-?", "", label_text(label)) for label in rows.label]
    cells = rows.assign(label=[label.strip("-") for label in labels]).to_dict("records")
    return rows.assign(line=[cell_name(cell) for cell in cells])


def score_vs_bits(table: pd.DataFrame) -> Figure:
    """Draw the last epoch's score over the bits of the frozen base: a line of means per cell.

    Dots are seeds, bars the standard deviation over seeds (n - 1). Lines with one base have a
    marker alone.
    """
    bits = sorted(table.base_bits.dropna().unique())
    names = [f"{value:g}" for value in bits] + ([FULL] if table.base_bits.isna().any() else [])
    place = {name: number for number, name in enumerate(names)}
    table = table.assign(
        place=[place[FULL if value != value else f"{value:g}"] for value in table.base_bits]
    )
    looks = {name: number for number, name in enumerate(table.line.unique())}
    groups = subjects(table)
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.9 + 2.2 * len(groups))
        figure, grid = plt.subplots(len(groups), 1, figsize=size, squeeze=False)
        for (axes,), ((task, model), part) in zip(grid, groups, strict=True):
            for name, line in part.groupby("line", sort=False):
                _bits_line(axes, line, name, looks[name], len(looks))
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
            axes.set_xlabel("bits of a frozen weight")
            axes.set_title(f"{task}, {model}", loc="left")
            percent_axis(axes, f"last-epoch {part.metric.iloc[0]}")
        legend(figure, f"bars: SD over {seeds(table, CELL)}", most=2)
    return figure


def _bits_line(axes: plt.Axes, line: pd.DataFrame, name: str, number: int, lines: int) -> None:
    """Draw one line, moved a little sideways so that bars do not hide each other."""
    shift = min(0.12, 0.6 / lines) * (number - (lines - 1) / 2)
    scores = line.groupby("place")["last"].agg(["mean", "std"])
    series = look(number)
    axes.scatter(line.place + shift, line["last"], s=5, alpha=0.5, linewidths=0, **series)
    mark_collapsed(axes, line.place + shift, line, "last")
    error = scores["std"]
    axes.errorbar(scores.index + shift, scores["mean"], yerr=error, label=name, **series)


def describe_score_vs_rank(rows: pd.DataFrame) -> str:
    """Say the mean scores of each line by rank."""
    return _describe_scores(rows, "rank", " at r={}")


def describe_score_vs_parameters(rows: pd.DataFrame) -> str:
    """Say the mean scores of each line by trainable parameters."""
    return _describe_scores(rows, "parameters_trainable", " with {} parameters")


def describe_score_vs_rows(rows: pd.DataFrame) -> str:
    """Say the mean scores of each line by training rows."""
    return _describe_scores(rows, "rows_train", " on {} rows")


def _describe_scores(rows: pd.DataFrame, x: str, at: str) -> str:
    """Say each line's last-epoch means; of published numbers, those of their own epoch."""

    def say(part: pd.DataFrame) -> str:
        lines = []
        for name, line in _described_lines(part):
            score = line["last"]
            if (line.method == "published").all():
                own = line[[choice for choice in CHOICES if choice in line]]
                score = own.astype(float).bfill(axis=1).iloc[:, 0]
            means = score.groupby(line[x], dropna=False).mean()
            values = [
                f"{100 * mean:.1f}" + ("" if pd.isna(place) else at.format(f"{place:,.0f}"))
                for place, mean in means.items()
            ]
            lines.append(f"{name} {', '.join(values)}")
        return listed(lines, 6)

    sick = collapsed_text(rows[rows.method != "published"])
    return f"Mean scores of the last epoch in percent. {each_subject(rows, say)}{sick}"


def _described_lines(rows: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Split a score figure's rows into its lines; PEFT's twins of ours are left out."""
    for (method, targets, label), part in without_twins(rows).groupby(
        ["method", "targets", "label"], dropna=False, sort=False
    ):
        if method == "published":
            yield f"published {label}", part
        else:
            names = [METHODS[method].label, targets, label]
            yield " ".join(str(name) for name in names if name and not pd.isna(name)), part


def describe_score_vs_bits(rows: pd.DataFrame) -> str:
    """Say the mean scores of each line by the bits of the base."""

    def say(part: pd.DataFrame) -> str:
        lines = []
        for name, line in part.groupby("line", sort=False):
            means = line.groupby("base_bits", dropna=False)["last"].mean()
            at = ["full precision" if bits != bits else f"{bits:g} bits" for bits in means.index]
            values = [f"{100 * m:.1f} at {a}" for m, a in zip(means, at, strict=True)]
            lines.append(f"{name} {', '.join(values)}")
        return listed(lines, 6)

    said = each_subject(rows, say)
    return f"Mean scores of the last epoch in percent. {said}{collapsed_text(rows)}"
