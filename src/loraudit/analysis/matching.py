"""Which published numbers stand beside which cells, and what forbids a comparison."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from loraudit.analysis.cells import cell_of, choices_of
from loraudit.studies.accounts import accounts
from loraudit.studies.entries import FITTING
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import Architecture, Published
from loraudit.studies.spec import RunSpec
from loraudit.studies.study import Study

SAME_SIZE = 0.02
"""The share by which two models of one architecture may differ in parameters: by their heads."""

AS_PRINTED = 0.2
"""The share by which a printed parameter count may differ from the true one: "0.3M" is 294,912."""


PLAIN: dict[str, Any] = {"peft": {}, "lora_plus": None, "base_bits": None, "ranks": "uniform"}
"""Fields that make a method another one of the same name, with the value that makes none."""


def matching(cell: dict, runs: pd.DataFrame, numbers: Iterable[Published]) -> list[Published]:
    """Return the numbers that stand beside a cell.

    These are of the cell's task, method (either LoRA implementation is "lora"), metric, rank,
    targets and training rows. If none of the cell's own model matches, it is the first of each
    published table that is of the cell's rank and targets for certain.
    """
    method = METHODS[cell["method"]].published_as or cell["method"]
    first = runs.iloc[0]
    fitting = [
        number
        for number in numbers
        if (number.task, number.method) == (cell["task"], method)
        and number.rank in (None, cell["rank"])
        and number.targets in (None, cell["targets"], first.matrices)
        and number.train_rows in (None, first.rows_train)
        and f"last_{number.metric}" in runs
        and runs[f"last_{number.metric}"].notna().any()
    ]
    own = [number for number in fitting if number.model == cell["model"]]
    others = [number for number in fitting if not _vague(cell, number)]
    return own or list({number.key: number for number in reversed(others)}.values())


def _vague(cell: dict, number: Published) -> bool:
    """Tell whether a number of an adapter does not say which: its rank or targets are missing."""
    return METHODS[cell["method"]].trains == "adapter" and None in (number.rank, number.targets)


def obstacles(
    cell: dict,
    runs: pd.DataFrame,
    number: Published,
    models: Mapping[str, Architecture] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> list[str]:
    """Say all that forbids comparing a cell with a number; empty where nothing does.

    Args:
        cell, runs: the columns that name the cell, and its rows of the tidy table.
        models: what the models of the published numbers are.
        fields: those of the cell's runs, as `accounts.of_run` has them, as far as they are known.
    """
    found = [
        number.doubt and f"the number is in doubt: it {number.doubt}",
        number.model != cell["model"] and f"another model: the number is {number.model}'s",
        _vague(cell, number) and "the number's rank or targets are not stated",
        number.unit == "other"
        and "another unit: the number is neither a percentage nor a fraction (unit: other)",
        number.split != "validation" and f"another split: the number is of {number.split}",
        number.selection == "none"
        and "another epoch: the number is of neither the best nor the last",
        number.selection == "best epoch"
        and "best" not in choices_of(runs)
        and "another epoch: not every epoch was scored on the validation rows, so none is the best",
    ]
    if number.model == cell["model"]:
        found += _other_model(runs, number, (models or {}).get(str(number.model)), fields or {})
    found += _other_method(fields or {}, number)
    return [*filter(None, found), *_other_rows(runs, number)]


def _other_method(fields: Mapping[str, Any], number: Published) -> Iterable[str]:
    """Say what makes a cell's method another than the number's, though it has the same name.

    A number that does not say so is of no variant: neither of DoRA, say, nor of a quantised base.
    """
    for name, plain in PLAIN.items():
        own = fields.get(name)  # None where the method has no such field
        if own in (None, plain) or any(one.get(name) == own for one in accounts(number).values()):
            continue
        yield f"another method: {name} is {own}, which is not stated of the number"


def _other_model(
    runs: pd.DataFrame, number: Published, known: Architecture | None, fields: Mapping[str, Any]
) -> Iterable[str | bool]:
    """Say what shows that a model of the number's name is not the number's model."""
    first = runs.iloc[0]
    counts = first.get("parameters_adapter", 0), first.get("parameters_model")
    if number.parameters and METHODS[first.method].trains == "adapter" and counts[0]:
        off = abs(counts[0] / number.parameters - 1) > AS_PRINTED
        yield off and (
            f"another size: {counts[0]:,} adapter parameters, the number's are "
            f"{number.parameters:,.0f}"
        )
    if known is None:
        return
    other = f"only the name is {number.model}'s"
    if counts[1] is not None and abs(counts[1] / known.parameters - 1) > SAME_SIZE:
        yield f"{other}: {counts[1]:,} parameters, not about {known.parameters:,}"
    plain = not (fields.get("peft") or {}).get("peft_type")  # another method than LoRA has others
    shaped = _adapter_parameters(first, known) if plain else 0
    if counts[0] and shaped and abs(counts[0] / shaped - 1) > AS_PRINTED:
        yield (
            f"{other}: {counts[0]:,} adapter parameters, where {known.layers} layers of width "
            f"{known.width} would have {shaped:,}"
        )
    if known.sha256 and "weights" in runs and (runs.weights != known.sha256).any():
        yield f"{other}: other weights (their SHA-256 differs)"


def _adapter_parameters(run: pd.Series, known: Architecture) -> int:
    """Return the parameters of plain LoRA on a model of that shape; 0 for other methods.

    A matrix of attention has width x width, one of the MLP width x 4 width.
    """
    if METHODS[run.method].published_as != "lora" and run.method != "lora":
        return 0
    sides = [5 if name in ("gate", "up", "down") else 2 for name in run.matrices.split("+")]
    return round(known.layers * run["rank"] * known.width * sum(sides))


def _other_rows(runs: pd.DataFrame, number: Published) -> list[str]:
    """Say which splits have other rows than the number's."""
    splits: dict[str, int | None] = {"train": number.train_rows, "validation": None}
    for metric in FITTING:
        if number.metric.startswith(f"{metric}_"):  # accuracy_mismatched
            splits[number.metric.removeprefix(f"{metric}_")] = None
    found = []
    for split, wanted in splits.items():
        published = runs.get(f"published_rows_{split}", pd.Series(dtype=float))
        if published.empty or published.isna().any():
            found.append("the published size of the task is not in tasks.yaml")
            break
        wanted = wanted or int(published.iloc[0])
        if (runs[f"rows_{split}"] != wanted).any():
            count = int(runs[f"rows_{split}"].min())
            found.append(f"a subset: {count:,} {split} rows, the number is for {wanted:,}")
    return found


def planned_runs(study: Study) -> pd.DataFrame:
    """Return a study's runs as rows of the tidy table, with what is known before they are made.

    Splits count as whole unless the study takes a part of them; scores are 0.
    """
    rows = []
    for run in study.runs:
        spec, published = run.spec, run.spec.task.rows or {}
        asked = {"train": spec.train_rows, "validation": spec.validation_rows}
        row = {"run": run.id, **cell_of(run), "seed": spec.seed, "metric": spec.task.headline}
        row |= {f"published_rows_{split}": count for split, count in published.items()}
        held = {"train": spec.selection_rows or 0}
        left = {split: n - held.get(split, 0) for split, n in published.items()}
        row |= {f"rows_{split}": asked.get(split) or n for split, n in left.items()}
        row |= {f"{epoch}_{name}": 0.0 for name in _metrics(spec) for epoch in spec.choices}
        row |= dict.fromkeys(spec.choices, 0.0)
        rows.append({**row, "matrices": "+".join(spec.adapter.targets if spec.adapter else ())})
    return pd.DataFrame(rows)


def _metrics(spec: RunSpec) -> Sequence[str]:
    task = spec.task
    return [*task.metrics, *(f"{m}_{split}" for m in task.metrics for split in task.also_validate)]
