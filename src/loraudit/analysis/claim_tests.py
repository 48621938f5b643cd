"""The tests behind claims: an effect with its error, the region that a claim says it is in, and the
parts that a claim has to hold for.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
import scipy.stats

from loraudit.analysis import shares
from loraudit.analysis.cells import CELL, choices_of, label_text
from loraudit.analysis.evidence import Cell, Evidence, nearest, selects
from loraudit.analysis.matching import matching, obstacles
from loraudit.analysis.pooling import Difference, Spread, shared_spreads, summed
from loraudit.analysis.quantities import epoch_of
from loraudit.analysis.statistics import NO_SPREAD, SIGNIFICANCE, mean_of, welch_error
from loraudit.analysis.trials import known_logarithm
from loraudit.analysis.verdicts import margin_of, published_mean
from loraudit.analysis.words import MOST_SEEDS, POWER, difference_found
from loraudit.base.named_code import resolve
from loraudit.studies.accounts import Likeness, accounts, likeness
from loraudit.studies.claims import Claim
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import Published, select


@dataclass(frozen=True)
class Region:
    """The effects that a claim allows, from `low` to `high`; one of them may be infinite.

    The ends belong to it if it is `closed`: "at most" allows its bound, "better" not its margin.
    """

    low: float = -math.inf
    high: float = math.inf
    closed: bool = False

    def beyond(self, value: float) -> float:
        """Return how far a value lies outside; below 0 inside, by its distance to the edge."""
        return max(self.low - value, value - self.high)

    @property
    def bounded(self) -> bool:
        """Whether both ends are finite: a claim that something is equal."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def room(self) -> float:
        """What neighbours of chosen values may take together, so that a claim can be supported.

        It is two thirds of what the region allows, so that the effect need not lie in its middle.
        """
        return (self.high - self.low) / 3

    def widest_factor(self, cells: int) -> float:
        """Return within which factor the neighbours of the values of so many cells have to lie."""
        return math.exp(self.room / cells)

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

        It is that of a two-sided t test against the nearer end: below 0.05 where the 95 % interval
        lies outside as a whole, which verdicts on published numbers ask for too (`words.decide`).
        """
        if not effect.error:
            return math.nan
        return self._p_one(effect, self.beyond(effect.value) > 0)

    def p_shares_inside(self, counts: Sequence[shares.Count]) -> float:
        """Return the p of "the share, or difference of two, lies outside", by exact tests."""
        if self.bounded:
            return max(shares.p_above(counts, self.low), shares.p_below(counts, self.high))
        return min(1.0, 2 * self._above_or_below(counts, inside=True))

    def p_shares_outside(self, counts: Sequence[shares.Count]) -> float:
        """Return the p of "the share, or difference of two, lies inside", by exact tests."""
        if self.bounded:
            either = shares.p_below(counts, self.low), shares.p_above(counts, self.high)
            return min(1.0, 2 * min(either))
        return min(1.0, 2 * self._above_or_below(counts, inside=False))

    def _above_or_below(self, counts: Sequence[shares.Count], inside: bool) -> float:
        if math.isfinite(self.low) == inside:
            return shares.p_above(counts, self.low if inside else self.high)
        return shares.p_below(counts, self.high if inside else self.low)

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

    `region` has the effects that the claim allows. `low` and `high` are the ends of what is known
    of the effect where no test is made: both are the effect itself for what is counted. `n` is the
    fewest runs of a cell, `epoch` the choice of an epoch that their values are of. `counts` are of
    outcomes, which are tested exactly. `undefined` names the runs whose value is undefined: nothing
    is known of the effect then. `alike` compares the protocols of a cell and a published number.
    """

    name: str
    cells: tuple[Cell, ...]
    effect: Difference
    n: int
    how: str
    region: Region
    low: float = math.nan
    high: float = math.nan
    epoch: str = ""
    counts: tuple[shares.Count, ...] = ()
    undefined: tuple[str, ...] = ()
    alike: Likeness | None = None

    @property
    def spread(self) -> bool:
        """Whether the effect has a spread that tests are made by."""
        return self.effect.error > 0

    @property
    def tested(self) -> bool:
        """Whether tests are made, by a spread or by counts."""
        return self.spread or bool(self.counts)

    @property
    def coarse(self) -> bool:
        """Whether what is known of the effect is wider than all that the claim allows."""
        return self.region.bounded and self.high - self.low > self.region.high - self.region.low

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the effect's interval, or the ends of what is known of it."""
        if self.counts:
            return shares.interval(self.counts, confidence)
        return self.effect.interval(confidence) if self.spread else (self.low, self.high)

    def p_inside(self) -> float:
        """Return the p of "the effect is outside"; 0 or 1 without a test, NaN if not known."""
        beyond = max(map(self.region.beyond, (self.low, self.high)))
        known = beyond > 0 or (beyond == 0 and not self.region.closed)
        return self._p(self.region.p_shares_inside, self.region.p_inside, known)

    def p_outside(self) -> float:
        """Return the p of "the effect is inside"; 0 or 1 without a test, NaN if not known."""
        beyond = max(self.low - self.region.high, self.region.low - self.high)
        known = beyond < 0 or (beyond == 0 and self.region.closed)
        return self._p(self.region.p_shares_outside, self.region.p_outside, known)

    def _p(
        self,
        of_counts: Callable[[Sequence[shares.Count]], float],
        of_effect: Callable[[Difference], float],
        known: bool,
    ) -> float:
        """Return the p of the test that the part has; `known` tells it where there is none."""
        if self.counts:
            return of_counts(self.counts)
        if self.spread:
            return of_effect(self.effect)
        return math.nan if self.low != self.low else float(known)


class Values:
    """The values of cells by seed for one claim, and the spreads to test them with."""

    def __init__(self, claim: Claim, evidence: Evidence):
        self.claim, self.evidence = claim, evidence
        self.logs = claim.test == "ratio" or claim.facts.kind == "chosen"
        self.read = resolve(claim.facts.read)
        self.known: dict[int, pd.Series] = {}
        self.epochs: dict[tuple[str, str], str | None] = {}
        self.spreads: dict[tuple[tuple[str, str], bool], tuple[dict[int, Spread], float]] = {}

    def of(self, cell: Cell) -> pd.Series:
        """Return a cell's values by seed, as logarithms where ratios are asked for."""
        if id(cell) not in self.known:
            found = self.read(cell, self.evidence, self.epoch(cell.subject))
            self.known[id(cell)] = np.log(found) if self.logs else found
        return self.known[id(cell)]

    def epoch(self, subject: tuple[str, str]) -> str | None:
        """Return the choice of an epoch that the values of a task and model are of."""
        if subject not in self.epochs:
            self.epochs[subject] = epoch_of(self.evidence, subject, self.claim.epoch)
        return self.epochs[subject]

    def pool(self, subject: tuple[str, str], same_seeds: bool) -> tuple[dict[int, Spread], float]:
        """Return the spread to test each cell of a task and model with, and the freedom of all.

        It is without what the seeds share where cells of the `same_seeds` are compared. Twins train
        the same runs, which count once: a twin has the spread of its counterpart.
        """
        if (subject, same_seeds) not in self.spreads:
            counted: dict[tuple, int] = {}
            place: dict[int, int] = {}
            own: list[pd.Series] = []
            for cell in (c for c in self.evidence.cells if c.subject == subject):
                values = self.of(cell)
                if len(values) < 2 or not np.isfinite(values).all():
                    continue
                key = _twin_key(cell)
                if key not in counted:
                    counted[key] = len(own)
                    own.append(values)
                place[id(cell)] = counted[key]
            shared, freedom = shared_spreads(own, same_seeds)
            found = {cell: shared[index] for cell, index in place.items()}
            self.spreads[subject, same_seeds] = found, freedom
        return self.spreads[subject, same_seeds]


def _twin_key(cell: Cell) -> tuple:
    method = str(cell.fields.get("method"))
    facts = METHODS.get(method)
    plain = method if facts is None or cell.fields.get("peft") else facts.published_as or method
    fields = (cell.fields.get("rank"), str(cell.fields.get("targets")), cell.label)
    return (plain, *fields, json.dumps(cell.fields.get("peft")), cell.fields.get("base_bits"))


def contrast(values: Values, cells: Sequence[Cell], weights: Sequence[float], name: str) -> Part:
    """Return the sum of some cells' values times weights, as a part of a claim."""
    claim, series = values.claim, [values.of(cell) for cell in cells]
    n = min(map(len, series))
    means = [float(one.mean(skipna=False)) if len(one) else math.nan for one in series]
    effect = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
    by_epoch = values.epoch(cells[0].subject) if claim.facts.by_epoch else ""
    plain = Part(
        name=name,
        cells=tuple(cells),
        effect=Difference(effect, 0, math.inf),
        n=n,
        how="counted",
        region=regions(claim),
        epoch=by_epoch or "",
    )
    if undefined := tuple(run for cell in cells for run in _undefined(values, cell)):
        nothing = Difference(math.nan, 0, math.inf)
        return replace(plain, how=UNDEFINED, effect=nothing, undefined=undefined)
    if claim.facts.kind == "count":
        return replace(plain, low=effect, high=effect)
    if claim.facts.kind == "outcome":
        counts = tuple(shares.Count(int(one.sum()), len(one)) for one in series)
        return replace(plain, how="exact test of counts", counts=counts)
    if claim.facts.kind == "chosen":
        return _chosen(values, cells, weights, plain)
    error, freedom, how = _pooled_error(values, cells, weights)
    return replace(plain, effect=Difference(effect, error, freedom), how=how)


UNDEFINED = "undefined"
TIED = "no spread: all seeds tie"


def _undefined(values: Values, cell: Cell) -> list[str]:
    """Name the runs of a cell whose value is undefined."""
    found = values.of(cell)
    seeds = found.index[~np.isfinite(found)]
    if "run" not in cell.runs:
        return [f"{cell.name} s{seed}" for seed in seeds]
    return cell.runs.run[cell.runs.seed.isin(seeds)].tolist()


def _pooled_error(
    values: Values, cells: Sequence[Cell], weights: Sequence[float]
) -> tuple[float, float, str]:
    """Return the standard error of a contrast, its freedom, and what it is from.

    What the seeds share cancels where the weights' sum is 0 and the cells have the same seeds.
    """
    seeds = [set(values.of(cell).index) for cell in cells]
    paired = abs(sum(weights)) < NO_SPREAD and all(one == seeds[0] for one in seeds)
    found, most = values.pool(cells[0].subject, paired)
    spreads = [found.get(id(cell)) for cell in cells]
    how = "spread shared by the cells" + (", by seed" if paired else "")
    if None in spreads and values.claim.quantity == "score":
        borrowed = values.evidence.borrowed
        if borrowed is not None:
            spreads = [borrowed] * len(cells)
            how, most = f"spread borrowed from {values.evidence.borrowed_from}", borrowed.freedom
    if any(spread is None for spread in spreads):
        return 0.0, math.inf, "one seed" if values.claim.facts.by_epoch else "one value, no spread"
    parts = [
        (abs(weight) * math.sqrt(spread.variance / max(len(values.of(cell)), 1)), spread.freedom)
        for weight, spread, cell in zip(weights, spreads, cells, strict=True)
        if spread is not None
    ]
    error, freedom = summed(*parts)
    return (error, min(freedom, most), how) if error > NO_SPREAD else (0.0, math.inf, TIED)


def _chosen(values: Values, cells: Sequence[Cell], weights: Sequence[float], plain: Part) -> Part:
    """Return the part of a claim on values that `tune` chose; its `n` is of the seeds that tuned.

    It is known without end where a cell was not tuned.
    """
    how = "chosen from values that were tried"
    trials = [_trials(values, cell) for cell in cells]
    if any(table.empty for table in trials):
        return replace(plain, how=how, n=0, low=-math.inf, high=math.inf)
    low, high = known_logarithm(trials, weights, values.claim.quantity)
    n = min(table.seed.nunique() for table in trials)
    return replace(plain, how=how, n=n, low=low, high=high)


def _trials(values: Values, cell: Cell) -> pd.DataFrame:
    """Return the trials by which a cell's settings were chosen; none if it was not tuned."""
    table = values.evidence.tables.get("tuning", pd.DataFrame())
    if table.empty:
        return table
    first = cell.runs.iloc[0]
    same = table.method.isin([first.method, METHODS[first.method].twin])
    for key in CELL:
        if key != "method":
            same &= table[key].map(_comparable) == _comparable(first[key])
    return table[same]


def _comparable(value: object) -> str:
    """Return a table's value as text: missing labels are empty, ranks have no decimals."""
    text = label_text(value)
    return text.removesuffix(".0")


def regions(claim: Claim) -> Region:
    """Return the effects that a claim allows, in the unit of its quantity's values.

    Where the claim leaves the margin to published numbers, its ends are not known (NaN).
    """
    scale = claim.scale
    if claim.published and claim.margin is None:
        return Region(math.nan, math.nan)
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
        "at_most": Region(high=bound, closed=True),
        "at_least": Region(low=bound, closed=True),
    }[claim.test]


def parts_of(claim: Claim, evidence: Evidence, subject: tuple[str, str]) -> list[Part]:
    """Return what a claim has to hold for in one task and model; empty if cells are missing."""
    values = Values(claim, evidence)
    cells = [c for c in evidence.cells if c.subject == subject and len(values.of(c))]
    sides = {
        name: [cell for cell in cells if selects(side, cell)] for name, side in claim.sides.items()
    }
    if claim.published:
        beside = _beside_published(claim, values, sides["left"])
        return [
            _published_part(claim, values, cell, number, epoch)
            for cell, number, epoch, why in beside
            if not why
        ]
    if "left" in sides:
        word = "over" if values.logs else "minus"
        return [
            contrast(values, (one, two), (1, -1), f"{one.name} {word} {two.name}")
            for one in sides["left"]
            for two in nearest(one, sides["right"], claim.free_fields)
        ]
    if claim.axis is None:
        return [contrast(values, (cell,), (1,), cell.name) for cell in sides["select"]]
    blocks = _blocks(claim, sides["select"])
    make = _pairs if claim.test == "flat" else _trend
    return [part for block in blocks for part in make(claim, values, block)]


def _blocks(claim: Claim, cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return groups of cells that differ in the axis, in the order of its values.

    A group has a cell for each value that the claim names; where it names none, for each that the
    cells of the group have, which may be others than another group's.
    """
    axis = str(claim.axis)
    by_level: dict[float, list[Cell]] = {}
    for cell in cells:
        level = cell.fields.get(axis)
        if isinstance(level, int | float):
            by_level.setdefault(level, []).append(cell)
    asked = (claim.select or {}).get(axis)
    levels = sorted(asked or by_level)
    groups: list[list[Cell]] = []
    grouped: set[int] = set()
    for place, lowest in enumerate(levels[:1] if asked else levels):
        for cell in by_level.get(lowest, ()):
            if id(cell) in grouped:
                continue
            group = [cell]
            for level in levels[place + 1 :]:
                group += nearest(cell, by_level.get(level, ()), claim.free_fields)[:1]
            if len(group) > 1 and (not asked or len(group) == len(levels)):
                groups.append(group)
                grouped |= {id(one) for one in group}
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


def _beside_published(
    claim: Claim, values: Values, cells: Sequence[Cell]
) -> list[tuple[Cell, Published, str, str]]:
    """Return cells with the published numbers beside them, the epoch, and what forbids comparing.

    They are the numbers that stand beside a study's cells in its verdicts; those of a poster's
    cells are of the same task, model, method, rank, targets, rows, metric, split and epoch.
    """
    numbers = select((str(claim.published),))
    found = []
    for cell in cells:
        if cell.number is None:
            names = cell.runs.iloc[0][[*CELL, "metric"]].to_dict()
            beside = [
                (number, obstacles(names, cell.runs, number, values.evidence.models, cell.fields))
                for number in matching(names, cell.runs, numbers)
                if number.metric == names["metric"]
            ]
        else:
            beside = [(number, []) for number in numbers if _same_cell(cell.number, number)]
        for number, against in beside:
            epoch = _epoch_beside(number, cell.runs)
            if not against and (not epoch or claim.epoch not in (None, epoch)):
                against = [f"another epoch: the number is of the {number.selection}"]
            found.append((cell, number, epoch, "; ".join(against)))
    return found


ALIKE = ("task", "model", "method", "rank", "targets", "train_rows", "metric", "split")
"""Fields in which two published numbers of one cell agree."""


def _same_cell(ours: Published, theirs: Published) -> bool:
    """Tell whether a number can be compared with another, which has to be certain."""
    same = all(getattr(ours, name) == getattr(theirs, name) for name in ALIKE)
    same &= theirs.unit != "other" and not theirs.doubt
    return same and theirs.selection in ("unknown", ours.selection)


def _epoch_beside(number: Published, runs: pd.DataFrame) -> str:
    """Return the choice of an epoch to set beside a number: its own, or else the best, or last."""
    made = [choice for choice in ("best", "last") if choice in choices_of(runs)]
    wanted = {"best epoch": "best", "last epoch": "last"}.get(number.selection)
    return next((choice for choice in made if wanted in (None, choice)), "")


def _published_part(
    claim: Claim, values: Values, cell: Cell, number: Published, epoch: str
) -> Part:
    """Compare a cell with a published number, as `verdicts` does."""
    evidence = values.evidence
    scores = values.read(cell, evidence, epoch)
    ours = mean_of(scores.tolist())
    theirs, _ = published_mean(number, evidence.reading, ours.sd)
    error, freedom = welch_error(ours, theirs)
    region = regions(claim)
    if claim.margin is None:
        margin = margin_of(number, evidence.margin)
        region = Region(-margin, margin)
    mine = [cell.fields] if cell.number is None else accounts(cell.number).values()
    undefined = tuple(cell.runs.get("run", cell.runs.seed)[scores.isna().to_numpy()].map(str))
    known = 0.0 if undefined else float(error)
    how = "seeds and published ±" if known else TIED if len(scores) > 1 else "one seed"
    return Part(
        name=f"{cell.name} minus {number.key}",
        cells=(cell,),
        effect=Difference(ours.mean - theirs.mean, known, float(freedom)),
        n=len(scores),
        how=UNDEFINED if undefined else how,
        region=region,
        epoch=epoch,
        undefined=undefined,
        alike=likeness(mine, accounts(number)),
    )


def not_comparable(claim: Claim, evidence: Evidence) -> list[str]:
    """Say of the cells that a claim sets beside published numbers what forbids to compare them."""
    values = Values(claim, evidence)
    side = claim.sides["left"]
    cells = [cell for cell in evidence.cells if selects(side, cell) and len(values.of(cell))]
    return list(dict.fromkeys(why for *_, why in _beside_published(claim, values, cells) if why))


@dataclass(frozen=True)
class Outcome:
    """What the parts of a claim show together; `worst` is the part that fits it least.

    Where a part contradicts the claim it is the one that does so most surely, else the one whose
    effect is farthest outside.
    """

    worst: Part
    parts: tuple[Part, ...]
    supports: float
    contradicts: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the worst part's interval, as wide as that of the test that may decide.

        An effect inside of what the claim allows may support it, for which each part has to pass a
        test of its own. Outside, any part may contradict it: then all parts are covered together.
        """
        inside = self.worst.region.beyond(self.worst.effect.value) < 0
        parts = 1 if inside else len(self.parts)
        return self.worst.interval(1 - (1 - confidence) / parts)

    @property
    def alike(self) -> Likeness | None:
        """How the protocols compare: another one, if any part's is, or else the worst part's."""
        found = [part.alike for part in self.parts if part.alike]
        return next((one for one in found if one.word == "another"), self.worst.alike)


def outcome(claim: Claim, parts: Sequence[Part]) -> Outcome:
    """Combine the parts of a claim, which has to hold for each of them.

    `supports` is the largest p of "outside", `contradicts` the smallest p of "inside" times the
    number of parts. Where nothing is tested, they are 0 or 1 by what is known of the effects, NaN
    where nothing is (one seed). A part of which nothing is known leaves `supports` NaN.
    """
    worst = max(parts, key=_beyond)
    inside = [part.p_inside() for part in parts]
    known = [(p, -_beyond(part), part) for part in parts if (p := part.p_outside()) == p]
    supports = math.nan if np.isnan(inside).any() else max(inside)
    contradicts = math.nan
    if known:
        p, _, surest = min(known, key=lambda one: one[:2])
        contradicts = min(1.0, len(parts) * p)
        worst = surest if contradicts < SIGNIFICANCE else worst
    return Outcome(worst, tuple(parts), supports, contradicts)


def _beyond(part: Part) -> float:
    """Return how far a part lies outside of what is allowed; undefined ones are shown last."""
    beyond = part.region.beyond(part.effect.value)
    return beyond if beyond == beyond else -math.inf


def smallest_shown(found: Outcome, family: int) -> float:
    """Return how far from the claim's edge an effect is found in 80 % of such studies.

    The level is that of Holm's first step, which is the hardest.
    """
    effect = found.worst.effect
    if not found.worst.spread:
        return math.nan
    level = SIGNIFICANCE / max(family, 1) / len(found.parts)
    return difference_found(effect.error, effect.freedom, level)


def seeds_to_decide(found: Outcome, family: int) -> float:
    """Return how many seeds per cell decide in 80 % of studies, if the effect is the one seen.

    NaN: not even a thousand do, or the spread is not known.
    """
    part = found.worst
    if not part.spread:
        return math.nan
    n = np.arange(2, MOST_SEEDS + 1)
    error = part.effect.error * np.sqrt(part.n / n)
    freedom = np.maximum(part.effect.freedom * n / part.n, 1)
    inside = part.region.beyond(part.effect.value) < 0
    # All parts have to support a claim, which needs no correction; any one may contradict it.
    level = SIGNIFICANCE / max(family, 1) / (1 if inside else len(found.parts))
    one_sided = part.region.bounded and inside  # as TOST's tests are
    limit = scipy.stats.t.isf(level if one_sided else level / 2, freedom)
    enough = np.flatnonzero(_power(part, error, freedom, limit) >= POWER)
    return float(n[enough[0]]) if len(enough) else math.nan


def _power(part: Part, error: np.ndarray, freedom: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Return how often the effect that was seen is shown to lie where it does.

    Inside a region with two ends both one-sided tests have to pass; either may fail.
    """
    region, value = part.region, part.effect.value
    if region.bounded and region.beyond(value) < 0:
        distances = [value - region.low, region.high - value]
    else:
        distances = [abs(region.beyond(value))]
    found = (scipy.stats.nct.sf(limit, freedom, one / error) for one in distances)
    return 1 - sum(1 - np.nan_to_num(power) for power in found)
