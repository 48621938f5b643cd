"""Claims of papers, tested on a study's runs or on published results by seed.

A claim says that an effect lies in a region: within a margin, above a bound, and so on. Its verdict
comes from two tests: one of "it lies outside", which supports the claim when it is rejected, and
one of "it lies inside", which contradicts it.

    region            supported by                                 contradicted by
    within a margin   TOST                                         a t test against the nearer end
    beyond a bound    a t test against the bound                   the same, on the other side

The t tests are two-sided: a claim is contradicted where the 95 % interval lies outside as a whole,
as a published number is not reproduced only then (verdicts.py).

Parts: a claim that speaks of several pairs of cells (each rank with each other, or one pair under
two settings) has to hold for all. It is supported if every part is (the largest p counts), and
contradicted if one is, after a correction for their number (the smallest p, times that number).

Seeds: cells are compared by the spread that all cells of the task and model share (pooling.py).
Where the compared cells have the same seeds, what the seeds share is taken out of it. A single run
on each side can be tested only with a spread from elsewhere (`Evidence.borrowed`). Outcomes that a
run has or has not (a collapse) are counted, and tested exactly (shares.py).

The smaller of a claim's two p-values is adjusted over the claims that a study lists (Holm); those
that it does not list are a family of their own. What is counted, such as parameters, needs no test,
and a setting that was chosen from a few is known only to within the neighbours of those that the
trials can't tell from the best. Beside a published
number the margin and the reading of its ± are those of the study's verdicts (verdicts.py).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import pandas as pd

from loraudit.analysis.cells import choices_of, collapsed, label_text
from loraudit.analysis.claim_tests import (
    Outcome,
    Part,
    not_comparable,
    outcome,
    parts_of,
    regions,
    seeds_to_decide,
    smallest_shown,
)
from loraudit.analysis.evidence import Cell, Evidence, differing_settings, selects
from loraudit.analysis.quantities import epoch_of
from loraudit.analysis.statistics import SIGNIFICANCE, holm
from loraudit.base.named_code import resolve
from loraudit.studies.claims import Claim

Verdict = Literal["supported", "contradicted", "undecided", "not tested"]

AT_SCALE, IN_SMALL = "at scale", "in small"
ANOTHER_PROTOCOL = "at scale, another protocol"
SCOPE_NOT_KNOWN = "scope not known"


def claim_verdicts(
    evidence: Evidence, claims: Iterable[Claim], listed: Collection[str] = ()
) -> pd.DataFrame:
    """Test claims on evidence.

    Args:
        evidence: a study's runs, or published results.
        claims: all that are looked at.
        listed: the ids of those that the study asks; they have a row even if nothing can be tested.

    Returns:
        A row per claim, task and model. effect and its 95 % and 90 % intervals (low, high, low90,
        high90) are in the quantity's own unit, or logarithms where `log` is true; region_low and
        region_high are the effects that the claim allows; they are those of the part that fits the
        claim least (`part`, of `parts`; `beside` says what its value alone does not tell). n is the
        fewest runs of a cell. `supports` and `contradicts` are p-values, p_holm the smaller of them
        adjusted over the `family`. `verdict` is by p_holm, `unadjusted` without that correction.
        `smallest` is how far from the region's
        edge an effect is found in 80 % of such studies; `seeds` with how many per cell it would be
        decided if the effect is the one seen. `epoch` is the choice of an epoch that was judged.
        `scale` says whether this is the claim's own setting, and `why` why not; `protocol` (a word)
        and `protocol_why` compare the cell's protocol with a published number's. `sick` names
        collapsed runs, `edge` cells whose chosen values lie at the edge of what was tried, so that
        better ones may lie beyond, `undefined` the runs without a value, `caution` what is known of
        task and model beforehand, `coarse` is the factor within which neighbouring values would
        have to lie that were tried, where they lie too far apart to support the claim, and
        `missing` what was not there to test.
    """
    rows: list[dict] = []
    found: list[Outcome | None] = []
    for claim in claims:
        asked = claim.id in listed
        mine = [
            (subject, outcome(claim, parts))
            for subject in evidence.subjects()
            if (parts := parts_of(claim, evidence, subject))
        ]
        for subject, result in mine:
            rows.append(_row(claim, evidence, subject, result) | {"listed": asked})
            found.append(result)
        if asked and not mine:
            rows.append(_untested(claim, evidence) | {"listed": True})
            found.append(None)
    return _decided(pd.DataFrame(rows), found) if rows else pd.DataFrame()


def _facts(claim: Claim) -> dict:
    return {
        "claim": claim.id,
        "statement": claim.statement,
        "where": claim.where,
        "confidence": claim.confidence,
        "test": claim.test,
        "quantity": claim.quantity,
        "unit": claim.unit or ("points" if claim.published else "times"),
        "note": claim.note,
    }


def _row(claim: Claim, evidence: Evidence, subject: tuple[str, str], found: Outcome) -> dict:
    """Return what a claim's parts show in one task and model, before it is decided."""
    cells = list({id(c): c for part in found.parts for c in part.cells}.values())
    unknown = scope_not_known(claim)
    why = out_of_scope(claim, evidence, subject, cells)
    alike = found.alike
    at_scale = ANOTHER_PROTOCOL if alike and alike.word == "another" else AT_SCALE
    low, high = found.interval(0.95)
    low90, high90 = found.interval(0.90)
    return {
        **_facts(claim),
        "task": subject[0],
        "model": subject[1],
        "log": claim.test == "ratio" or claim.facts.kind == "chosen",
        "effect": found.worst.effect.value,
        **{"low": low, "high": high, "low90": low90, "high90": high90},
        **{"region_low": found.worst.region.low, "region_high": found.worst.region.high},
        "part": found.worst.name,
        "beside": _beside(claim, evidence, found.worst),
        "parts": len(found.parts),
        "n": min(part.n for part in found.parts),
        "how": found.worst.how,
        "epoch": found.worst.epoch,
        "tested": any(part.tested for part in found.parts),
        "supports": found.supports,
        "contradicts": found.contradicts,
        "scale": IN_SMALL if why else SCOPE_NOT_KNOWN if unknown else at_scale,
        "why": "; ".join([*why, *unknown]),
        "protocol": alike.word if alike else "",
        "protocol_why": alike.sentence if alike else "",
        "sick": ", ".join(_sick(found.parts)),
        "edge": "; ".join(_at_edge(cells)),
        "undefined": ", ".join(
            dict.fromkeys(run for part in found.parts for run in part.undefined)
        ),
        "coarse": _coarse(found),
        "caution": evidence.cautions.get(subject, ""),
        "unlike": ", ".join(_unlike(claim, found)),
        "missing": "",
    }


def _beside(claim: Claim, evidence: Evidence, part: Part) -> str:
    """Say what the value of a part's only cell does not tell; "" of a comparison of cells."""
    if not claim.facts.beside or len(part.cells) > 1:
        return ""
    return str(resolve(claim.facts.beside)(part.cells[0], evidence))


def _unlike(claim: Claim, found: Outcome) -> list[str]:
    """Name the chosen settings in which cells that were compared differ."""
    names = [
        name
        for part in found.parts
        if len(part.cells) > 1
        for name in differing_settings(part.cells, claim.free_fields)
    ]
    return list(dict.fromkeys(names))


def _sick(parts: Sequence[Part]) -> list[str]:
    """Name the runs that collapsed at the epoch that is judged; what has no epoch: at the first."""
    names: list[str] = []
    for part in parts:
        for runs in (cell.runs for cell in part.cells if "run" in cell.runs):
            epoch = part.epoch or next(iter(choices_of(runs)), "")
            names += runs.run[collapsed(runs, epoch)].tolist()
    return list(dict.fromkeys(names))


def _at_edge(cells: Sequence[Cell]) -> list[str]:
    """Name the cells that chose the smallest or largest value that was tried, and their fields."""
    found = []
    for cell in (one for one in cells if "at_edge" in one.runs):
        fields = label_text(cell.runs.at_edge.iloc[0]).replace("_", " ")
        found += [f"{cell.name} in {fields}"] if fields else []
    return found


def _coarse(found: Outcome) -> float:
    """Return within which factor neighbouring values have to lie to support a claim; NaN: they do.

    Each cell's chosen value is known to within its neighbours at best. All of this has to lie
    within what the claim allows: it takes two thirds of that with this factor, so that the effect
    need not lie in the very middle.
    """
    coarse = [part for part in found.parts if part.coarse]
    if not coarse:
        return math.nan
    return coarse[0].region.widest_factor(len(coarse[0].cells))


def out_of_scope(
    claim: Claim, evidence: Evidence, subject: tuple[str, str], cells: Sequence[Cell]
) -> list[str]:
    """Say why a task and model are not the setting that a claim was made for; empty if they are."""
    (task, model), scope = subject, claim.scope
    found = []
    if scope.models and model not in scope.models:
        found.append(f"another model ({model}; the claim is of {_some(scope.models)})")
    if scope.tasks and task not in scope.tasks:
        found.append(f"another task ({task}; the claim is of {_some(scope.tasks)})")
    rows = {cell.fields.get("train_rows") for cell in cells}
    if scope.train_rows is None:
        if part := evidence.subsets.get(subject):
            found.append(f"a subset ({part})")
        elif rows - {None}:
            found.append(f"a subset ({min(r for r in rows if r):,} training rows)")
    elif rows != {scope.train_rows}:
        found.append(f"another number of training rows than {scope.train_rows:,}")
    return found


def scope_not_known(claim: Claim) -> list[str]:
    """Say what of a claim's scope is not known."""
    known = {"models": claim.scope.models, "tasks": claim.scope.tasks}
    return [
        f"it is not known which {what} the claim is of"
        for what, names in known.items()
        if names is None
    ]


def _some(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _untested(claim: Claim, evidence: Evidence) -> dict:
    """Return the row of a claim that no cells of the evidence can show."""
    region = regions(claim)
    return {
        **_facts(claim),
        "region_low": region.low,
        "region_high": region.high,
        "parts": 0,
        "n": 0,
        "tested": False,
        "log": claim.test == "ratio" or claim.facts.kind == "chosen",
        "missing": missing(claim, evidence),
        **dict.fromkeys(("task", "model", "part", "how", "epoch", "scale", "why", "protocol"), ""),
        **dict.fromkeys(("protocol_why", "sick", "edge", "undefined", "caution", "unlike"), ""),
        "beside": "",
        "coarse": math.nan,
    }


def missing(claim: Claim, evidence: Evidence) -> str:
    """Say which cells a claim would need: the selections that nothing is in, or that don't meet."""
    if claim.facts.absent and not len(evidence.tables.get(claim.facts.tables[0], ())):
        return f"no {claim.facts.label}: {claim.facts.absent}"
    empty = [
        f"{name} ({side_text(side)})"
        for name, side in claim.sides.items()
        if not any(selects(side, cell) for cell in evidence.cells)
    ]
    if empty:
        return f"no run of {' and '.join(empty)}"
    if claim.epoch and all(
        epoch_of(evidence, subject, claim.epoch) is None for subject in evidence.subjects()
    ):
        return f"no {claim.epoch} epoch: the runs choose none (validate_epochs and selection_rows)"
    if claim.published:
        if against := not_comparable(claim, evidence):
            return f"not comparable with {claim.published}: {'; '.join(against)}"
        return f"{claim.published} has no number of the task, model, method, rank and targets"
    if claim.facts.kind == "chosen":
        return f"no {claim.facts.label}: the settings were set by hand, and not by `tune`"
    if claim.facts.tables and not any(name in evidence.tables for name in claim.facts.tables):
        return f"no {claim.facts.label}: it is measured on the adapters of a complete study"
    if claim.axis:
        return f"no cells that differ in {claim.axis} alone and have all the values asked for"
    return f"no {claim.facts.label} of cells that differ in what the claim names alone"


def side_text(side: Mapping[str, object]) -> str:
    """Write a selection for readers: "method lora, rank 1 or 8"."""

    def said(value: object) -> str:
        return " or ".join(map(str, value)) if isinstance(value, list) else str(value)

    return ", ".join(f"{field.replace('_', ' ')} {said(value)}" for field, value in side.items())


def _decided(table: pd.DataFrame, found: Sequence[Outcome | None]) -> pd.DataFrame:
    """Adjust the tests over their families, and add the verdicts and what the seeds can show."""
    columns = ("effect", "low", "high", "low90", "high90", "supports", "contradicts")
    table = table.reindex(columns=[*table, *(name for name in columns if name not in table)])
    p = table[["supports", "contradicts"]].min(axis=1)
    inside = p.where(table.tested.astype(bool))
    family = inside.groupby(table.listed)
    table["p_holm"] = family.transform(lambda part: holm(part.tolist()))
    table["family"] = family.transform("count").where(inside.notna())
    p_values = table.p_holm.where(table.tested.astype(bool), p)
    words, plain = (
        [
            decide(row.supports, row.contradicts, one) if row.parts else "not tested"
            for row, one in zip(table.itertuples(), adjusted, strict=True)
        ]
        for adjusted in (p_values, p)
    )
    sizes = table.family.fillna(0)
    return table.assign(
        verdict=words,
        unadjusted=plain,
        smallest=[
            smallest_shown(one, int(size)) if one else math.nan
            for one, size in zip(found, sizes, strict=True)
        ],
        seeds=[
            seeds_to_decide(one, int(size)) if one and word == "undecided" else math.nan
            for one, size, word in zip(found, sizes, words, strict=True)
        ],
    )


def decide(supports: float, contradicts: float, p: float | None = None) -> Verdict:
    """Turn a claim's two p-values into a word.

    Args:
        supports, contradicts: of "the effect is outside" and "inside" what the claim allows; NaN
            where nothing could be tested.
        p: the smaller of them, adjusted for other tests; None: as it is.
    """
    known = [one for one in (supports, contradicts) if one == one]
    least = min(known, default=math.nan) if p is None else p
    if not known or not least < SIGNIFICANCE:
        return "undecided"
    return "supported" if supports == min(known) else "contradicted"
