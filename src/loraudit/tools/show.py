"""One run in full, from its files."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from humanize import naturalsize

from loraudit.analysis.run_files import read_run
from loraudit.report import units
from loraudit.report.formatting import values_text
from loraudit.report.page_tables import flat
from loraudit.studies.record import RunRecord
from loraudit.studies.spec import RunSpec

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
        "scores": {
            name: {choice: chosen.scores.get(name) for choice, chosen in train.epochs.items()}
            for name in dict.fromkeys(n for c in train.epochs.values() for n in c.scores)
        },
        "epochs": {choice: chosen.epoch for choice, chosen in train.epochs.items()},
        "history": _history(folder / "history.csv"),
        "reported": record.spec.reported_split,
        "headline": record.spec.task.headline,
        "confusion": confusion(record, predictions),
        "health": health(record),
        "tuning": record.tuning.model_dump(mode="json") if record.tuning else None,
        "parameters": train.parameters,
        "cost": costs(record),
        "provenance": dict(flat(record.environment)) | {"code digest": record.code_sha256},
    }


def _history(file: Path) -> list[dict]:
    """Read a run's epochs; a score that is undefined, or that no rows were scored for, is None."""
    rows = pd.read_csv(file).to_dict("records")
    return [{name: None if pd.isna(v) else v for name, v in row.items()} for row in rows]


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


def costs(record: RunRecord) -> dict[str, object]:
    """Return a run's bytes, steps, tokens, seconds and memory."""
    train = record.train
    return {
        "steps": train.steps,
        "seconds per step": train.seconds["train"] / train.steps if train.steps else None,
        **{f"seconds: {name}": value for name, value in train.seconds.items()},
        **{f"rows: {name}": value for name, value in train.rows.items()},
        **{f"bytes: {name}": value for name, value in train.bytes.items()},
        **{name.replace("_", " "): value for name, value in train.counts.items()},
        "padded / real tokens": train.tokens["padded"] / train.tokens["real"],
        "peak memory, MiB": train.peak_memory_mib,
        "on the GPU, MiB": train.peak_device_memory_mib or None,
    }


def health(record: RunRecord) -> dict[str, str]:
    """Say whether a run collapsed, did not move, or diverged, each in a few words."""
    train = record.train
    return {
        "collapsed to a constant answer": f"at the epoch {' and '.join(train.collapsed)}"
        if train.collapsed
        else "no",
        "matrices B that never left zero": ", ".join(train.unmoved) or "none",
        "loss not finite": "no" if train.diverged is None else f"at step {train.diverged}",
    }


def tuning_rows(tuning: dict, metric: str) -> list[list[object]]:
    """List what each combination of values scored on the selection rows, and which was chosen.

    `metric` is that of the scores.
    """
    rows = []
    for trial in tuning["trials"]:
        chosen = trial["values"] == tuning["chosen"]
        fields = ", ".join(name.replace("_", " ") for name in tuning["at_edge"])
        edge = f", at the edge in {fields}" if fields else ""
        mean, sd = trial["mean"], trial["sd"] or math.nan
        score = "none" if trial["diverged"] else units.score(metric, mean, sd)
        rows.append(
            [
                values_text(json.dumps(trial["values"])),
                score,
                trial["n"],
                trial["collapsed"] or "",
                trial["diverged"] or "",
                f"chosen{edge}" if chosen else "",
            ]
        )
    return rows


def confusion(record: RunRecord, predictions: pd.DataFrame) -> dict[str, list[list[int]]] | None:
    """Count predictions by label (rows) and predicted class (columns) at each chosen epoch.

    They are of the validation rows, or of the selection rows of a run that only tunes.

    None where there are no classes.
    """
    task, train = record.spec.task, record.train
    if not task.classes:
        return None
    classes = range(len(task.classes))
    scored = predictions[predictions.split == record.spec.reported_split]
    counts: dict[str, list[list[int]]] = {}
    for name, chosen in train.epochs.items():
        rows = scored[scored.epoch == chosen.epoch]
        table = pd.crosstab(rows.label, rows.prediction)
        filled = table.reindex(index=classes, columns=classes, fill_value=0)
        counts[name] = filled.to_numpy().tolist()
    return counts


def sections(run: dict) -> list[Section]:
    """Turn `describe`'s answer into tables for the screen."""
    chosen = [f"{choice} epoch ({epoch})" for choice, epoch in run["epochs"].items()]
    scores = [
        [
            name,
            *(units.score(name, math.nan if v is None else v, digits=2) for v in values.values()),
        ]
        for name, values in run["scores"].items()
    ]
    history = [[_number(value) for value in row.values()] for row in run["history"]]
    made: list[Section] = [
        ("spec", ["field", "value"], _pairs(run["spec"])),
        ("scores, %", ["metric", *chosen], scores),
        ("health", ["what", "found"], _pairs(run["health"])),
    ]
    if history:
        made.append(("history", list(run["history"][0]), history))
    if run["tuning"]:
        columns = ["values", "score on selection rows: mean ± SD, %", "seeds"]
        columns += ["of which collapsed", "of which diverged", ""]
        made.append(("tuning", columns, tuning_rows(run["tuning"], run["headline"])))
    if run["confusion"]:
        for name, counts in run["confusion"].items():
            rows = [[label, *row] for label, row in zip(run["classes"], counts, strict=True)]
            title = f"confusion on {run['reported']}, {name} epoch: label by prediction"
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
    return [[key, *with_none([value])] for key, value in values.items()]


def with_none(values: Iterable[object]) -> list[object]:
    """Return the values of a row, with the word none for those that are missing."""
    return ["none" if value is None else value for value in values]


def _number(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else value
