"""What claims are tested on: cells with their fields, and a row for each run.

A study's runs and published results by seed become the same thing here, so that one test serves
both.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from loraudit.analysis.cells import CELL, SUBJECT, cell_name, chosen_spec, label_text
from loraudit.analysis.pooling import Spread
from loraudit.analysis.verdicts import SCALE
from loraudit.studies.accounts import accounts, of_run
from loraudit.studies.alpha import alpha_of
from loraudit.studies.claims import Side, alternatives
from loraudit.studies.methods import METHODS
from loraudit.studies.names import targets_name
from loraudit.studies.reference import Architecture, Published
from loraudit.studies.spec import ADAPTER_FIELDS, RunSpec
from loraudit.studies.study import Study

OWN_SETTINGS = tuple(name for name, method in METHODS.items() if method.settings)
"""Fields with the settings of one method alone."""

CHOSEN = (
    *("learning_rate", "alpha", "weight_decay", "warmup_ratio", "schedule"),
    *("micro_batch", "compute", "recompute", "padding", "batching", "base_group", *OWN_SETTINGS),
)
"""Settings that a study may choose for each cell: cells that differ in nothing else, and in what a
claim compares, are matched, the nearest first."""

RECIPE = (*("epochs", "global_batch", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),)
"""Further settings that are each method's own where one trains an adapter and the other does not:
published protocols give full fine-tuning its own recipe."""

NOT_COMPARED = ("task", "model", "seed", "tuned", "precision")


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed only.

    `fields` are a run's fields by their names in a study file, as far as they are known; `runs` has
    a row per seed, of the tidy table's columns (at least seed, and a score for each choice of an
    epoch that was made). `number` is the published number that it was made of, None for runs.
    """

    name: str
    task: str
    model: str
    fields: Mapping[str, Any]
    runs: pd.DataFrame
    label: str = ""
    number: Published | None = None

    @property
    def subject(self) -> tuple[str, str]:
        """The task and model."""
        return self.task, self.model


@dataclass(frozen=True)
class Evidence:
    """Cells that claims are tested on.

    `tables` are further tidy tables by name. `subsets` says of a (task, model) which splits are
    smaller than the task's own, `cautions` what is known of it beforehand. `training` are the
    training rows by (task, model), None for the whole split. `borrowed` is the spread to test
    single runs with, and `borrowed_from` what it is of. `margin` and `reading` are those of
    comparisons with published numbers (`verdicts`), `models` what the numbers' models are.
    """

    name: str
    cells: tuple[Cell, ...]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    subsets: Mapping[tuple[str, str], str] = field(default_factory=dict)
    cautions: Mapping[tuple[str, str], str] = field(default_factory=dict)
    borrowed: Spread | None = None
    borrowed_from: str = ""
    margin: float | None = None
    reading: str = "sd"
    models: Mapping[str, Architecture] = field(default_factory=dict)

    def subjects(self) -> list[tuple[str, str]]:
        """Return each (task, model) once, in order."""
        return list(dict.fromkeys(cell.subject for cell in self.cells))


def of_study(
    study: Study,
    runs: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame] | None = None,
    models: Mapping[str, Architecture] | None = None,
) -> Evidence:
    """Make evidence of a study's tidy runs, and of further tidy tables by their names.

    `models` say what the models of published numbers are.
    """
    specs = {run.id: run for run in study.runs}
    cells = []
    for _, part in runs.groupby(CELL, dropna=False, sort=False):
        first = part.iloc[0]
        names = {key: first[key] for key in CELL}
        cells.append(
            Cell(
                name=cell_name(names),
                task=first.task,
                model=first.model,
                fields=fields_of(chosen_spec(specs[first.run].spec, part)),
                runs=part,
                label=label_text(first.label),
            )
        )
    subjects = {key: _subset(part) for key, part in runs.groupby(SUBJECT, sort=False)}
    cautions = {(known.task, known.model): known.sentence() for known in study.contaminations}
    return Evidence(
        study.name,
        tuple(cells),
        tables or {},
        subjects,
        cautions,
        margin=study.margin,
        reading=study.reading,
        models=models or {},
    )


def fields_of(spec: RunSpec) -> dict[str, Any]:
    """Return a run's fields; targets as they are named, with the matrices beside them."""
    fields = of_run(spec)
    if spec.adapter:
        fields["targets"] = targets_name(spec)
        fields["matrices"] = tuple(spec.adapter.targets)
    return fields


def _subset(runs: pd.DataFrame) -> str:
    """Say which splits of a task and model have fewer rows than the task's own; "" if none."""
    found = []
    for split in ("train", "validation"):
        name = f"published_rows_{split}"
        if name not in runs or runs[name].isna().any():
            return "the published size of the task is not known"
        least, whole = int(runs[f"rows_{split}"].min()), int(runs[name].iloc[0])
        if least < whole:
            found.append(f"{least:,} of {whole:,} {split} rows")
    return ", ".join(found)


def of_published(
    name: str, numbers: Iterable[Published], margin: float | None = None, reading: str = "sd"
) -> Evidence:
    """Make evidence of published results by seed, and of published single runs.

    Single runs show no spread: they are tested with the one that the results by seed have, pooled
    over their tasks. Numbers in doubt, of several seeds without these, or of no stated epoch are
    left out. `margin` and `reading` are those of comparisons with further published numbers.
    """
    usable = [
        number
        for number in numbers
        if (number.seeds or number.statistic == "single run")
        and not number.doubt
        and number.selection in ("best epoch", "last epoch")
        and number.unit != "other"
        and number.task
        and number.model
    ]
    cells = tuple(map(_published_cell, usable))
    spreads = [c for c in cells if len(c.runs) > 1]
    freedom = sum(len(cell.runs) - 1 for cell in spreads)
    borrowed = None
    if freedom:
        total = sum(float(c.runs["reported"].var()) * (len(c.runs) - 1) for c in spreads)
        borrowed = Spread(total / freedom, freedom)
    tasks = ", ".join(dict.fromkeys(cell.task for cell in spreads))
    source = f"{name}'s seeds of {tasks}"
    return Evidence(
        name, cells, borrowed=borrowed, borrowed_from=source, margin=margin, reading=reading
    )


def _published_cell(number: Published) -> Cell:
    """Make the cell of one published number."""
    stated = next(iter(accounts(number).values()), {})
    own = {key: getattr(number, key) for key in ("method", "rank", "alpha", "train_rows")}
    fields = {**stated, **{key: value for key, value in own.items() if value is not None}}
    if number.targets:
        fields |= {"targets": number.targets}
        if number.targets != "all":
            fields |= {"matrices": tuple(number.targets.split("+"))}
    scale = SCALE[number.unit]
    epochs = number.seeds or {0: (number.value,)}
    made = "last" if number.selection == "last epoch" else "best"
    rows = [
        {"seed": seed, "last": scores[-1] / scale, "best": max(scores) / scale}
        for seed, scores in epochs.items()
    ]
    runs = pd.DataFrame(rows)
    if not number.seeds:
        runs = runs[["seed", made]]
    name = cell_name(
        {
            "method": number.method,
            "rank": math.nan if number.rank is None else number.rank,
            "targets": number.targets,
            "label": "",
        }
    )
    task, model = str(number.task), str(number.model)
    return Cell(name, task, model, fields, runs.assign(reported=runs[made]), number=number)


def selects(side: Side, cell: Cell) -> bool:
    """Tell whether a cell is in a selection; a field that is not known of it is not selected by."""
    return all(
        any(_has(cell.fields, name, one) for one in alternatives(value))
        if value is not None
        else cell.fields.get(name, "unknown") is None
        for name, value in side.items()
    )


def _has(fields: Mapping[str, Any], name: str, value: Any) -> bool:
    known = fields.get(name)
    if known is None:
        return False
    if name == "targets":
        if value == "all":
            return known == "all"
        return set(str(value).split("+")) == set(fields.get("matrices", ()))
    if name == "alpha":
        wanted = alpha_of(value, fields.get("rank") or math.nan, "alpha")
        return math.isclose(known, wanted, rel_tol=1e-6)
    if name == "warm_start" and isinstance(value, str):
        return isinstance(known, dict) and known.get("task") == value
    if name == "method" and known in METHODS and METHODS[known].trains == "weights":
        return value in (known, METHODS[known].published_as)
    return known == value


def nearest(cell: Cell, others: Sequence[Cell], free: set[str]) -> list[Cell]:
    """Return those of some cells that agree with a cell in all but free fields and chosen ones.

    If several do, it is those of its label, and of these the ones with the fewest other chosen
    settings. A setting that is tuned in both counts as the same and one that is tuned in one alone
    as another, whatever was chosen: what is compared must not depend on what the trials found.
    """
    fitting = [
        (other.label != cell.label, len(_others(cell, other, differing, free)), other)
        for other in others
        if other.subject == cell.subject
        and not (differing := _differing(cell, other, free)) - _own_settings(cell, other)
    ]
    if not fitting:
        return []
    least = min((label, count) for label, count, _ in fitting)
    return [other for label, count, other in fitting if (label, count) == least]


def _others(one: Cell, two: Cell, differing: set[str], free: set[str]) -> set[str]:
    """Return the settings of two cells that count as others, by how they came about."""
    tuned, as_well = (set(cell.fields.get("tuned") or ()) for cell in (one, two))
    return (differing | (tuned ^ as_well)) - (tuned & as_well) - free


def differing_settings(cells: Sequence[Cell], free: set[str]) -> list[str]:
    """Return the settings, of `CHOSEN` and `RECIPE`, in which matched cells differ."""
    found = set().union(*(_differing(cells[0], other, free) for other in cells[1:]))
    return [name for name in (*CHOSEN, *RECIPE) if name in found]


def _own_settings(one: Cell, two: Cell) -> set[str]:
    """Return the settings in which two matched cells may differ."""
    kinds = {METHODS[cell.fields["method"]].trains for cell in (one, two)}
    return {*CHOSEN, *(RECIPE if "adapter" in kinds and len(kinds) > 1 else ())}


def _differing(one: Cell, two: Cell, free: set[str]) -> set[str]:
    """Return the fields, known of both cells and not free, that differ."""
    skipped = {*free, *NOT_COMPARED, "matrices"}
    if None in (one.fields.get("rank", 0), two.fields.get("rank", 0)):  # a method without adapter
        skipped |= ADAPTER_FIELDS
    if None in (one.fields.get("init", ""), two.fields.get("init", "")):  # it starts its own way
        skipped |= {"init", "init_std"}
    if "targets" not in skipped and "matrices" in one.fields and "matrices" in two.fields:
        skipped.add("targets")
        differ = set(one.fields["matrices"]) != set(two.fields["matrices"])
    else:
        differ = False
    shared = (set(one.fields) & set(two.fields)) - skipped
    found = {name for name in shared if _text(one.fields[name]) != _text(two.fields[name])}
    return found | ({"targets"} if differ else set())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=list)
