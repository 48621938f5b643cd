"""The tests behind claims: an effect with its error, the region that a claim says it is in, and the
parts that a claim has to hold for.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import scipy.stats

from loraudit.analysis.cells import CELL, label_text
from loraudit.analysis.evidence import Cell, Evidence, nearest, selects
from loraudit.analysis.pooling import Difference, Spread, pooled, summed
from loraudit.analysis.quantities import epoch_of
from loraudit.analysis.statistics import NO_SPREAD, SIGNIFICANCE, exact, mean_of, welch_error
from loraudit.analysis.verdicts import published_mean
from loraudit.analysis.words import MOST_SEEDS, POWER, difference_found
from loraudit.base.named_code import resolve
from loraudit.studies.claims import Claim
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import select

PAIRED = 5
"""Shared seeds from which values are compared seed by seed, by their own spread: a spread of fewer
differences would have three degrees of freedom or less."""


@dataclass(frozen=True)
class Region:
    """The effects that a claim allows, from `low` to `high`; one of them may be infinite."""

    low: float = -math.inf
    high: float = math.inf

    def beyond(self, value: float) -> float:
        """Return how far a value lies outside; below 0 inside, by its distance to the edge."""
        return max(self.low - value, value - self.high)

    @property
    def bounded(self) -> bool:
        """Whether both ends are finite: a claim that something is equal."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def p_inside(self, effect: Difference) -> float:
        """Return the p of "the effect lies outside": small supports the claim.

        For a region with two ends it is TOST's, for one with a single end that of a two-sided t
        test against it.
        """
        if not effect.error:
            return math.nan
        if self.bounded:
            return self._moved(effect).p_equivalent((self.high - self.low) / 2)
        return self._p_one(effect, self.beyond(effect.value) < 0)

    def p_outside(self, effect: Difference) -> float:
        """Return the p of "the effect lies inside": small contradicts the claim.

        For a region with two ends it is that of the minimum-effect test (`statistics.exceeds`).
        """
        if not effect.error:
            return math.nan
        if not self.bounded:
            return self._p_one(effect, self.beyond(effect.value) > 0)
        half, gap = (self.high - self.low) / 2, abs(self._moved(effect).value)
        near = scipy.stats.t.sf((gap - half) / effect.error, effect.freedom)
        return float(near + scipy.stats.t.sf((gap + half) / effect.error, effect.freedom))

    def _moved(self, effect: Difference) -> Difference:
        middle = (self.low + self.high) / 2
        return Difference(effect.value - middle, effect.error, effect.freedom)

    def _p_one(self, effect: Difference, towards: bool) -> float:
        distance = abs(self.beyond(effect.value)) / effect.error
        p = 2 * float(scipy.stats.t.sf(distance, effect.freedom))
        return p if towards else 1.0


@dataclass(frozen=True)
class Part:
    """One comparison that a claim has to hold for.

    `low` and `high` are the ends of what is known of the effect where no test is made: both are the
    effect itself for what is counted. `n` is the fewest runs of a cell.
    """

    name: str
    cells: tuple[Cell, ...]
    effect: Difference
    n: int
    how: str
    low: float = math.nan
    high: float = math.nan

    @property
    def tested(self) -> bool:
        """Whether the effect has a spread that tests are made by."""
        return self.effect.error > 0


class Values:
    """The values of cells by seed for one claim, and the spreads to test them with."""

    def __init__(self, claim: Claim, evidence: Evidence):
        self.claim, self.evidence = claim, evidence
        self.logs = claim.test == "ratio" or claim.facts.kind == "chosen"
        self.read = resolve(claim.facts.read)
        self.known: dict[int, pd.Series] = {}
        self.epochs: dict[tuple[str, str], str | None] = {}
        self.spreads: dict[tuple[str, str], tuple[dict[int, Spread], float]] = {}

    def of(self, cell: Cell) -> pd.Series:
        """Return a cell's values by seed, as logarithms where ratios are asked for."""
        if id(cell) not in self.known:
            if cell.subject not in self.epochs:
                self.epochs[cell.subject] = epoch_of(self.evidence, cell.subject, self.claim.epoch)
            found = self.read(cell, self.evidence, self.epochs[cell.subject])
            self.known[id(cell)] = np.log(found) if self.logs else found
        return self.known[id(cell)]

    def pool(self, subject: tuple[str, str]) -> tuple[dict[int, Spread], float]:
        """Return the spread to test each cell of a task and model with, and the freedom of all.

        Twins train the same runs, which count once: a twin has the spread of its counterpart.
        """
        if subject not in self.spreads:
            counted: dict[tuple, int] = {}
            place: dict[int, int] = {}
            own: list[Spread] = []
            for cell in (c for c in self.evidence.cells if c.subject == subject):
                values = self.of(cell)
                if len(values) < 2 or values.isna().any():
                    continue
                key = _twin_key(cell)
                if key not in counted:
                    counted[key] = len(own)
                    own.append(Spread(float(values.var()), len(values) - 1))
                place[id(cell)] = counted[key]
            shared = pooled(own)
            found = {cell: shared[index] for cell, index in place.items()}
            self.spreads[subject] = found, sum(spread.freedom for spread in own)
        return self.spreads[subject]


def _twin_key(cell: Cell) -> tuple:
    method = str(cell.fields.get("method"))
    facts = METHODS.get(method)
    plain = method if facts is None or cell.fields.get("peft") else facts.published_as or method
    fields = (cell.fields.get("rank"), str(cell.fields.get("targets")), cell.label)
    return (plain, *fields, json.dumps(cell.fields.get("peft")), cell.fields.get("base_bits"))


def contrast(values: Values, cells: Sequence[Cell], weights: Sequence[float], name: str) -> Part:
    """Return the sum of some cells' values times weights, as a part of a claim."""
    series = [values.of(cell) for cell in cells]
    n = min(map(len, series))
    means = [float(one.mean()) if len(one) else math.nan for one in series]
    effect = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
    if values.claim.facts.kind == "count":
        return Part(
            name, tuple(cells), Difference(effect, 0, math.inf), n, "counted", effect, effect
        )
    if values.claim.facts.kind == "chosen":
        steps = [_step(values, cell) for cell in cells]
        reach = sum(abs(w) * step for w, step in zip(weights, steps, strict=True))
        how = "chosen from values that were tried"
        nothing = Difference(effect, 0, math.inf)
        return Part(name, tuple(cells), nothing, n, how, effect - reach, effect + reach)
    shared = pd.concat(series, axis=1, join="inner")
    if len(shared) >= PAIRED:
        gaps = shared.to_numpy() @ np.asarray(weights, dtype=float)
        error, freedom = welch_error(mean_of(gaps.tolist()), exact(0.0))
        effect = float(gaps.mean())
        how = "paired by seed" if len(cells) > 1 else "seeds"
        return Part(name, tuple(cells), Difference(effect, float(error), freedom), len(gaps), how)
    error, freedom, how = _pooled_error(values, cells, weights)
    return Part(name, tuple(cells), Difference(effect, error, freedom), n, how)


def _pooled_error(
    values: Values, cells: Sequence[Cell], weights: Sequence[float]
) -> tuple[float, float, str]:
    """Return the standard error of a contrast of few seeds, its freedom, and what it is from."""
    found, most = values.pool(cells[0].subject)
    spreads = [found.get(id(cell)) for cell in cells]
    how = "spread shared by the cells"
    if None in spreads and values.claim.quantity == "score":
        borrowed = values.evidence.borrowed
        if borrowed is not None:
            spreads = [borrowed] * len(cells)
            how, most = f"spread borrowed from {values.evidence.borrowed_from}", borrowed.freedom
    if any(spread is None for spread in spreads):
        return 0.0, math.inf, "one seed"
    parts = [
        (abs(weight) * math.sqrt(spread.variance / max(len(values.of(cell)), 1)), spread.freedom)
        for weight, spread, cell in zip(weights, spreads, cells, strict=True)
        if spread is not None
    ]
    error, freedom = summed(*parts)
    return (
        (error, min(freedom, most), how) if error > NO_SPREAD else (0.0, math.inf, "seeds that tie")
    )


def _step(values: Values, cell: Cell) -> float:
    """Return how far, as a logarithm, the neighbours of a chosen value lie; infinite at an edge."""
    table = values.evidence.tables.get("tuning", pd.DataFrame())
    name, chosen = values.claim.quantity, float(np.exp(values.of(cell).iloc[0]))
    if table.empty:
        return math.inf
    first = cell.runs.iloc[0]
    same = table.method.isin([first.method, METHODS[first.method].twin])
    for key in CELL:
        if key != "method":
            same &= table[key].map(_comparable) == _comparable(first[key])
    rows = table[same]
    tried = sorted({json.loads(text).get(name, chosen) for text in rows["values"]})
    places = [place for place, one in enumerate(tried) if math.isclose(one, chosen)]
    if not places or places[0] in (0, len(tried) - 1):
        return math.inf
    below, above = tried[places[0] - 1], tried[places[0] + 1]
    return max(math.log(above / chosen), math.log(chosen / below))


def _comparable(value: object) -> str:
    """Return a table's value as text: missing labels are empty, ranks have no decimals."""
    text = label_text(value)
    return text.removesuffix(".0")


def regions(claim: Claim) -> Region:
    """Return the effects that a claim allows, in the unit of its quantity's values."""
    scale = claim.scale
    if claim.test == "ratio":
        return Region(math.log(claim.low or 0), math.log(claim.high or math.inf))
    if claim.facts.kind == "chosen" and claim.margin:
        edge = math.log(claim.margin)
        return {
            "better": Region(low=edge),
            "increasing": Region(low=edge),
            "decreasing": Region(high=-edge),
        }.get(claim.test, Region(-edge, edge))
    margin, bound = (claim.margin or 0.0) * scale, (claim.bound or 0.0) * scale
    return {
        "equivalent": Region(-margin, margin),
        "flat": Region(-margin, margin),
        "better": Region(low=margin),
        "increasing": Region(low=margin),
        "decreasing": Region(high=-margin),
        "at_most": Region(high=bound),
        "at_least": Region(low=bound),
    }[claim.test]


def parts_of(claim: Claim, evidence: Evidence, subject: tuple[str, str]) -> list[Part]:
    """Return what a claim has to hold for in one task and model; empty if cells are missing."""
    values = Values(claim, evidence)
    cells = [c for c in evidence.cells if c.subject == subject and len(values.of(c))]
    sides = {
        name: [cell for cell in cells if selects(side, cell)] for name, side in claim.sides.items()
    }
    if claim.published:
        return _published_parts(claim, values, sides["left"])
    if "left" in sides:
        word = "over" if values.logs else "minus"
        return [
            contrast(values, (one, two), (1, -1), f"{one.name} {word} {two.name}")
            for one in sides["left"]
            for two in nearest(one, sides["right"], claim.named_fields)
        ]
    if claim.axis is None:
        return [contrast(values, (cell,), (1,), cell.name) for cell in sides["select"]]
    blocks = _blocks(claim, sides["select"])
    make = _pairs if claim.test == "flat" else _trend
    return [part for block in blocks for part in make(claim, values, block)]


def _blocks(claim: Claim, cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return groups of cells that differ in the axis, in the order of its values.

    A group has a cell for each value that the claim names, or for all that there are.
    """
    axis = str(claim.axis)
    cells = [cell for cell in cells if isinstance(cell.fields.get(axis), int | float)]
    asked = (claim.select or {}).get(axis)
    found = sorted({cell.fields[axis] for cell in cells})
    levels = sorted(asked) if asked else found
    if len(levels) < 2 or levels != found:
        return []
    by_level = {level: [c for c in cells if c.fields[axis] == level] for level in levels}
    named = {*(claim.select or {}), axis}
    groups = []
    for cell in by_level[levels[0]]:
        group = [cell]
        for level in levels[1:]:
            group += nearest(cell, by_level[level], named)[:1]
        if len(group) == len(levels):
            groups.append(group)
    return groups


def _pairs(claim: Claim, values: Values, block: Sequence[Cell]) -> list[Part]:
    """Compare every two values of an axis, the higher one minus the lower."""
    word = "over" if values.logs else "minus"
    return [
        contrast(values, (high, low), (1, -1), f"{high.name} {word} {low.name}")
        for low, high in combinations(block, 2)
    ]


def _trend(claim: Claim, values: Values, block: Sequence[Cell]) -> list[Part]:
    """Return the change from the lowest to the highest value of an axis along a straight line.

    The line is fitted by least squares, over the logarithm of the axis where all values are
    positive. One cell per value, each of which counts once.
    """
    levels = np.array([cell.fields[str(claim.axis)] for cell in block], dtype=float)
    places = np.log(levels) if (levels > 0).all() else levels
    centred = places - places.mean()
    weights = centred / (centred**2).sum() * (places[-1] - places[0])
    name = f"{block[-1].name} minus {block[0].name}, along the line through {len(block)} cells"
    return [contrast(values, block, weights.tolist(), name)]


def _published_parts(claim: Claim, values: Values, cells: Sequence[Cell]) -> list[Part]:
    """Compare cells with the published numbers of their task, model, method, rank and targets."""
    found = []
    for cell in cells:
        method = METHODS[cell.fields["method"]].published_as or cell.fields["method"]
        scores = mean_of(values.of(cell).tolist())
        for number in select((str(claim.published),)):
            same = (number.task, number.model, number.method) == (cell.task, cell.model, method)
            same &= number.rank in (None, cell.fields.get("rank"))
            if not same or number.doubt or (number.targets or "") not in _targets(cell):
                continue
            theirs, _ = published_mean(number, "sd", scores.sd)
            error, freedom = welch_error(scores, theirs)
            effect = Difference(scores.mean - theirs.mean, float(error), float(freedom))
            name = f"{cell.name} minus {number.key}"
            how = "seeds and published ±" if (scores.n or 1) > 1 else "one seed"
            found.append(Part(name, (cell,), effect, scores.n or 1, how))
    return found


def _targets(cell: Cell) -> tuple[str, ...]:
    """Return the ways in which a published number may name a cell's targets."""
    return "", str(cell.fields.get("targets")), "+".join(cell.fields.get("matrices", ()))


@dataclass(frozen=True)
class Outcome:
    """What the parts of a claim show together; `worst` is the part that fits it least."""

    worst: Part
    parts: tuple[Part, ...]
    region: Region
    supports: float
    contradicts: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the worst part's interval; several parts are covered together."""
        if not self.worst.tested:
            return self.worst.low, self.worst.high
        return self.worst.effect.interval(1 - (1 - confidence) / len(self.parts))


def outcome(claim: Claim, parts: Sequence[Part]) -> Outcome:
    """Combine the parts of a claim, which has to hold for each of them.

    `supports` is the largest p of "outside", `contradicts` the smallest p of "inside" times the
    number of parts. Where nothing is tested, they are 0 or 1 by what is known of the effects, NaN
    where nothing is (one seed).
    """
    region = regions(claim)
    worst = max(parts, key=lambda part: region.beyond(part.effect.value))
    inside = [_known_inside(region, part) for part in parts]
    outside = [_known_outside(region, part) for part in parts]
    supports = math.nan if np.isnan(inside).any() else max(inside)
    known = [p for p in outside if p == p]
    contradicts = min(1.0, len(parts) * min(known)) if known else math.nan
    return Outcome(worst, tuple(parts), region, supports, contradicts)


def _known_inside(region: Region, part: Part) -> float:
    if part.tested:
        return region.p_inside(part.effect)
    if part.low != part.low:
        return math.nan
    return 0.0 if region.beyond(part.low) <= 0 and region.beyond(part.high) <= 0 else 1.0


def _known_outside(region: Region, part: Part) -> float:
    if part.tested:
        return region.p_outside(part.effect)
    if part.low != part.low:
        return math.nan
    return 0.0 if part.low > region.high or part.high < region.low else 1.0


def smallest_shown(found: Outcome, family: int) -> float:
    """Return how far from the claim's edge an effect is found in 80 % of such studies.

    The level is that of Holm's first step, which is the hardest.
    """
    effect = found.worst.effect
    if not found.worst.tested:
        return math.nan
    level = SIGNIFICANCE / max(family, 1) / len(found.parts)
    return difference_found(effect.error, effect.freedom, level)


def seeds_to_decide(found: Outcome, family: int) -> float:
    """Return how many seeds a cell decide in 80 % of studies, if the effect is the one seen.

    NaN: not even a thousand do, or the spread is not known.
    """
    part = found.worst
    if not part.tested:
        return math.nan
    distance = abs(found.region.beyond(part.effect.value))
    n = np.arange(2, MOST_SEEDS + 1)
    error = part.effect.error * np.sqrt(part.n / n)
    freedom = np.maximum(part.effect.freedom * n / part.n, 1)
    level = SIGNIFICANCE / max(family, 1) / len(found.parts)
    limit = scipy.stats.t.isf(level if found.region.bounded else level / 2, freedom)
    power = scipy.stats.nct.sf(limit, freedom, distance / error)
    enough = np.flatnonzero(np.nan_to_num(power) >= POWER)
    return float(n[enough[0]]) if len(enough) else math.nan
