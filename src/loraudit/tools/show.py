"""One run in full, and two runs or studies side by side, from their files."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from humanize import naturalsize

from loraudit.analysis.collect import read_run
from loraudit.analysis.statistics import (
    agreement,
    holm,
    mcnemar,
    paired,
    paired_bootstrap,
    same_rows,
)
from loraudit.base.errors import UserError
from loraudit.report.formatting import interval, p_value, points
from loraudit.report.page_tables import flat
from loraudit.studies.record import RunRecord
from loraudit.studies.spec import RunSpec
from loraudit.studies.study import read_study
from loraudit.training.glue_metric import MEASURES

Section = tuple[str, list[str], list[list[object]]]
"""A title, columns and rows."""


def describe(folder: Path) -> dict:
    """Return what a run's folder holds: spec, scores, history, confusion, parameters, cost, origin.

    Raises:
        UserError: no complete run there.
    """
    record, predictions = read_run(folder)
    train = record.train
    return {
        "run": str(folder),
        "sealed": record.record_sha256 is not None,
        "spec": spec_values(record.spec),
        "classes": list(record.spec.task.classes),
        "scores": {k: {"best": train.best[k], "last": train.last[k]} for k in train.best},
        "epochs": {"best": train.best_epoch, "last": train.last_epoch},
        "history": pd.read_csv(folder / "history.csv").to_dict("records"),
        "confusion": confusion(record, predictions),
        "parameters": train.parameters,
        "cost": costs(record),
        "provenance": dict(flat(record.environment)) | {"code digest": record.code_sha256},
    }


def spec_values(spec: RunSpec) -> dict[str, object]:
    """Return a spec's fields, tasks and models by name, and by their source."""
    values = spec.flat()
    named = {"task": spec.task.name, "model": spec.model.name}
    sources = {
        f"{name} source": " ".join(str(value) for value in values[name]["source"].values() if value)
        for name in named
    }
    start = spec.warm_start.run if spec.warm_start else None
    targets = "+".join(spec.adapter.targets) if spec.adapter else None
    return {**values, **named, **sources, "warm_start": start, "targets": targets}


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


def costs(record: RunRecord) -> dict[str, object]:
    """Return a run's bytes, steps, tokens, seconds and memory."""
    train = record.train
    return {
        "steps": train.steps,
        "seconds per step": train.seconds["train"] / train.steps,
        **{f"seconds: {name}": value for name, value in train.seconds.items()},
        **{f"rows: {name}": value for name, value in train.rows.items()},
        **{f"bytes: {name}": value for name, value in train.bytes.items()},
        **{name.replace("_", " "): value for name, value in train.counts.items()},
        "padded / real tokens": train.tokens["padded"] / train.tokens["real"],
        "peak memory, MiB": train.peak_memory_mib,
        "on the GPU, MiB": train.peak_device_memory_mib,
    }


def confusion(record: RunRecord, predictions: pd.DataFrame) -> dict[str, list[list[int]]] | None:
    """Count predictions by label (rows) and predicted class (columns) at the best and last epoch.

    None for a regression.
    """
    task, train = record.spec.task, record.train
    if task.regression:
        return None
    classes = range(len(task.classes))
    scored = predictions[predictions.split == "validation"]
    counts = {}
    for name, epoch in (("best", train.best_epoch), ("last", train.last_epoch)):
        rows = scored[scored.epoch == epoch]
        table = pd.crosstab(rows.label, rows.prediction)
        filled = table.reindex(index=classes, columns=classes, fill_value=0)
        counts[name] = filled.to_numpy().tolist()
    return counts


def sections(run: dict) -> list[Section]:
    """Turn `describe`'s answer into tables for the screen."""
    best, last = (f"{name} epoch ({run['epochs'][name]})" for name in ("best", "last"))
    scores = [
        [name, f"{100 * value['best']:.2f}", f"{100 * value['last']:.2f}"]
        for name, value in run["scores"].items()
    ]
    history = [[_number(value) for value in row.values()] for row in run["history"]]
    made: list[Section] = [
        ("spec", ["field", "value"], _pairs(run["spec"])),
        ("scores, %", ["metric", best, last], scores),
        ("history", list(run["history"][0]), history),
    ]
    if run["confusion"]:
        for name, counts in run["confusion"].items():
            rows = [[label, *row] for label, row in zip(run["classes"], counts, strict=True)]
            title = f"confusion on validation, {name} epoch: label by prediction"
            made.append((title, ["label", *run["classes"]], rows))
    counted = {name: f"{count:,}" for name, count in run["parameters"].items()}
    made.append(("parameters", ["part", "count"], _pairs(counted)))
    cost = {
        k: naturalsize(v) if k.startswith("bytes") else _number(v) for k, v in run["cost"].items()
    }
    made.append(("cost", ["what", "value"], _pairs(cost)))
    origin = {**run["provenance"], "record": "sealed" if run["sealed"] else "unsealed"}
    made.append(("provenance", ["fact", "value"], _pairs(origin)))
    return made


def _pairs(values: dict) -> list[list[object]]:
    return [[key, *_with_none([value])] for key, value in values.items()]


def _with_none(values: Iterable[object]) -> list[object]:
    return ["none" if value is None else value for value in values]


def _number(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else value


def compare_runs(left: Path, right: Path, resamples: int) -> dict:
    """Compare two runs on the rows that both scored at their last epochs, and their specs.

    Args:
        left, right: the runs' folders.
        resamples: of the paired bootstrap of the headline metric.

    Raises:
        UserError: no run there, or runs of different tasks, rows or labels.
    """
    (one, one_rows), (two, two_rows) = read_run(left), read_run(right)
    task = one.spec.task
    if task.name != two.spec.task.name:
        raise UserError(f"runs of different tasks: {task.name!r} and {two.spec.task.name!r}")
    a, b = _aligned(one_rows, two_rows, task.name)
    values = a.label.to_numpy(), a.prediction.to_numpy(), b.prediction.to_numpy()
    comparison = {
        "left": str(left),
        "right": str(right),
        "task": task.name,
        "metric": task.headline,
        "spec": spec_difference(one.spec, two.spec),
        **agreement(a, b),
        "bootstrap": paired_bootstrap(*values, MEASURES[task.headline], resamples),
        "resamples": resamples,
    }
    if not task.regression:
        comparison["mcnemar"] = mcnemar(a.prediction == a.label, b.prediction == b.label)
    return comparison


def _aligned(
    left: pd.DataFrame, right: pd.DataFrame, task: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    try:
        one, two = same_rows(left, right)
    except ValueError as error:
        raise UserError(f"{error} of {task!r}") from None
    if not one.label.equals(two.label):
        raise UserError(f"the runs have other labels on the same rows of {task!r}")
    return one, two


def run_sections(comparison: dict) -> list[Section]:
    """Turn the spec difference of `compare_runs` into a table for the screen."""
    rows = [[name, *_with_none(values.values())] for name, values in comparison["spec"].items()]
    return [("specs", ["field", "left", "right"], rows or [["(no difference)", "", ""]])]


def run_sentences(comparison: dict) -> list[str]:
    """Turn `compare_runs`' answer into sentences; the numbers are its own."""
    test = comparison["bootstrap"]
    said = [
        f"{comparison['rows']} rows of {comparison['task']}, last epochs; left minus right, "
        f"{comparison['metric']}: {points(test['difference'])} points, 95 % paired bootstrap "
        f"{interval(test['low'], test['high'])} ({comparison['resamples']:,} resamples)"
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


def compare_studies(left: Path, right: Path) -> dict:
    """Compare two studies' common runs: cell by cell on the same seeds, at the last epochs.

    Args:
        left, right: results/<study> of each.

    Returns:
        The names, how many runs are common or in one only, how many of them have equal predictions,
        the fields in which the common runs' specs differ, and a row per cell: seeds, mean scores,
        paired difference with its 95 % t interval, p, and p by Holm over the cells.

    Raises:
        UserError: no finished run in common.
    """
    one, two = _finished(left), _finished(right)
    common = [name for name in one if name in two]
    if not common:
        raise UserError(f"{left} and {right} have no finished run in common")
    fields: set[str] = set()
    equal, scored = 0, 0
    cells: dict[str, list[tuple[float, float]]] = {}
    for name in common:
        (a, a_rows), (b, b_rows) = (read_run(folder / "runs" / name) for folder in (left, right))
        fields |= spec_difference(a.spec, b.spec).keys()
        same = _equal_predictions(a_rows, b_rows)
        equal, scored = equal + (same is True), scored + (same is not None)
        metric = a.spec.task.headline
        score = b.train.last.get(metric)
        if score is not None:
            scores = (a.train.last[metric], score)
            cells.setdefault(f"{name.rpartition('/')[0]} {metric}", []).append(scores)
    return {
        "left": left.name,
        "right": right.name,
        "common": len(common),
        "only_left": len(one) - len(common),
        "only_right": len(two) - len(common),
        "equal_predictions": equal,
        "same_rows": scored,
        "fields": sorted(fields),
        "cells": _cell_rows(cells),
    }


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


def _cell_rows(cells: dict[str, list[tuple[float, float]]]) -> list[dict]:
    rows = []
    for name, scores in cells.items():
        left, right = ([both[side] for both in scores] for side in (0, 1))
        means = {"left": sum(left) / len(left), "right": sum(right) / len(right)}
        rows.append({"cell": name, **means, **paired(left, right)})
    adjusted = holm([row["p"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def study_sections(comparison: dict) -> list[Section]:
    """Turn `compare_studies`' rows into a table for the screen."""
    rows = [
        [
            row["cell"],
            row["n"],
            f"{100 * row['left']:.1f}",
            f"{100 * row['right']:.1f}",
            points(row["difference"]),
            interval(row["low"], row["high"]),
            p_value(row["p_holm"]),
        ]
        for row in comparison["cells"]
    ]
    columns = ["cell, last epoch", "n", "left, %", "right, %", "difference", "95 % interval"]
    return [("same runs of both studies, paired by seed", [*columns, "p (Holm)"], rows)]


def study_sentences(comparison: dict) -> list[str]:
    """Say how many runs two studies share and where these differ."""
    left, right = comparison["left"], comparison["right"]
    fields = ", ".join(comparison["fields"]) or "nothing"
    return [
        f"left: {left}; right: {right}; {comparison['common']} finished runs in common, "
        f"{comparison['only_left']} only left, {comparison['only_right']} only right",
        f"the common runs' specs differ in: {fields}",
        f"equal predictions on all rows: {comparison['equal_predictions']} of the "
        f"{comparison['same_rows']} runs that scored the same rows",
    ]
