"""What papers say, as data: config/claims/*.yaml, one file per source, checked when read.

A claim has a statement in our words, the place where its source says it, the scope that it was made
for, and a test of one quantity (`QUANTITIES`). What is compared are selections of cells by fields
of a run (`Side`); cells are matched within task, model and seed. The verdicts are made in
loraudit/analysis/claims.py. This module is read by the Snakefile, so it does without pandas.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, create_model, model_validator

from loraudit.base.errors import UserError, unknown
from loraudit.base.shipped import own_and_shipped, own_or_shipped
from loraudit.base.written_yaml import read_written
from loraudit.studies.alpha import alpha_of
from loraudit.studies.entries import MATRICES
from loraudit.studies.entry_files import check_name
from loraudit.studies.grid import legal_fields
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import Confidence, select
from loraudit.studies.spec import FLAT_FIELDS, AdapterSpec, EpochChoice, RunSpec
from loraudit.studies.values import Count, Frozen, check_known, validated

FOLDER = Path("config/claims")

TestName = Literal[
    "equivalent", "better", "flat", "increasing", "decreasing", "ratio", "at_most", "at_least"
]

KEYS: dict[str, tuple[str, ...]] = {
    "equivalent": ("left", "right", "margin", "unit"),
    "better": ("left", "right", "margin", "unit"),
    "flat": ("select", "axis", "margin", "unit"),
    "increasing": ("select", "axis", "margin", "unit"),
    "decreasing": ("select", "axis", "margin", "unit"),
    "ratio": ("left", "right", "low", "high"),
    "at_most": ("select", "bound", "unit"),
    "at_least": ("select", "bound", "unit"),
}
"""The keys that each test needs, and no other of them."""

WITHIN = ("task", "model", "seed")
"""Fields that no side may select by: cells are matched within them."""


@dataclass(frozen=True)
class Quantity:
    """One quantity that claims speak of.

    `units` are its units, each as a multiple of what `read` returns. `kind` says what its values
    are: "seeds", one for each run, with a spread; "outcome", 0 or 1 for each run; "count", the same
    for all seeds, so that one run shows it; "chosen", a setting that a study's `tune` chose, known
    only to within the neighbouring values that were tried. `read` names the function of
    analysis/quantities.py, as "module:function", that returns a cell's values by seed. `tables` are
    the tidy tables that it needs beside the runs; section 7's are there once a study is complete.
    `by_epoch` says that the value depends on the choice of an epoch, `positive` that it is never 0
    or less, so that ratios can be taken. `absent` is there if a study has it of some runs at most,
    those in the first of its `tables`: it says why a study would have it of none.
    A value never lies outside of `span`, so that intervals of values are cut there. `beside` names
    a function, as `read` does, that says in words of a cell what its value alone does not tell.
    """

    label: str
    units: Mapping[str, float]
    read: str
    kind: Literal["seeds", "outcome", "count", "chosen"] = "seeds"
    tables: tuple[str, ...] = ()
    by_epoch: bool = False
    positive: bool = True
    absent: str = ""
    span: tuple[float, float] = (-math.inf, math.inf)
    beside: str = ""


POINTS = {"points": 0.01, "fraction": 1.0}
SHARE = {"percent": 0.01, "fraction": 1.0}
NUMBER = {"number": 1.0}
READ = "loraudit.analysis.quantities"

QUANTITIES = {
    "score": Quantity(
        "score", POINTS, f"{READ}:score", by_epoch=True, positive=False, span=(-1, 1)
    ),
    "log_loss": Quantity(
        "log loss of text, in nats per token (lower is better)",
        {"nats": 1.0},
        f"{READ}:log_loss",
        by_epoch=True,
        span=(0, math.inf),
    ),
    "collapsed_share": Quantity(
        "share of collapsed runs",
        SHARE,
        f"{READ}:collapsed_share",
        "outcome",
        by_epoch=True,
        positive=False,
    ),
    "chosen_epoch": Quantity(
        "epoch of the score", {"epochs": 1.0}, f"{READ}:chosen_epoch", by_epoch=True
    ),
    "learning_rate": Quantity(
        "chosen learning rate", {"times": 1.0}, f"{READ}:learning_rate", "chosen", ("tuning",)
    ),
    "alpha": Quantity("chosen alpha", {"times": 1.0}, f"{READ}:alpha", "chosen", ("tuning",)),
    "trainable_share": Quantity(
        "trainable share of the parameters",
        SHARE,
        f"{READ}:trainable_share",
        "count",
        beside=f"{READ}:head_counted",
    ),
    "adapter_parameters": Quantity(
        "parameters of the adapter",
        {"parameters": 1.0, "thousands": 1e3, "millions": 1e6},
        f"{READ}:adapter_parameters",
        "count",
    ),
    "adapter_bytes": Quantity(
        "bytes of the adapter",
        {"bytes": 1.0, "kB": 1e3, "MB": 1e6},
        f"{READ}:adapter_bytes",
        "count",
    ),
    "bytes_saved": Quantity(
        "size of a full checkpoint as a multiple of the adapter's",
        {"times": 1.0},
        f"{READ}:bytes_saved",
        "count",
    ),
    "stable_rank": Quantity(
        "stable rank of the update, median over layers",
        NUMBER,
        f"{READ}:stable_rank",
        tables=("amplification",),
        span=(1, math.inf),
    ),
    "amplification": Quantity(
        "amplification (the paper's Table 7), median over layers",
        NUMBER,
        f"{READ}:amplification",
        tables=("amplification",),
        span=(0, math.inf),
    ),
    "subspace_similarity": Quantity(
        "phi of the first direction at the lowest and the highest rank, median over layers",
        NUMBER,
        f"{READ}:subspace_similarity",
        tables=("subspaces",),
        positive=False,
        span=(0, 1),
        beside=f"{READ}:ranks_compared",
    ),
    "intruder_dimensions": Quantity(
        "intruder dimensions per matrix, mean over layers and matrices",
        NUMBER,
        f"{READ}:intruder_dimensions",
        tables=("intruders",),
        positive=False,
        span=(0, math.inf),
    ),
    "forgetting": Quantity(
        "score lost on the earlier tasks of a chain, their mean",
        POINTS,
        f"{READ}:forgetting",
        tables=("forgetting",),
        positive=False,
        absent="no run starts from another one (warm_start)",
    ),
    "language_loss_rise": Quantity(
        "rise of the base's loss as a language model, in nats per token, the mean over texts",
        {"nats": 1.0},
        f"{READ}:language_loss_rise",
        tables=("language_loss",),
        positive=False,
        absent="the study does not ask for it (language_loss)",
    ),
}
"""All quantities by name; a new one is an entry here and the function that it names."""

Side = dict[str, Any]
"""A selection of cells: {field of a run: value, or a list of values of which any will do}."""


class Scope(Frozen):
    """What a claim was made for. A study of anything else shows it "in small", never "at scale"."""

    models: Annotated[tuple[str, ...], Field(min_length=1)] | None
    """models, by their names in config/models.yaml or config/reference; null: not known"""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None
    """tasks, by their names in config/tasks.yaml or as the source calls them; null: not known"""
    train_rows: Count | None = None
    """training rows; null: the whole training split"""


class Claim(Frozen):
    """One claim of a source, and the test of it.

    Numbers of a test are in `unit`, which is one of the quantity's own (`QUANTITIES`).
    """

    id: str
    """<file>.<claim>, by which a study names it; made from the place, not written"""
    statement: str = Field(min_length=1)
    """what is said, in our words"""
    where: str = Field(min_length=1)
    """section or table of the source"""
    source: str = Field(min_length=1)
    """how the source was read"""
    confidence: Confidence
    """seen in the source, computed from what was seen, inferred, or from memory: an entry that is
    from memory has not been seen in its source, and tables mark it"""
    seen: str = ""
    """the numbers that the source gives for it"""
    scope: Scope
    """what it was made for"""
    test: TestName
    """what would show it; each test needs keys of its own, and takes no other"""
    quantity: str
    """the quantity that is tested"""
    epoch: EpochChoice | None = None
    """whose score, where the quantity depends on the epoch; null: the first of selected, best and
    last that the study has"""
    left: Side | None = None
    """the first selection of cells, `{field: value or list of values}`"""
    right: Side | None = None
    """the selection that it is compared with: a cell of `left` is compared with the one that
    agrees with it in all other fields but chosen settings"""
    published: str | None = None
    """in place of `right`, a published table to compare the cells of `left` with; `equivalent`
    then needs no margin: it is the study's own, or else the number's, or else one point"""
    select: Side | None = None
    """the selection of cells that a test of one selection is about"""
    axis: str | None = None
    """the field along which the cells of `select` are compared"""
    margin: float | None = None
    """`equivalent`, `flat`: the largest difference that counts as none; `better`, `increasing`,
    `decreasing`: the difference has to be larger than this, which may be 0; below 0 in `better`, it
    is how far left may stay behind"""
    low: Annotated[float, Field(gt=0)] | None = None
    """`ratio`: the least ratio of left to right"""
    high: Annotated[float, Field(gt=0)] | None = None
    """`ratio`: the largest ratio of left to right"""
    bound: float | None = None
    """`at_most`, `at_least`: the bound"""
    unit: str | None = None
    """unit of `margin` or `bound`"""
    note: str = ""
    """what a reader has to know beside it"""

    @model_validator(mode="before")
    @classmethod
    def _asked(cls, value: Any) -> Any:
        """Refuse a quantity that is not known before its unit is looked at."""
        if isinstance(value, dict) and (name := value.get("quantity")) not in (None, *QUANTITIES):
            raise ValueError(str(unknown("quantity", name, QUANTITIES)))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Claim":
        self._check_keys()
        if self.unit is not None and self.unit not in self.facts.units:
            raise ValueError(str(unknown(f"unit of {self.quantity}", self.unit, self.facts.units)))
        if self.margin is not None and self.margin < 0 and self.test != "better":
            raise ValueError(f"margin {self.margin:g} goes with test 'better' only")
        if self.test in ("equivalent", "flat") and self.margin == 0:
            raise ValueError(f"margin 0 with test {self.test!r}: no data show two to be just equal")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        self._check_quantity()
        for name, side in self.sides.items():
            check_side(side, name)
        if self.left is not None and self.left == self.right:
            raise ValueError(f"left and right select the same: {self.left}")
        if self.axis is not None:
            self._check_axis()
        return self

    def _check_quantity(self) -> None:
        """Refuse a test or a number that does not go with the quantity."""
        if self.facts.kind == "chosen" and (self.bound is not None or (self.margin or 2) <= 1):
            raise ValueError(
                f"{self.quantity} is compared in times: at_most and at_least do not apply, and a "
                "margin is above 1"
            )
        if self.quantity == "chosen_epoch" and self.epoch not in ("selected", "best"):
            raise ValueError(
                f"epoch = {self.epoch!r}: chosen_epoch needs one that is chosen (legal: selected, "
                "best)"
            )
        if self.test == "ratio" and not self.facts.positive:
            legal = ", ".join(name for name, quantity in QUANTITIES.items() if quantity.positive)
            raise ValueError(
                f"test 'ratio' with {self.quantity}: it may be 0, so that no ratio can be taken "
                f"(legal quantities: {legal})"
            )
        if self.facts.kind == "outcome" and self.test in ("increasing", "decreasing"):
            raise ValueError(
                f"test {self.test!r} with {self.quantity}: shares are compared two at a time "
                "(legal tests: equivalent, better, flat, at_most, at_least)"
            )

    def _check_keys(self) -> None:
        """Refuse a key that the test lacks, and one that means nothing to it."""
        needed = list(KEYS[self.test])
        if self.published is not None and "right" in needed:
            if self.test == "ratio" or self.quantity != "score":
                raise ValueError("published: goes with tests of a difference of scores only")
            needed[needed.index("right")] = "published"
        own = self.published is not None and self.test == "equivalent" and self.margin is None
        for key in (key for key in needed if not (own and key in ("margin", "unit"))):
            if getattr(self, key) is None:
                legal = f" (legal: {', '.join(self.facts.units)})" if key == "unit" else ""
                raise ValueError(f"test {self.test!r} needs the key {key!r}{legal}")
        known = {key for keys in KEYS.values() for key in keys} | {"published"}
        for key in sorted(known - set(needed)):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"key {key!r} means nothing to test {self.test!r} (legal: {', '.join(needed)})"
                )

    def _check_axis(self) -> None:
        if self.axis in WITHIN:
            raise ValueError(f"axis {self.axis!r}: cells are matched within it")
        check_known([str(self.axis)], _fields(), "axis")
        if self.axis not in (legal := numeric_fields()):
            raise ValueError(
                f"axis {self.axis!r}: its values are no numbers (legal: {', '.join(legal)})"
            )
        values = (self.select or {}).get(str(self.axis))
        if values is not None and (not isinstance(values, list) or len(values) < 2):
            raise ValueError(f"select: {self.axis} = {values!r}: an axis needs two values or more")
        for value in values or ():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"select: {self.axis} = {value!r}: along an axis, name numbers")

    @property
    def facts(self) -> Quantity:
        """The entry of the claim's quantity."""
        return QUANTITIES[self.quantity]

    @property
    def scale(self) -> float:
        """What one unit of the claim's numbers is, in the quantity's own numbers."""
        return self.facts.units[self.unit] if self.unit else 1.0

    @property
    def sides(self) -> dict[str, Side]:
        """The selections that the claim names, by their keys."""
        named = {name: getattr(self, name) for name in ("left", "right", "select")}
        return {name: side for name, side in named.items() if side is not None}

    @property
    def free_fields(self) -> set[str]:
        """The fields in which cells that are compared need not agree.

        They are the axis, or the fields for which the two sides ask for different values, or for
        one that is made from the rank.
        """
        if self.axis:
            return {self.axis}
        left, right = self.left or {}, self.right or {}
        return {
            field
            for field in {*left, *right}
            if left.get(field, "any") != right.get(field, "any")
            or any(_is_rule(field, value) for value in alternatives(left[field]))
        }


class Source(Frozen):
    """One file of config/claims: where its claims are from."""

    title: str
    """title of the paper, repository or page"""
    authors: str
    """who made it"""
    year: int
    """when"""
    url: str
    """where it can be read"""


def check_side(side: Side, where: str) -> None:
    """Refuse a selection that no run can be in.

    Raises:
        UserError: a field or method is not known, a value is not legal, or no run has all of them.
    """
    if not side:
        raise UserError(f"{where}: selects every run; name a field")
    check_known([field for field in side if field not in WITHIN], _fields(), f"{where}: field")
    for field, value in side.items():
        if field in WITHIN:
            raise UserError(
                f"{where}: {field}: cells are matched within {', '.join(WITHIN)}; what a claim was "
                "made for stands in its scope"
            )
        if value == []:
            raise UserError(f"{where}: {field}: an empty list selects nothing")
        for one in alternatives(value):
            _check_value(field, one, f"{where}: {field}")
    bare = [name for name in alternatives(side.get("method")) if METHODS[name].trains != "adapter"]
    if bare and (fields := [field for field in side if field in AdapterSpec.model_fields]):
        raise UserError(
            f"{where}: selects nothing: method {bare[0]!r} has no adapter and so no {fields[0]}"
        )


def alternatives(value: Any) -> list:
    """Return the values of which any will do; a single value is one of them, None none."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _fields() -> list[str]:
    return [field for field in legal_fields() if field not in WITHIN]


def _is_rule(field: str, value: Any) -> bool:
    return field == "alpha" and (isinstance(value, dict) or value == "rank")


def numeric_fields() -> list[str]:
    """Return the fields of a run whose values are numbers."""
    fields = {**RunSpec.model_fields, **AdapterSpec.model_fields}
    return [name for name in _fields() if name in fields and _numeric(fields[name].annotation)]


def _numeric(annotation: Any) -> bool:
    """Tell whether a type is a number's, or one of several such."""
    if isinstance(annotation, int | float):  # an alternative of Literal
        return not isinstance(annotation, bool)
    return annotation in (int, float) or any(map(_numeric, get_args(annotation)))


def _check_value(field: str, value: Any, where: str) -> None:
    """Refuse a value that no run's field has."""
    if field == "targets":
        for name in str(value).split("+") if value != "all" else ():
            if name not in MATRICES:
                raise unknown(where, name, [*MATRICES, "all"])
    elif field == "method":
        if not isinstance(value, str) or value not in METHODS:
            raise unknown(where, str(value), METHODS)
    elif _is_rule(field, value):
        alpha_of(value, 1, where)
    elif field in FLAT_FIELDS and field != "warm_start":
        info = {**RunSpec.model_fields, **AdapterSpec.model_fields}[field]
        one: dict[str, Any] = {field: (info.annotation, info)}
        exact = ConfigDict(strict=True)  # what is converted here would be equal to no run's value
        try:
            create_model("Value", __config__=exact, **one)(**{field: value})
        except ValidationError as error:
            said = error.errors()[0]["msg"] + _as_number(value)
            raise UserError(f"{where} = {value!r}: no run has it: {said}") from None


def _as_number(value: Any) -> str:
    """Say how a number is written that YAML reads as text: 1e-3; "" for other values."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return ""
    if number is None:
        return ""
    plain = f"{number:g}"  # YAML's numbers with an exponent need a point
    plain = plain if "e" not in plain or "." in plain else plain.replace("e", ".0e")
    return f" (YAML takes it for text; write {plain})"


def load_claims(path: Path | str) -> tuple[Source, list[Claim]]:
    """Read one file, and return the source and its claims in the order of the file.

    Raises:
        UserError: a key is unknown or missing or a value wrong, with its place.
    """
    path = Path(path)
    data = dict(read_written(path))
    entries = data.pop("claims", None)
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: claims: expected names and claims, got {entries!r}")
    source = validated(Source, data, str(path))
    claims = []
    for name, entry in entries.items():
        where = f"{path}: claims.{name}"
        check_name(f"{path}: claim", str(name))
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected keys and values, got {entry!r}")
        if "id" in entry:
            raise UserError(f"{where}: id: is made from the file's name and the claim's; leave out")
        try:
            claim = validated(Claim, {"id": f"{path.stem}.{name}", **entry}, where)
            select((claim.published,) if claim.published else ())
        except UserError as error:
            raise (
                error if str(error).startswith(where) else UserError(f"{where}: {error}")
            ) from None
        claims.append(claim)
    return source, claims


def load_all_claims(folder: Path | str = FOLDER) -> dict[str, tuple[Source, list[Claim]]]:
    """Read every file of a folder; returns {file name without suffix: source and claims}."""
    return {path.stem: load_claims(path) for path in own_and_shipped(folder)}


def select_claims(keys: Iterable[str], folder: Path | str = FOLDER) -> list[Claim]:
    """Return the claims called "<file>.<claim>", in the order of `keys`.

    Raises:
        UserError: there is no such claim; the message has the nearest match.
    """
    keys = list(keys)
    stems = dict.fromkeys(key.partition(".")[0] for key in keys)
    files = [own_or_shipped(Path(folder, f"{stem}.yaml")) for stem in stems]
    found = {c.id: c for path in files if path.is_file() for c in load_claims(path)[1]}
    for key in keys:
        if key not in found:
            legal = [claim.id for _, claims in load_all_claims(folder).values() for claim in claims]
            raise unknown("claims", key, legal)
    return [found[key] for key in keys]
