"""Two runs or two studies side by side, from their files."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from loraudit.analysis.cells import collapsed
from loraudit.analysis.finished import Finished, read_finished, unlike
from loraudit.analysis.resampling import paired_bootstrap
from loraudit.analysis.run_files import read_run
from loraudit.analysis.statistics import (
    agreement,
    holm,
    mcnemar,
    paired,
    same_rows,
)
from loraudit.base.errors import UserError
from loraudit.report import units
from loraudit.report.formatting import of_which, p_value
from loraudit.studies.spec import RunSpec
from loraudit.studies.study import read_study
from loraudit.tools.show import Section, spec_values, with_none


def spec_difference(left: RunSpec, right: RunSpec) -> dict[str, dict[str, object]]:
    """Return {field: {"left": value, "right": value}} of the fields in which two specs differ."""
    one, two = spec_values(left), spec_values(right)
    pairs = {name: (one.get(name), two.get(name)) for name in one | two}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    one, two = left.flat(), right.flat()
    for name in one | two:  # an entry may differ in more than its name and source
        seen = name in different or f"{name} source" in different
        if one.get(name) != two.get(name) and not seen:
            different[name] = (_whole(one.get(name)), _whole(two.get(name)))
    return {
        name: dict(zip(("left", "right"), pair, strict=True)) for name, pair in different.items()
    }


def _whole(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def compare_runs(left: Path, right: Path, resamples: int) -> dict:
    """Compare two runs on the rows that both scored at their last epochs, and their specs.

    Args:
        left, right: the runs' folders.
        resamples: of the paired bootstrap of the headline metric.

    Runs that only tune are compared on the selection rows, which alone they scored.

    Raises:
        UserError: no run there, or runs of different tasks, rows or labels; one of two only tunes.
    """
    (one, one_rows), (two, two_rows) = read_run(left), read_run(right)
    task = one.spec.task
    if task.name != two.spec.task.name:
        raise UserError(f"runs of different tasks: {task.name!r} and {two.spec.task.name!r}")
    split = _common_split(one.spec, two.spec)
    a, b = _aligned(one_rows, two_rows, task.name, split)
    values = a.label.to_numpy(), a.prediction.to_numpy(), b.prediction.to_numpy()
    comparison = {
        "left": str(left),
        "right": str(right),
        "task": task.name,
        "metric": task.headline,
        "split": split,
        "spec": spec_difference(one.spec, two.spec),
        **agreement(a, b),
        "bootstrap": paired_bootstrap(*values, task.headline, resamples),
        "resamples": resamples,
    }
    if task.classes:
        comparison["mcnemar"] = mcnemar(a.prediction == a.label, b.prediction == b.label)
    return comparison


def _common_split(left: RunSpec, right: RunSpec) -> str:
    if left.reported_split != right.reported_split:
        side = "left" if not left.saves else "right"
        raise UserError(
            f"the {side} run only tunes and is scored on the selection rows alone, the other is "
            "reported on validation rows: compare two runs that tune, or two that are reported"
        )
    return left.reported_split


def _aligned(
    left: pd.DataFrame, right: pd.DataFrame, task: str, split: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    try:
        one, two = same_rows(left, right, split)
    except ValueError as error:
        raise UserError(f"{error} of {task!r}") from None
    if not one.label.equals(two.label):
        raise UserError(f"the runs have other labels on the same rows of {task!r}")
    return one, two


def run_sections(comparison: dict) -> list[Section]:
    """Turn the spec difference of `compare_runs` into a table for the screen."""
    rows = [[name, *with_none(values.values())] for name, values in comparison["spec"].items()]
    return [("specs", ["field", "left", "right"], rows or [["(no difference)", "", ""]])]


def _bootstrap_sentence(comparison: dict) -> str:
    test, metric = comparison["bootstrap"], comparison["metric"]
    if test["difference"] is None or test["difference"] != test["difference"]:
        return f"{metric} is undefined for one run or both, so there is no difference"
    without = f"; {test['undefined']:,} have no {metric} and are left out"
    return (
        f"left minus right, {metric}: {units.difference_with_unit(metric, test['difference'])}, "
        f"95 % paired bootstrap {units.interval(metric, test['low'], test['high'])} "
        f"({comparison['resamples']:,} resamples{without if test['undefined'] else ''})"
    )


def run_sentences(comparison: dict) -> list[str]:
    """Turn `compare_runs`' answer into sentences; the numbers are its own."""
    said = [
        f"{comparison['rows']} {comparison['split']} rows of {comparison['task']}, last epochs; "
        + _bootstrap_sentence(comparison)
    ]
    if "mcnemar" in comparison:
        counts = comparison["mcnemar"]
        said.append(
            f"right on one side only: {counts['only_left']} left, {counts['only_right']} right; "
            f"exact McNemar p = {p_value(counts['p'])}"
        )
    said.append(
        f"equal predictions: {100 * comparison['equal_share']:.1f} %, "
        f"largest logit difference {comparison['largest_logit_difference']:.3g}"
    )
    return said


class Pair(NamedTuple):
    """A run's scores in both studies, as fractions, and whether it collapsed in each."""

    left: float
    right: float
    left_collapsed: bool
    right_collapsed: bool


def compare_studies(left: Path, right: Path) -> dict:
    """Compare two studies' common runs: cell by cell on the same seeds, at the last epochs.

    Args:
        left, right: results/<study> of each, or a shipped one (results/committed/<study>).

    Returns:
        The names, how many runs are common or in one only, how many of them have equal predictions
        (None where one is shipped: it has no predictions), the fields in which the common runs'
        specs differ, and a row per cell: seeds, mean scores, how many of them collapsed on each
        side, paired difference with its 95 % t interval, p, and p by Holm over the cells. Runs that
        only tune are left out.

    Raises:
        UserError: no finished run in common.
    """
    if is_shipped(left) or is_shipped(right):
        return _compare_tables(left, right)
    one, two = _finished(left), _finished(right)
    common = _common(one, two, left, right)
    fields: set[str] = set()
    equal, scored = 0, 0
    cells: dict[str, list[Pair]] = {}
    for name in common:
        (a, a_rows), (b, b_rows) = (read_run(folder / "runs" / name) for folder in (left, right))
        fields |= spec_difference(a.spec, b.spec).keys()
        same = _equal_predictions(a_rows, b_rows)
        equal, scored = equal + (same is True), scored + (same is not None)
        metric = a.spec.task.headline
        left_score, right_score = (x.train.epochs["last"].scores.get(metric) for x in (a, b))
        if left_score is not None and right_score is not None:
            sick = ["last" in record.train.collapsed for record in (a, b)]
            pair = Pair(left_score, right_score, *sick)
            cells.setdefault(f"{name.rpartition('/')[0]} {metric}", []).append(pair)
    found = {"equal_predictions": equal, "same_rows": scored, "fields": sorted(fields)}
    return _studies(left, right, common, one, two) | found | {"cells": _cell_rows(cells)}


def _studies(
    left: Path, right: Path, common: Collection[str], one: Collection[str], two: Collection[str]
) -> dict:
    """Name two studies, and count the runs that are common or in one only."""
    return {
        "left": str(left),
        "right": str(right),
        "common": len(common),
        "only_left": len(one) - len(common),
        "only_right": len(two) - len(common),
    }


def is_shipped(folder: Path) -> bool:
    """Tell whether a folder has a study's runs and records alone, as results/committed has."""
    files = (folder / "runs.csv", folder / "records.jsonl")
    return all(file.is_file() for file in files) and not (folder / "study.json").is_file()


def _common(one: Collection[str], two: Collection[str], left: Path, right: Path) -> list[str]:
    common = [name for name in one if name in two]
    if not common:
        raise UserError(f"{left} and {right} have no finished run in common")
    return common


def _compare_tables(left: Path, right: Path) -> dict:
    """Compare two studies by their tables of runs, as `compare_studies` does by their runs."""
    one, two = _tables(left), _tables(right)
    mine, theirs = one.specs(), two.specs()
    common = _common(mine, theirs, left, right)
    fields = {field for name in common for field in unlike(mine[name], theirs[name])}
    sides = [
        study.runs.assign(collapsed=collapsed(study.runs, "last")).set_index("run")
        for study in (one, two)
    ]
    cells: dict[str, list[Pair]] = {}
    for name in common:
        a, b = (side.loc[name] for side in sides)
        if a["last"] == a["last"] and b["last"] == b["last"]:
            pair = Pair(a["last"], b["last"], bool(a.collapsed), bool(b.collapsed))
            cells.setdefault(f"{name.rpartition('/')[0]} {a.metric}", []).append(pair)
    found = {"equal_predictions": None, "same_rows": None, "fields": sorted(fields)}
    return _studies(left, right, common, mine, theirs) | found | {"cells": _cell_rows(cells)}


def _tables(folder: Path) -> Finished:
    place = folder if is_shipped(folder) else folder / "tidy"
    if not (place / "records.jsonl").is_file():
        raise UserError(f"{folder} has no {place.name}/records.jsonl: finish the study first")
    return read_finished(place / "runs.csv", place / "records.jsonl")


def _finished(folder: Path) -> list[str]:
    """Return the ids of a study's runs that have a record."""
    runs = [run.id for run in read_study(folder / "study.json").runs]
    return [name for name in runs if (folder / "runs" / name / "record.json").is_file()]


def _equal_predictions(left: pd.DataFrame, right: pd.DataFrame) -> bool | None:
    """Tell whether two runs predict the same; None where they scored different rows."""
    try:
        one, two = same_rows(left, right)
    except ValueError:
        return None
    return bool((one.prediction == two.prediction).all())


def _cell_rows(cells: dict[str, list[Pair]]) -> list[dict]:
    rows = []
    for name, pairs in cells.items():
        left, right, *sick = map(list, zip(*pairs, strict=True))
        means = {"left": sum(left) / len(left), "right": sum(right) / len(right)}
        counts = dict(zip(("left_collapsed", "right_collapsed"), map(sum, sick), strict=True))
        facts = {"cell": name, "metric": name.rpartition(" ")[2]}
        rows.append({**facts, **means, **counts, **paired(left, right)})
    adjusted = holm([row["p"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def study_sections(comparison: dict) -> list[Section]:
    """Turn `compare_studies`' rows into a table for the screen."""
    rows = [
        [
            row["cell"],
            row["n"],
            _mean(row, "left"),
            _mean(row, "right"),
            units.difference(row["metric"], row["difference"]),
            units.interval(row["metric"], row["low"], row["high"]),
            p_value(row["p_holm"]),
        ]
        for row in comparison["cells"]
    ]
    columns = ["cell, last epoch", "n", "left, %", "right, %", "difference", "95 % interval"]
    return [("same runs of both studies, paired by seed", [*columns, "p (Holm)"], rows)]


def _mean(row: dict, side: str) -> str:
    """Write a side's mean, and how many of its runs collapsed if any did."""
    sick = row[f"{side}_collapsed"]
    mean = units.score(row["metric"], row[side])
    return mean + (f" ({of_which(sick, row['n'])})" if sick else "")


def study_sentences(comparison: dict) -> list[str]:
    """Say how many runs two studies share and where these differ."""
    left, right = comparison["left"], comparison["right"]
    fields = ", ".join(comparison["fields"]) or "nothing"
    equal = (
        "a shipped study has no predictions: only scores are compared"
        if comparison["same_rows"] is None
        else f"equal predictions on all rows: {comparison['equal_predictions']} of the "
        f"{comparison['same_rows']} runs that scored the same rows"
    )
    return [
        f"left: {left}; right: {right}; {comparison['common']} finished runs in common, "
        f"{comparison['only_left']} only left, {comparison['only_right']} only right",
        f"the common runs' specs differ in: {fields}",
        equal,
    ]
