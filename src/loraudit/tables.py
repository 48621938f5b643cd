"""Tables for readers: numbers rounded, methods by their names."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from loraudit.record import read_record
from loraudit.study import Study

METHOD_NAMES = {
    "lora": "LoRA (ours)",
    "peft": "LoRA (PEFT)",
    "head": "head only",
    "full": "full fine-tuning",
}


def percent(mean: float, sd: float) -> str:
    """Write a score as percent with its standard deviation, or without where n = 1."""
    return f"{100 * mean:.1f}" + (f" ± {100 * sd:.1f}" if sd == sd else "")


def summary_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Turn `statistics.aggregate`'s rows into a table for readers."""
    columns: dict[str, list] = {
        "task": list(summary.task),
        "method": [METHOD_NAMES[method] for method in summary.method],
        "rank": ["" if rank != rank else f"{rank:g}" for rank in summary["rank"]],
        "targets": ["" if pd.isna(name) else name for name in summary.targets],
        "adapter parameters": [f"{count:,}" for count in summary.parameters_adapter],
        "trainable": [f"{count:,}" for count in summary.parameters_trainable],
        "n": list(summary.n),
    }
    labels = ["" if pd.isna(label) else str(label) for label in summary.label]
    if any(labels):
        columns["variant"] = labels
    for epoch in ("best", "last"):
        means, sds = summary[f"{epoch}_mean"], summary[f"{epoch}_sd"]
        columns[f"{epoch} epoch: mean ± SD, %"] = [
            percent(mean, sd) for mean, sd in zip(means, sds, strict=True)
        ]
        columns[f"{epoch}: median"] = [f"{100 * value:.1f}" for value in summary[f"{epoch}_median"]]
    return pd.DataFrame(columns)


def protocol_table(study: Study) -> pd.DataFrame:
    """List every run field and the values it takes in the study."""
    rows = []
    for field in type(study.runs[0].spec).model_fields:
        values = [getattr(run.spec, field) for run in study.runs]
        shown = [getattr(value, "name", value) for value in values]
        distinct = dict.fromkeys(
            "+".join(value) if isinstance(value, tuple) else str(value)
            for value in shown
            if value is not None
        )
        rows.append({"field": field, "value": ", ".join(distinct) or "none"})
    return pd.DataFrame(rows)


def provenance_table(study: Study, folder: Path) -> pd.DataFrame:
    """List what the runs' records say of code, versions and machine; differing values all show."""
    found: dict[str, dict[str, None]] = {}
    for run in study.runs:
        for key, value in _flat(read_record(folder / run.id / "record.json").environment):
            found.setdefault(key, {})[str(value)] = None
    return pd.DataFrame(
        [{"fact": key, "value": ", ".join(values)} for key, values in found.items()]
    )


def _flat(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, value
