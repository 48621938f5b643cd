"""What stands first on a study's page: its answer in a few sentences, and how far to believe it."""

from typing import NamedTuple

import pandas as pd

from loraudit.analysis.cells import (
    CELL,
    SUBJECT,
    choices_of,
    collapsed,
    first_choice,
)
from loraudit.analysis.contrasts import Named, method_contrasts, named_cells
from loraudit.analysis.cost import without_twins
from loraudit.analysis.judging import telling
from loraudit.report import units
from loraudit.report.alt_text import listed
from loraudit.report.claim_tables import effect_words, verdict_text
from loraudit.report.formatting import (
    JUDGED,
    counted,
    interval_or_why,
    of_which,
    points,
    shown_cell,
    shown_cells,
    shown_name,
    values_text,
)
from loraudit.report.formatting import cell_words as cell_words_of
from loraudit.report.page_facts import edge_fact, largest_switch, several_subjects, sick_facts
from loraudit.report.tables import fewest, found_text
from loraudit.studies.advice import advice, is_untuned
from loraudit.studies.claims import QUANTITIES
from loraudit.studies.methods import METHODS
from loraudit.studies.scores import sign, unit_of
from loraudit.studies.study import Study
from loraudit.studies.study_file import Contrast

MOST_CLAIMS = 5
"""Claims that are named at the top; the table below has all."""
MOST_CHOSEN = 2
"""Cells of one setting that are named at the top."""
MOST_CONTRASTS = 3
"""Differences that are named at the top; the table below has all."""

BASELINES = ("full", "full_saved", "head", "probe")
"""The methods that the best adapter is set beside, the first cell of each that the study has."""


class Verdict(NamedTuple):
    """A verdict's words, and what it is of with its numbers."""

    word: str
    text: str


class Answer(NamedTuple):
    """A sentence of the answer, with verdicts that are listed below it."""

    text: str
    verdicts: tuple[Verdict, ...] = ()


def answer(study: Study, tables: dict[str, pd.DataFrame]) -> list[Answer]:
    """Answer a study's question from its tables, each number with its interval and n.

    Args:
        study: as planned.
        tables: the tidy tables runs, twins and crosscheck, and the study's tables by name.

    Returns:
        Up to six: the claims that the study asks about, published numbers, switches, the study's
        contrasts (of a study that asks for none of these, the settings that its cells chose), the
        best adapter beside full fine-tuning and what trains no adapter, and the twins of two codes.
    """
    asked = [
        _claims(tables.get("claims", pd.DataFrame())),
        _published(tables["verdicts"]),
        _switch(tables["switches"]),
        _contrasts(study, tables["pairs"]),
    ]
    if not any(one.text for one in asked):
        asked.append(_chosen(tables.get("tuning", pd.DataFrame())))
    found = [
        *asked,
        best_cells(tables["runs"], untuned=is_untuned(study)),
        _twins(tables.get("twins", pd.DataFrame()), tables["pairs"], tables["crosscheck"]),
    ]
    return [one for one in found if one.text]


def _claims(rows: pd.DataFrame) -> Answer:
    asked = rows[rows.listed.astype(bool)] if len(rows) else rows
    if asked.empty:
        return Answer("")
    records = sorted(asked.to_dict("records"), key=_decided)
    words = pd.Series([verdict_text(row) for row in records])
    counts = counted(words, in_order=True)
    several = several_subjects(asked)
    shown = [Verdict(verdict_text(row), _claim(row, several)) for row in records[:MOST_CLAIMS]]
    many = len(records) > 1
    return Answer(
        f"Of the {len(records)} claims that the study asks about: {counts}."
        if many
        else "The claim that the study asks about:",
        tuple(shown),
    )


def _decided(row: dict) -> int:
    return ("contradicted", "supported", "undecided", "not tested").index(row["verdict"])


def _claim(row: dict, with_task: bool = False) -> str:
    where = f"{row['task']} ({row['model']}): " if with_task else ""
    statement = where + row["statement"].rstrip(".")
    effect = effect_words(row)
    if effect and row["unit"] == "number":  # a bare number does not say what it is of
        statement += f" ({QUANTITIES[row['quantity']].label}; {shown_cells(row['part'])})"
    return f"{statement}: {effect}, n = {row['n']:g}" if effect else statement


def _published(verdicts: pd.DataFrame) -> Answer:
    if verdicts.empty:
        return Answer("")
    counts = counted(verdicts.verdict)
    tested = verdicts[verdicts.difference.notna()]
    if tested.empty:
        return Answer(f"Beside published numbers: {counts}.")
    row = tested.loc[tested.difference.abs().idxmax()]
    another = int((tested.protocol == "another").sum())
    under = f" ({another} of them under another protocol)" if another else ""
    return Answer(
        f"Beside published numbers: {counts}{under}. The largest difference is {row.task} "
        f"{shown_cell(row.to_dict())} beside {row.published}: {points(row.difference, JUDGED)} "
        f"points {interval_or_why(row.low, row.high, row.n, JUDGED)}, n = {row.n:g}, {row.verdict}."
    )


def published_answer(rows: pd.DataFrame) -> Answer:
    """Count the words of `judging.published_verdicts`, and say each difference."""
    counts = counted(rows.verdict)
    telling_apart = telling(rows)
    said = [
        Verdict(
            row["verdict"],
            f"{cell_words_of(row, telling_apart)}: {points(row['difference'], JUDGED)} points "
            f"{interval_or_why(row['low'], row['high'], row['n'], JUDGED)}, n = {row['n']:g}",
        )
        for row in rows.to_dict("records")
        if row["difference"] == row["difference"]
    ]
    another = int((rows.protocol == "another").sum())
    under = f" ({another} of them beside a number of another protocol)" if another else ""
    return Answer(f"Beside published numbers: {counts}{under}.", tuple(said[:MOST_CLAIMS]))


def _switch(effects: pd.DataFrame) -> Answer:
    text = largest_switch(effects) if len(effects) else ""
    return Answer(f"{text}." if text else "")


def _contrasts(study: Study, pairs: pd.DataFrame) -> Answer:
    """Say what the study's own contrasts show, those that show something first."""
    asked = {(pair.left, pair.right) for pair in study.contrasts}
    if pairs.empty or not asked:
        return Answer("")
    names = list(zip(pairs.left_variant, pairs.right_variant, strict=True))
    mine = pd.Series([pair in asked for pair in names], pairs.index)
    rows = pairs[mine & (pairs.epoch == first_choice(pairs))]
    shown = [(found_text(row), row) for row in rows.itertuples()]
    if not shown:
        return Answer("")
    several = several_subjects(rows)
    texts = [
        _contrast(row, shows, several)
        for shows, row in sorted(shown, key=lambda one: one[0] in ("open", ""))
    ]
    told = "; ".join(texts[:MOST_CONTRASTS])
    if len(texts) > MOST_CONTRASTS:
        told += "; the others are in the table of methods compared"
    if len(texts) == 1:
        return Answer(f"The difference that the study asks about: {told}.")
    counts = counted(pd.Series([shows or "not tested" for shows, _ in shown]))
    return Answer(f"The {len(texts)} differences that the study asks about ({counts}): {told}.")


def _chosen(rows: pd.DataFrame) -> Answer:
    """Say which of the values that were tried the cells took, the most frequent ones first."""
    if rows.empty:
        return Answer("")
    texts, several = [], several_subjects(rows)
    for chosen, cells in sorted(
        rows.groupby("chosen", sort=False), key=lambda group: -len(group[1])
    ):
        names = [
            shown_cell(cell) + (f" on {cell['task']} ({cell['model']})" if several else "")
            for cell in cells.to_dict("records")
        ]
        who = f"{len(names)} cells" if len(names) > MOST_CHOSEN else " and ".join(names)
        texts.append(f"{values_text(chosen)} for {who}")
    return Answer(f"Of the values that were tried, held-out rows chose {'; '.join(texts)}.")


def _contrast(row, shows: str, with_task: bool) -> str:
    """Say one contrast's difference, interval, n and finding."""
    where = f"{row.task} ({row.model}): " if with_task else ""
    notes = ", ".join(filter(None, [f"n = {fewest(row):g}", shows]))
    names = f"{shown_name(row.left)} less {shown_name(row.right)}"
    return f"{where}{names}, {_difference(row)} ({notes})"


def _difference(row) -> str:
    """Write a difference of two cells with its unit, and its interval or why there is none."""
    interval = units.interval_or_why(row.metric, row.low, row.high, fewest(row))
    return f"{units.difference_with_unit(row.metric, row.difference)} {interval}"


def best_cells(runs: pd.DataFrame, untuned: bool = False) -> Answer:
    """Set the best adapter of each task and model beside the `BASELINES` that the runs have.

    The tests of a task and model are a family of their own. What they show of a study that is
    `untuned` is said to be so: a difference may be one between the methods' settings.
    """
    if "run" not in runs:
        return Answer("")
    parts = [_best(part, untuned) for _, part in runs.groupby(SUBJECT, sort=False)]
    said = [(name, text) for name, text in parts if text]
    if len(said) > 1:
        texts = listed((f"{name}, {text}" for name, text in said), 3, "")
        return Answer(f"Best adapters: {texts}.")
    return Answer(f"The best adapter is {said[0][1]}." if said else "")


def _best(runs: pd.DataFrame, untuned: bool) -> tuple[str, str]:
    """Return the name of a task and model, and what is said of its best adapter."""
    first, epoch = runs.iloc[0], choices_of(runs)[0]
    named = named_cells(without_twins(runs))
    cells = [one for one in named if one[1][epoch].notna().all()]
    ours = [one for one in cells if METHODS[one[0]["method"]].trains == "adapter"]
    others = [one for name in BASELINES for one in _first(cells, name)]
    if not ours or not others:
        return "", ""
    way = sign(first.metric)
    best, part = max(ours, key=lambda one: way * one[1][epoch].mean())
    scores, sick = part[epoch], int(collapsed(part, epoch).sum())
    notes = [f"n = {len(part)}"]
    if len(ours) > 1:
        notes.append(f"the best of {len(ours)} by these very scores, so optimistic")
    if sick:
        notes.append(of_which(sick, len(part), "runs collapsed"))
    text = (
        f"{shown_cell(best)}, {units.with_unit(first.metric, scores.mean(), scores.std())} "
        f"{first.metric} "
        f"({'; '.join(notes)}): {_joined(_beside(runs, best, others, epoch, untuned))}"
    )
    return f"{first.task} ({first.model})", text


def _first(cells: list[Named], method: str) -> list[Named]:
    return [one for one in cells if one[0]["method"] == method][:1]


def _joined(parts: list[str]) -> str:
    return " and ".join(filter(None, ["; ".join(parts[:-1]), parts[-1]]))


def _beside(
    runs: pd.DataFrame, best: dict, others: list[Named], epoch: str, untuned: bool
) -> list[str]:
    """Say how far the best cell is from each baseline, with the interval and what it shows."""
    asked = [Contrast(left=best["variant"], right=cell["variant"]) for cell, _ in others]
    table = method_contrasts(runs, asked)
    rows = table[table.epoch == epoch].set_index("right_variant") if len(table) else table
    said = []
    for cell, _ in others:
        label = METHODS[cell["method"]].label
        if cell["variant"] not in rows.index:
            said.append(f"not compared with {label}, which takes two runs of both")
            continue
        row = rows.loc[cell["variant"]]
        shows = found_text(row)
        shows += ", untuned" if untuned and shows in ("higher", "lower") else ""
        said.append(f"{_difference(row)} beside {label}{f' ({shows})' if shows else ''}")
    return said


def _twins(twins: pd.DataFrame, pairs: pd.DataFrame, checks: pd.DataFrame) -> Answer:
    """Say whether two codes of one method agree, when trained and step by step."""
    said = []
    if len(twins):
        same = int((twins.equal_share == 1).sum())
        least = 100 * twins.equal_share.min()
        lowest = "" if same == len(twins) else f" (at least {least:.1f} % in the others)"
        said.append(
            f"Our LoRA and PEFT's, trained alike, predict the same on every row in {same} of "
            f"{len(twins)} pairs of runs{lowest}{_gaps(pairs)}"
        )
    if len(checks):
        said.append(f"{int(checks.ok.sum()):,} of {len(checks):,} cross-checks are in tolerance")
    return Answer(f"{'; '.join(said)}." if said else "")


def _gaps(pairs: pd.DataFrame) -> str:
    """Say how far the means of twins lie apart."""
    rows = pairs[pairs.role == "twins"] if len(pairs) else pairs
    if rows.empty or "difference" not in rows:
        return ""
    if "metric" in rows:
        rows = rows[rows.metric.map(unit_of) == "points"]
    if rows.empty:
        return ""
    rows = rows[rows.epoch == first_choice(rows)]
    low, high, n = rows.difference.min(), rows.difference.max(), rows.n_left.min()
    return f", and their means differ by {points(low)} to {points(high)} points (n = {n})"


def belief(
    study: Study, tables: dict[str, pd.DataFrame], machines: dict[str, int]
) -> list[tuple[str, str]]:
    """Return what decides whether the answer can be believed, each as a word and a text.

    Args:
        study, tables: as for `answer`, with the table `missing`.
        machines: how many runs were made on each kind of processor.
    """
    runs = tables["runs"]
    told = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in advice(study))
    tuned = told or "Settings were chosen on rows held out of the training split."
    sick = sick_facts(runs, tables["missing"]) or ["No run collapsed and none failed."]
    facts = [
        ("Seeds", _seeds(runs)),
        ("Rows", rows_fact(runs)),
        ("Tuned", " ".join(filter(None, [tuned, edge_fact(runs)]))),
        ("Sick runs", " ".join([_present(study, runs, tables["missing"]), *sick])),
        ("Comparable", _comparable(tables["verdicts"])),
        ("Machine", _machine(runs, machines)),
    ]
    return [(word, text) for word, text in facts if text]


def _present(study: Study, runs: pd.DataFrame, missing: pd.DataFrame) -> str:
    if missing.empty:
        return f"All {len(study.runs)} runs of the study are here."
    return f"{len(runs)} of {len(study.runs)} runs are here."


def _seeds(runs: pd.DataFrame) -> str:
    if "seed" not in runs or not set(CELL) <= set(runs):
        return ""
    counts = runs.groupby(CELL, dropna=False).seed.nunique()
    low, high = int(counts.min()), int(counts.max())
    few = " Few: an interval that holds 0 is no sign of equality." if low < 5 else ""
    cells = f"{len(counts)} cell{'' if len(counts) == 1 else 's'}"
    return f"{low if low == high else f'{low} to {high}'} per cell, {cells}.{few}"


def rows_fact(runs: pd.DataFrame) -> str:
    """Say how many rows each task and model was trained and scored on, and what that leaves open.

    The standard error is the binomial one, sqrt(p (1 - p) / rows).
    """
    names = ["model", "task", "rows_train", "rows_validation"]
    subjects = runs[names].drop_duplicates().itertuples()
    text = listed(
        (
            f"{row.model} on {row.task}, {row.rows_train:,} training and {row.rows_validation:,} "
            "validation rows"
            for row in subjects
        ),
        4,
        "",
    )
    scored = runs[runs.metric == "accuracy"] if "metric" in runs else runs[:0]
    if scored.empty:
        return f"{text}."
    rows = scored.rows_validation.min()
    fewest_rows = scored[scored.rows_validation == rows]
    p = fewest_rows[choices_of(fewest_rows)[0]].median()
    error = 100 * (p * (1 - p) / rows) ** 0.5
    return (
        f"{text}. One standard error of an accuracy of {100 * p:.0f} % on {rows:,} rows is "
        f"{error:.1f} points, whatever the number of seeds."
    )


def _comparable(verdicts: pd.DataFrame) -> str:
    if verdicts.empty:
        return "Not set beside published numbers; a verdict “in small” says nothing of the paper."
    out = int((verdicts.verdict == "not comparable").sum())
    return f"{len(verdicts) - out} of {len(verdicts)} rows are comparable with published numbers."


def _machine(runs: pd.DataFrame, machines: dict[str, int]) -> str:
    names = "; ".join(dict.fromkeys(name.partition(" (")[0] for name in machines))
    minutes = f"{runs.seconds.sum() / 60:.0f} minutes of run time in all"
    return f"{names}, {minutes}." if names else f"{minutes}."
