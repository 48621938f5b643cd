"""Tables that are on a study's page only: what was run, checked, fetched, and on what."""

from collections.abc import Iterable, Iterator

import pandas as pd

from loraudit.studies.spec import AdapterSpec, RunSpec
from loraudit.studies.study import BASE, Study


def crosscheck_table(checks: pd.DataFrame) -> pd.DataFrame:
    """List each check's largest difference over all cells, with the cell that has it."""
    if checks.empty:
        return checks
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
    flat = [(run.spec, run.spec.flat()) for run in study.runs]
    for field in dict.fromkeys(key for _, fields in flat for key in fields):
        values = [_value(spec, fields, field) for spec, fields in flat]
        distinct = dict.fromkeys(value for value in values if value is not None)
        row = {"field": field, "value": ", ".join(distinct) or "none", "where it differs": ""}
        if len(distinct) > 1 and field not in ("task", "model", "method"):
            row["where it differs"] = _decided_by(study, values)
        rows.append(row)
    return pd.DataFrame(rows)


def _value(spec: RunSpec, fields: dict, field: str) -> str | None:
    """Return a field's value as text, None where the run's method has no use for the field."""
    if spec.tuned and field in spec.tuned.fields:
        return "tuned"
    value = fields.get(field)
    own_init = field == "init" and spec.facts.own_init
    unused = field not in fields or (not spec.adapter and field in AdapterSpec.model_fields)
    return None if value is None and (unused or own_init) else _as_text(value)


def _as_text(value: object) -> str:
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
        rules = dict.fromkeys((n, v) for n, v in zip(names, values, strict=True) if v is not None)
        if len(rules) == len({name for name, _ in rules}):
            return f"by {key}: {_grouped(rules)}"
    return "in the grid"


def _grouped(rules: Iterable[tuple[str, str]]) -> str:
    """Say which value each name has; a value of most names (more than two) is said last."""
    names_of: dict[str, list[str]] = {}
    for name, value in rules:
        names_of.setdefault(value, []).append(name)
    usual = max(names_of, key=lambda value: len(names_of[value]))
    parts = {value: f"{value} for {', '.join(names)}" for value, names in names_of.items()}
    if len(names_of[usual]) > 2:
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
                "base": _as_text(base.get(field)),
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
            repeated = manifest.get("also_in_train", {}).get(split, {"rows": 0})["rows"]
            row |= {"also in train": f"{repeated:,}" if repeated else ""}
            row |= {"not in this source": ", ".join(manifest["absent"])}
            rows.append({**row, "sha256": facts["sha256"]})
    table = pd.DataFrame(rows)
    return table.loc[:, [not (table[name] == "").all() for name in table]]


def overlap_table(found: pd.DataFrame) -> pd.DataFrame:
    """Turn `overlap.overlaps`' rows into a table for readers."""
    rows = list(found.itertuples())
    return pd.DataFrame(
        {
            "task": [row.task for row in rows],
            "other task": [row.other for row in rows],
            "rows in the other": [_share(row.in_other, row.rows) for row in rows],
            "validation rows in the other's train": [
                _share(row.in_others_train, row.validation) for row in rows
            ],
        }
    )


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} ({100 * count / of:.1f} %)"


def provenance_table(records: list[dict]) -> pd.DataFrame:
    """List what the runs' records say of code, versions and machine; differing values all show."""
    facts: dict[str, dict[str, None]] = {}
    for record in records:
        environment = dict(record["environment"])
        names = {"data": record["spec"]["task"]["name"], "weights": record["spec"]["model"]["name"]}
        for key, name in names.items():  # in this order: the page is the same each time
            if key in environment:
                environment[f"{key} sha256, {name}"] = environment.pop(key)
        for key, value in flat(environment):
            facts.setdefault(key, {})[str(value)] = None
    return pd.DataFrame(
        [{"fact": key, "value": ", ".join(values)} for key, values in facts.items()]
    )


def processors(records: list[dict]) -> dict[str, int]:
    """Count the runs made on each kind of processor: GPUs by their names where GPUs trained.

    A run that went on from a checkpoint of another kind counts for both.
    """
    counts: dict[str, int] = {}
    for record in records:
        environment = record["environment"]
        machines = [environment, *environment.get("resumed", [])]
        if str(environment.get("device", "")).startswith("cuda"):
            names = [", ".join(dict.fromkeys(m["gpus"])) for m in machines if "gpus" in m]
        else:
            names = [_processor(machine) for machine in machines]
        for name in dict.fromkeys(names):
            counts[name] = counts.get(name, 0) + 1
    return counts


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
