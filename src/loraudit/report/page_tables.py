"""Tables that are on a study's page only: what was run, checked, fetched, and on what."""

import math
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from loraudit.report.formatting import label_words, p_value
from loraudit.studies.accounts import protocols
from loraudit.studies.names import targets_name
from loraudit.studies.spec import AdapterSpec, RunSpec
from loraudit.studies.study import BASE, Study


def crosscheck_table(checks: pd.DataFrame) -> pd.DataFrame:
    """List each check's largest difference over all cells, the nearest to its tolerance first."""
    if checks.empty:
        return checks
    rows = []
    for key, part in checks.groupby(["check", "against", "dtype"], sort=False):
        worst = part.loc[part.difference.idxmax()]
        used = (
            worst.difference / worst.tolerance if worst.tolerance else float(worst.difference > 0)
        )
        names = dict(zip(["check", "against", "dtype"], key, strict=True))
        rows.append(
            {
                "failed": not part.ok.all(),
                "used": used,
                **names,
                "largest difference": f"{worst.difference:.2g}",
                "tolerance": f"{worst.tolerance:.2g}",
                "share of tolerance": f"{100 * used:.0f} %",
                "within": f"{int(part.ok.sum())} of {len(part)}",
                "largest in": worst.cell,
            }
        )
    table = pd.DataFrame(rows).sort_values(["failed", "used"], ascending=False, kind="stable")
    return table.drop(columns=["failed", "used"]).reset_index(drop=True)


def twins_table(twins: pd.DataFrame) -> pd.DataFrame:
    """Turn `collect.twins`' rows into a table for readers."""
    if twins.empty:
        return twins
    columns = {
        "cell": [" ".join(cell.split("/")) for cell in twins.cell],
        "seed": list(twins.seed),
        "rows": [f"{rows:,}" for rows in twins.rows],
        "equal predictions": [f"{100 * share:.1f} %" for share in twins.equal_share],
        "largest difference of a logit": [f"{x:.2g}" for x in twins.largest_logit_difference],
    }
    counted = {"only_ours_right": "only ours is right", "only_peft_right": "only PEFT's is right"}
    for name, words in counted.items():
        if name in twins:
            columns[words] = ["" if pd.isna(count) else f"{count:g}" for count in twins[name]]
    if "mcnemar_p" in twins:
        columns["p (McNemar)"] = [p_value(p) for p in twins.mcnemar_p]
    return pd.DataFrame(columns)


def protocol_table(study: Study) -> pd.DataFrame:
    """List the fields of a run that take several values, or another than the protocol's source.

    Each with its values and what decides them; `protocol_rest` has the others.
    """
    rows = []
    stated = _stated(study)
    for field, values in _fields(study).items():
        distinct = _distinct(values)
        other = field not in HANDLED and _departs(study, field, stated)
        if len(distinct) < 2 and not other:
            continue
        source = dict.fromkeys(_as_text(fields[field]) for fields in stated if field in fields)
        told = alpha_text([run.spec for run in study.runs]) if field == "alpha" else ""
        row = {"field": _words(field), "value": told or ", ".join(distinct) or "none"}
        row["where it differs"] = ""
        if len(distinct) > 1 and field not in ("task", "model", "method"):
            by_rule = field == "alpha" and "rank" in row["value"]
            row["where it differs"] = "by rank" if by_rule else _decided_by(study, values)
        row["in the protocol's source"] = ", ".join(source) if other else ""
        rows.append(row)
    return pd.DataFrame(rows)


HANDLED = ("task", "model", "method", "seed", "warm_start", "tuned")
"""Fields that a protocol's source states in another way, or not at all."""


def protocol_rest(study: Study) -> str:
    """List the fields that have one value in all runs, and not none: "epochs 1; head trained"."""
    fixed = {_words(field): _distinct(values) for field, values in _fields(study).items()}
    return "; ".join(
        f"{field} {values[0]}"
        for field, values in fixed.items()
        if len(values) == 1 and values != ["none"]
    )


STEPS = (
    *("epochs", "global_batch", "micro_batch", "learning_rate", "schedule", "warmup_ratio"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
)
"""Fields that mean nothing to a method that is fitted at once, and takes no steps."""


def takes_steps(spec: RunSpec) -> bool:
    """Tell whether a run takes optimizer steps; a method with a fixed number of epochs does not."""
    return "epochs" not in spec.facts.fixed


def alpha_text(specs: Sequence[RunSpec]) -> str:
    """Write the alphas of runs: one number, a rule over the rank, or a number for each rank."""
    planned = [s for s in specs if s.adapter and not (s.tuned and "alpha" in s.tuned.fields)]
    pairs = dict.fromkeys((s.adapter.rank, s.adapter.alpha) for s in planned if s.adapter)
    texts = ["tuned"] if len(planned) < sum(1 for s in specs if s.adapter) else []
    return " or ".join([*texts, *([_alpha_rule(list(pairs))] if pairs else [])])


def _alpha_rule(pairs: list[tuple[int, float]]) -> str:
    """Say what makes alpha of the rank, of pairs of both: the first rule that fits all of them."""
    alphas = dict.fromkeys(alpha for _, alpha in pairs)
    if len(alphas) == 1 or len({rank for rank, _ in pairs}) < len(pairs):
        return ", ".join(f"{alpha:g}" for alpha in alphas)
    for power, words in ((0.5, "the square root of the rank"), (1.0, "the rank")):
        factors = [alpha / rank**power for rank, alpha in pairs]
        if all(math.isclose(factor, factors[0], rel_tol=1e-6) for factor in factors):
            return f"{factors[0]:g} times {words}"
    return ", ".join(f"{alpha:g} at rank {rank}" for rank, alpha in sorted(pairs))


def _departs(study: Study, field: str, stated: list[dict]) -> bool:
    """Tell whether a run has another value of a field than the protocol's source states of it."""
    return any(
        value_text(run.spec, fields := run.spec.flat(), field) not in (None, "tuned")
        and not isinstance(said[field], dict)
        and (targets_name(run.spec) if field == "targets" else fields[field]) != said[field]
        for run, said in zip(study.runs, stated, strict=False)
        if field in said
    )


def _words(field: str) -> str:
    return field.replace("_", " ")


def _fields(study: Study) -> dict[str, list[str | None]]:
    """Return each field of a run with its values as text, in the order of the runs."""
    flat = [(run.spec, run.spec.flat()) for run in study.runs]
    names = dict.fromkeys(key for _, fields in flat for key in fields)
    return {name: [value_text(spec, fields, name) for spec, fields in flat] for name in names}


def _distinct(values: list[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value is not None))


def _stated(study: Study) -> list[dict]:
    """Return what the protocol's source states of each run; empty where the study names none."""
    protocol = next((file for file in protocols() if file.source == study.protocol), None)
    if protocol is None:
        return []
    return [
        {
            **protocol.defaults,
            **protocol.per_task.get(run.spec.task.name, {}),
            **protocol.per_method.get(run.spec.method, {}),
        }
        for run in study.runs
    ]


def value_text(spec: RunSpec, fields: dict, field: str) -> str | None:
    """Return a field's value as text, None where the run's method has no use for the field."""
    if field in STEPS and not takes_steps(spec):
        return None
    if spec.tuned and field in spec.tuned.fields:
        return "tuned"
    value = fields.get(field)
    own_init = field == "init" and spec.facts.own_init
    unused = field not in fields or (not spec.adapter and field in AdapterSpec.model_fields)
    return None if value is None and (unused or own_init) else _as_text(value)


def _as_text(value: object) -> str:
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, dict):
        own = ", ".join(f"{_words(key)} {_as_text(said)}" for key, said in value.items())
        return str(value.get("name", own))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _decided_by(study: Study, values: list[str | None]) -> str:
    """Say which of method, task or label alone decides a field's value; else it is an axis."""
    keys = {
        "method": [run.spec.facts.label for run in study.runs],
        "task": [run.spec.task.name for run in study.runs],
        "variant": [label_words(run.label) or "unlabelled" for run in study.runs],
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
                "field": _words(field),
                "base": _as_text(base.get(field)),
                "switched": _as_text(value),
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
            facts.setdefault(key, {})[_as_text(value)] = None
    return pd.DataFrame(
        [{"fact": _words(key), "value": ", ".join(values)} for key, values in facts.items()]
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
