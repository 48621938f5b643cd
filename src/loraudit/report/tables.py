"""Tables for readers: numbers rounded, methods by their names."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from humanize import naturalsize

from loraudit.analysis.cost import TASKS
from loraudit.studies.methods import METHODS
from loraudit.studies.spec import AdapterSpec, RunSpec
from loraudit.studies.study import BASE, Study

METHOD_NAMES = {name: method.label for name, method in METHODS.items()}


def percent(mean: float, sd: float) -> str:
    """Write a score as percent with its standard deviation, or without where n = 1."""
    return f"{100 * mean:.1f}" + (f" ± {100 * sd:.1f}" if sd == sd else "")


def points(value: float) -> str:
    """Write a difference of scores in percentage points, signed."""
    return "" if value != value else f"{100 * value:+.1f}"


def interval(low: float, high: float) -> str:
    """Write an interval of a difference in percentage points; nothing where n = 1."""
    return "" if low != low else f"[{points(low)}, {points(high)}]"


def p_value(p: float) -> str:
    """Write a p-value with two digits, small ones as a power of ten."""
    return "" if p != p else f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def _subject_columns(rows: pd.DataFrame) -> dict[str, list]:
    """Return the task, and the model where there are several."""
    several = rows.model.nunique() > 1
    return {"task": list(rows.task), **({"model": list(rows.model)} if several else {})}


def _cell_columns(rows: pd.DataFrame) -> dict[str, list]:
    """Return the columns that name a cell."""
    columns = {
        **_subject_columns(rows),
        "method": [METHODS[method].label for method in rows.method],
        "rank": ["" if rank != rank else f"{rank:g}" for rank in rows["rank"]],
        "targets": ["" if pd.isna(name) else name for name in rows.targets],
    }
    labels = ["" if pd.isna(label) else str(label) for label in rows.label]
    return {**columns, **({"variant": labels} if any(labels) else {})}


def published_value(row) -> str:
    """Write a published number with its ± (as an sd), its n and its statistic."""
    text = percent(row.published_value, row.published_sd)
    facts = [] if pd.isna(row.published_n) else [f"n={row.published_n:g}"]
    return f"{text} ({', '.join([*facts, row.published_statistic])})"


def verdict_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Turn `compare.verdicts`' rows into a table for readers."""
    rows = list(verdicts.itertuples())
    return pd.DataFrame(
        {
            **_cell_columns(verdicts),
            "metric": [f"{row.metric}, {row.epoch} epoch" for row in rows],
            "published": [published_value(row) for row in rows],
            "source": [row.published for row in rows],
            "ours: mean, %": [f"{100 * row.mean:.1f}" for row in rows],
            "n": [row.n for row in rows],
            "difference": [points(row.difference) for row in rows],
            "95 % interval": [interval(row.low, row.high) for row in rows],
            "p different (Holm)": [p_value(row.p_holm) for row in rows],
            "p equivalent": [p_value(row.p_equivalent) for row in rows],
            "verdict": [row.verdict for row in rows],
            "why": ["" if pd.isna(row.reason) else row.reason for row in rows],
        }
    )


def published_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Turn `compare.published_verdicts`' rows into a table for readers."""
    rows = list(verdicts.itertuples())
    return pd.DataFrame(
        {
            "task": [row.task for row in rows],
            "source": [row.ours for row in rows],
            "n": [row.n for row in rows],
            "mean ± SD, %": [f"{100 * row.mean:.2f} ± {100 * row.sd:.2f}" for row in rows],
            "median": [f"{100 * row.median:.2f}" for row in rows],
            "beside": [row.published for row in rows],
            "published": [percent(row.published_value, row.published_sd) for row in rows],
            "difference": [points(row.difference) for row in rows],
            "95 % interval": [interval(row.low, row.high) for row in rows],
            "p different": [p_value(row.p) for row in rows],
            "Holm": [p_value(row.p_holm) for row in rows],
            "p equivalent": [p_value(row.p_equivalent) for row in rows],
            "verdict": [row.verdict for row in rows],
            "remarks": [row.reason for row in rows],
        }
    )


def _tested_difference(rows: list) -> dict[str, list]:
    """Return the columns that paired differences share."""
    return {
        "difference": [points(row.difference) for row in rows],
        "95 % interval": [interval(row.low, row.high) for row in rows],
        "n": [row.n for row in rows],
        "p (Holm)": [p_value(row.p_holm) for row in rows],
    }


def switch_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Turn `compare.switch_effects`' rows into a table for readers."""
    rows = list(effects.itertuples())
    return pd.DataFrame(
        {
            **_subject_columns(effects),
            "switch": [row.switch for row in rows],
            "epoch": [row.epoch for row in rows],
            "base, %": [f"{100 * row.base:.1f}" for row in rows],
            **_tested_difference(rows),
        }
    )


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Turn `compare.method_pairs`' rows into a table for readers."""
    rows = list(pairs.itertuples())
    return pd.DataFrame(
        {
            **_subject_columns(pairs),
            "pair": [f"{row.left} - {row.right}" for row in rows],
            "epoch": [row.epoch for row in rows],
            **_tested_difference(rows),
        }
    )


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Turn `cost.cost`'s rows into a table for readers."""
    rows = list(costs.itertuples())
    table = {
        **_cell_columns(costs),
        "adapter": [f"{row.parameters_adapter:,}" for row in rows],
        "head": [f"{row.parameters_head:,}" for row in rows],
        "trainable": [f"{row.parameters_trainable:,}" for row in rows],
        "share of the model": [
            f"{100 * row.parameters_trainable / row.parameters_model:.2f} %" for row in rows
        ],
        "disk per task": [naturalsize(row.bytes_task) for row in rows],
        f"disk for {TASKS} tasks": [naturalsize(row.bytes_tasks) for row in rows],
        "peak memory, MiB": [f"{row.peak_mib:,.0f}" for row in rows],
        "on the GPU, MiB": [
            "" if pd.isna(row.device_mib) else f"{row.device_mib:,.0f}" for row in rows
        ],
        "ms per step": [f"{1000 * row.seconds_step:.0f}" for row in rows],
        "rows per second": [f"{row.rows_second:.1f}" for row in rows],
        "seconds per run": [f"{row.seconds_run:.0f}" for row in rows],
        "padded / real tokens": [f"{row.padded_share:.2f}" for row in rows],
    }
    if not any(table["on the GPU, MiB"]):
        del table["on the GPU, MiB"]
    return pd.DataFrame(table)


def markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown, numbers to the right."""
    if table.empty:
        return "No rows.\n"
    table = table.rename(columns=_cell).map(_cell)
    align = ["right" if str(value)[:1] in "0123456789+-[" else "left" for value in table.iloc[0]]
    return table.to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"


def _cell(value: Any) -> Any:
    """Keep text from breaking a Markdown table or being taken for HTML."""
    if not isinstance(value, str):
        return value
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", " ".join(value.split())).replace("|", r"\|")


def summary_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Turn `statistics.aggregate`'s rows into a table for readers."""
    columns: dict[str, list] = {
        **_cell_columns(summary),
        "adapter parameters": [f"{count:,}" for count in summary.parameters_adapter],
        "trainable": [f"{count:,}" for count in summary.parameters_trainable],
        "n": list(summary.n),
    }
    for epoch in ("best", "last"):
        means, sds = summary[f"{epoch}_mean"], summary[f"{epoch}_sd"]
        columns[f"{epoch} epoch: mean ± SD, %"] = [
            percent(mean, sd) for mean, sd in zip(means, sds, strict=True)
        ]
        columns[f"{epoch}: median"] = [f"{100 * value:.1f}" for value in summary[f"{epoch}_median"]]
    return pd.DataFrame(columns)


READABLE = {
    "summary": summary_table,
    "verdicts": verdict_table,
    "switches": switch_table,
    "pairs": pair_table,
    "cost": cost_table,
}
"""The tables of a study, and how each is made readable."""


def crosscheck_table(checks: pd.DataFrame) -> pd.DataFrame:
    """List each check's largest difference over all cells, with the cell that has it."""
    rows = []
    for key, part in checks.groupby(["check", "against", "dtype"], sort=False):
        worst = part.loc[part.difference.idxmax()]
        rows.append(
            {
                **dict(zip(["check", "against", "dtype"], key, strict=True)),
                "largest difference": f"{worst.difference:.2g}",
                "tolerance": f"{worst.tolerance:.2g}",
                "within": f"{int(part.ok.sum())} of {len(part)}",
                "largest in": worst.cell,
            }
        )
    return pd.DataFrame(rows)


def protocol_table(study: Study) -> pd.DataFrame:
    """List every run field, the values it takes, and what decides where they differ."""
    rows = []
    flat = [run.spec.flat() for run in study.runs]
    for field in dict.fromkeys(key for fields in flat for key in fields):
        columns = zip(study.runs, flat, strict=True)
        values = [_value(run.spec, fields, field) for run, fields in columns]
        distinct = dict.fromkeys(value for value in values if value is not None)
        row = {"field": field, "value": ", ".join(distinct) or "none", "where it differs": ""}
        if len(distinct) > 1 and field not in ("task", "model", "method"):
            row["where it differs"] = _decided_by(study, values)
        rows.append(row)
    return pd.DataFrame(rows)


def _value(spec: RunSpec, fields: dict, field: str) -> str | None:
    """Return a field's value as text, None where the run's method has no use for the field."""
    value = fields.get(field)
    own_start = spec.facts.own_init and field == "init"
    unused = field not in fields or (not spec.adapter and field in AdapterSpec.model_fields)
    return None if value is None and (unused or own_start) else _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return "+".join(value)
    return str(value.get("name", value) if isinstance(value, dict) else value)


def _decided_by(study: Study, values: list[str | None]) -> str:
    """Say which of method, task or label alone decides a field's value; else it is an axis."""
    keys = {
        "method": [run.spec.facts.label for run in study.runs],
        "task": [run.spec.task.name for run in study.runs],
        "variant": [run.label or "unlabelled" for run in study.runs],
    }
    for key, names in keys.items():
        pairs = dict.fromkeys((n, v) for n, v in zip(names, values, strict=True) if v is not None)
        if len(pairs) == len({name for name, _ in pairs}):
            return f"by {key}: {_grouped(pairs)}"
    return "in the grid"


def _grouped(pairs: Iterable[tuple[str, str]]) -> str:
    """Say which value each name has; a value of most names (more than two) is said last."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(value, []).append(name)
    usual = max(found, key=lambda value: len(found[value]))
    parts = {value: f"{value} for {', '.join(names)}" for value, names in found.items()}
    if len(found[usual]) > 2:
        del parts[usual]
        parts[usual] = f"else {usual}"
    return "; ".join(parts.values())


def switched_table(study: Study) -> pd.DataFrame:
    """List what each switch of an ablation sets, beside the base's value."""
    base = next((run.spec.flat() for run in study.runs if run.label == BASE), {})
    return pd.DataFrame(
        [
            {
                "switch": switch.name,
                "field": field,
                "base": _shown(base.get(field)),
                "switched": "none" if value is None else str(value),
            }
            for switch in study.switches
            for field, value in switch.changes.items()
        ]
    )


def data_table(manifests: dict[str, dict]) -> pd.DataFrame:
    """List the fetched rows and labels of each task's splits, and what was left out."""
    rows = []
    for task, manifest in manifests.items():
        dropped = [f"{why.replace('_', ' ')}: {n}" for why, n in manifest["dropped"].items()]
        for split, facts in manifest["splits"].items():
            labels = [f"{label} {count:,}" for label, count in facts["labels"].items()]
            row = {"task": task, "split": split, "rows": f"{facts['rows']:,}"}
            row |= {"labels": ", ".join(labels), "dropped from the task": ", ".join(dropped)}
            row |= {"not in this source": ", ".join(manifest["absent"])}
            rows.append({**row, "sha256": facts["sha256"]})
    table = pd.DataFrame(rows)
    return table.loc[:, [not (table[name] == "").all() for name in table]]


def provenance_table(records: list[dict]) -> pd.DataFrame:
    """List what the runs' records say of code, versions and machine; differing values all show."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        environment = dict(record["environment"])
        names = {"data": record["spec"]["task"]["name"], "weights": record["spec"]["model"]["name"]}
        for key in names.keys() & environment.keys():
            environment[f"{key} sha256, {names[key]}"] = environment.pop(key)
        for key, value in flat(environment):
            found.setdefault(key, {})[str(value)] = None
    return pd.DataFrame(
        [{"fact": key, "value": ", ".join(values)} for key, values in found.items()]
    )


def processors(records: list[dict]) -> dict[str, int]:
    """Count the runs made on each kind of processor, the GPU's name where a GPU trained.

    A run that went on from a checkpoint of another kind counts for both.
    """
    found: dict[str, int] = {}
    for record in records:
        environment = record["environment"]
        machines = [environment, *environment.get("resumed", [])]
        names = [", ".join(dict.fromkeys(environment.get("gpus", [])))]
        if not str(environment.get("device", "")).startswith("cuda"):
            names = [_processor(machine) for machine in machines]
        for name in dict.fromkeys(names):
            found[name] = found.get(name, 0) + 1
    return found


def _processor(machine: dict) -> str:
    """Name a processor; its kind is in brackets, where the record is new enough to have it."""
    name, kind = machine.get("processor") or "an unnamed processor", machine.get("processor_kind")
    return f"{name} ({kind})" if kind else name


def flat(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield nested values with their keys joined: "git commit", "packages torch"."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, value
