"""The runs that a study would need to test a claim that its own runs can't show."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from loraudit.analysis.claim_tests import Part, parts_of, regions
from loraudit.analysis.claims import missing
from loraudit.analysis.evidence import Cell, Evidence, of_study, selects
from loraudit.analysis.matching import planned_runs
from loraudit.base.errors import UserError
from loraudit.base.shipped import read_table
from loraudit.studies.claims import Claim, Side, alternatives, select_claims
from loraudit.studies.expand import make_spec
from loraudit.studies.grid import NAMED
from loraudit.studies.names import run_id
from loraudit.studies.reference import load_models
from loraudit.studies.spec import CHOICES, AdapterSpec, RunSpec
from loraudit.studies.study import Run, Study

DEFAULTS = Path("config/defaults.yaml")


class Lacking(NamedTuple):
    """A claim that a study lists and can't test, why, and the runs that it would need."""

    claim: Claim
    why: str
    runs: tuple[Run, ...]


def planned_evidence(study: Study) -> Evidence:
    """Return a study's cells as planned, with made-up scores.

    Of the tables that jobs beside the runs make, only the names of the runs are there.
    """
    runs = planned_runs(study)
    made = {c: runs[c].mask(runs[c].notna(), 0.5) for c in CHOICES if c in runs}
    warm = [run.id for run in study.runs if run.spec.warm_start]
    read = [run.id for run in study.language_runs()]
    beside = {"forgetting": warm, "language_loss": read}
    tables = {name: pd.DataFrame({"run": names}) for name, names in beside.items()}
    return of_study(study, runs.assign(**made), tables, models=load_models())


def lacking(study: Study) -> list[Lacking]:
    """Return those of a study's claims that its planned runs can't test."""
    planned = planned_evidence(study)
    found = []
    for claim in select_claims(study.claims):
        if not can_be_tested(claim, planned):
            why = missing(claim if claim.facts.absent else _of_scores(claim), planned)
            if claim.facts.kind == "chosen" and "no run of" not in why:
                why = missing(claim, planned)
            found.append(Lacking(claim, why, tuple(needed_runs(claim, study, planned))))
    return found


def can_be_tested(claim: Claim, planned: Evidence) -> bool:
    """Tell whether planned cells have all that a claim compares.

    A claim on chosen settings needs cells that are tuned, one on forgetting cells that start warm,
    and one on language models a study that reads its runs as such.
    """
    return bool(_planned_parts(claim, planned))


def _planned_parts(claim: Claim, planned: Evidence) -> list[Part]:
    """Return what a claim compares of planned cells, as if it spoke of scores."""
    planned = _having(claim, planned)
    if claim.facts.kind == "chosen":
        name = claim.quantity
        tuned = (cell for cell in planned.cells if name in (cell.fields.get("tuned") or ()))
        planned = Evidence(planned.name, tuple(tuned))
    plain = _of_scores(claim)
    if claim.quantity not in SCORES:  # a task of any kind has it
        cells = (replace(c, runs=c.runs.drop(columns="metric")) for c in planned.cells)
        planned = Evidence(planned.name, tuple(cells))
    return [part for subject in planned.subjects() for part in parts_of(plain, planned, subject)]


def _having(claim: Claim, planned: Evidence) -> Evidence:
    """Return the cells whose runs will have a claim's quantity, if not all have it."""
    if not claim.facts.absent:
        return planned
    runs = set(planned.tables[claim.facts.tables[0]].run)
    cells = tuple(cell for cell in planned.cells if runs.issuperset(cell.runs.run))
    return replace(planned, cells=cells)


def too_coarse(study: Study) -> dict[str, float]:
    """Return the study's claims that can't be supported, since tried values lie too far apart.

    A chosen value is known only to within its neighbours, which may take two thirds of what the
    claim allows. With each claim comes the factor within which neighbouring values would have to
    lie; a claim of which only one end is bounded, and one
    that can't be tested, is left out.
    """
    planned = planned_evidence(study)
    specs = {run.id: run.spec for run in study.runs}
    found = {}
    for claim in select_claims(study.claims):
        region = regions(claim)
        if claim.facts.kind != "chosen" or not region.bounded:
            continue
        for part in _planned_parts(claim, planned):
            mine = (specs[cell.runs.run.iloc[0]] for cell in part.cells)
            if sum(_least_step(spec, claim.quantity) for spec in mine) > region.room:
                found[claim.id] = region.widest_factor(len(part.cells))
    return found


def _least_step(spec: RunSpec, name: str) -> float:
    """Return the least distance, as a logarithm, at which a value has neighbours to both sides."""
    candidates = spec.tuned.candidates if spec.tuned else ()
    tried = sorted({float(one.values[name]) for one in candidates if name in one.values})
    gaps = [math.log(above / below) for below, above in itertools.pairwise(tried)]
    return min(map(max, itertools.pairwise(gaps)), default=math.inf)


SCORES = {"score": "points", "log_loss": "nats"}
"""Quantities of which a planned cell has one or the other, with the unit of each."""


def _of_scores(claim: Claim) -> Claim:
    """Return the claim as if it spoke of scores, which all planned cells have."""
    name = claim.quantity if claim.quantity in SCORES else "score"
    return claim.model_copy(update={"quantity": name, "unit": SCORES[name]})


def needed_runs(claim: Claim, study: Study, planned: Evidence) -> list[Run]:
    """Return the runs that a study lacks for a claim, in the task and model of each of its cells.

    They are made from cells of the study that are in one of the claim's selections, or else from
    its first one, by changing what the selections name. Where a claim leaves open which values an
    axis has, nothing can be named.
    """
    planned = _having(claim, planned)
    specs = {run.id: run for run in study.runs}
    made: dict[str, Run] = {}
    for subject in planned.subjects():
        cells = [cell for cell in planned.cells if cell.subject == subject]
        chosen = [c for c in cells if any(selects(side, c) for side in claim.sides.values())]
        for cell in chosen or cells[:1]:
            for changes in _changes(claim):
                for name in cell.runs.run:
                    run = _changed(specs[name], changes)
                    if run and not _is_there(run, cells, changes):
                        made.setdefault(run.id, run)
    return list(made.values())


def _changes(claim: Claim) -> list[dict[str, Any]]:
    """Return what each selection of a claim sets, with every value that an axis names."""
    found = []
    for side in claim.sides.values():
        axes = [
            alternatives(value) if field == claim.axis else alternatives(value)[:1] or [None]
            for field, value in side.items()
        ]
        found += [dict(zip(side, values, strict=True)) for values in itertools.product(*axes)]
    return found


def _is_there(run: Run, cells: Iterable[Cell], changes: Side) -> bool:
    """Tell whether the study has a cell of these fields that keeps the run's other main ones."""
    spec = run.spec
    kept: dict[str, Any] = {"head": spec.head, "train_rows": spec.train_rows, "epochs": spec.epochs}
    kept |= {"base_bits": spec.base_bits}
    if spec.adapter:
        kept |= {"rank": spec.adapter.rank, "targets": "+".join(spec.adapter.targets)}
    wanted = {**{key: value for key, value in kept.items() if value is not None}, **changes}
    return any(selects(wanted, cell) and run.spec.seed in set(cell.runs.seed) for cell in cells)


def _changed(run: Run, changes: Mapping[str, Any]) -> Run | None:
    """Return a run with other values of some fields; None if they don't go together."""
    spec = run.spec
    fields = {key: value for key, value in spec.flat().items() if key != "tuned"}
    plain = read_table(DEFAULTS)
    if spec.adapter is None:
        fields |= {name: plain[name] for name in AdapterSpec.model_fields}
    if spec.base_group is None:
        fields["base_group"] = plain["base_group"]
    start = spec.warm_start.model_dump() if spec.warm_start else None
    own = {"task": spec.task, "model": spec.model, "warm_start": start}
    try:
        changed = make_spec({**fields, **own, **changes}, run.id)
    except UserError:
        return None
    return Run(id=run_id(changed, _label(changes)), label=_label(changes), spec=changed)


def _label(changes: Mapping[str, Any]) -> str:
    """Name what a run's name does not show by itself, as a study's axes do."""
    others = {key: value for key, value in changes.items() if key not in NAMED and value}
    words = (
        "-".join(f"{k}{v}" for k, v in value.items())
        if isinstance(value, dict)
        else f"{key}{value}"
        for key, value in others.items()
    )
    return "-".join(words)
