"""Grid blocks and ablations of a study file, expanded into points: one point per run.

A point's fields come from these places, of which a later one overrides an earlier one:

    1. `defaults` of defaults.yaml, then of the protocol, then of the study file
    2. `per_task` of these three files, for the point's task
    3. `per_method` of these three files, for the point's method
    4. the block itself

Lists in `defaults` and in the block are axes: a block has one point for each combination of their
values. `per_task` and `per_method` can only be looked up once an axis has given a point its task
and method, so they are filled in after the expansion, and never over what the block says.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraudit.base.errors import UserError
from loraudit.studies.methods import METHODS
from loraudit.studies.spec import FLAT_FIELDS
from loraudit.studies.study import BASE, Switch
from loraudit.studies.study_file import AblationFile, Layer, StudyFile
from loraudit.studies.values import check_known

NAMED = ("task", "model", "method", "rank", "targets", "seed")
"""Fields that show in a run's name by themselves; other axes are added to its label."""

MOST_RUNS = 100_000
"""The most runs of one grid block: ten times as many as planning was measured with."""


@dataclass(frozen=True)
class Point:
    """One point of a study's grid: the fields of a run, with task and model still given by name.

    `label` is the part of the run's name that is not from `NAMED` fields; `where` is the place in
    the study file, for error messages; `own` are the fields that the grid block itself sets.
    """

    fields: Mapping[str, Any]
    label: str
    where: str
    own: frozenset[str]

    @property
    def starts_warm(self) -> bool:
        """Whether the run starts from what another run has saved."""
        method = METHODS.get(self.fields["method"])
        may = method is not None and (method.starts_warm or method.moves_ranks)
        return may and bool(self.fields.get("warm_start"))


@dataclass(frozen=True)
class Block:
    """A mapping of fields from a study file, and its place there."""

    fields: Mapping[str, Any]
    where: str


def legal_fields() -> list[str]:
    """Return the fields that a run may have in a study file."""
    return [*FLAT_FIELDS, *(name for name, method in METHODS.items() if method.settings)]


def study_switches(file: StudyFile) -> tuple[Switch, ...]:
    """Return the switches of a study file's ablation; an empty tuple without an ablation."""
    if file.ablation is None:
        return ()
    asks = file.ablation.asks
    return tuple(
        Switch(label=_slug(name), name=name, changes=changes, asks=asks)
        for name, changes in file.ablation.switches.items()
    )


def study_blocks(file: StudyFile, path: Path) -> list[Block]:
    """Return a study file's grid blocks; an ablation adds a base block and one for each switch.

    Raises:
        UserError: there are no blocks, a block is no mapping, or an ablation has several bases.
    """
    if not isinstance(file.grid, list) or not (file.grid or file.ablation):
        raise UserError(f"{path}: grid: expected a list of blocks, got {file.grid!r}")
    blocks = []
    for number, fields in enumerate(file.grid, 1):
        where = f"{path}: grid block {number}"
        if not isinstance(fields, dict):
            raise UserError(f"{where}: expected keys and values, got {fields!r}")
        blocks.append(Block(fields, where))
    if file.ablation:
        base = file.ablation.base
        _check_ablation(file.ablation, f"{path}: ablation")
        blocks.append(Block({**base, "label": BASE}, f"{path}: ablation: base"))
        blocks += [
            Block({**base, **s.changes, "label": s.label}, f"{path}: ablation: {s.name}")
            for s in study_switches(file)
        ]
    return blocks


ABLATION_AXES = ("task", "model", "seed")
"""Fields that may be lists in a study with an ablation."""


def _check_ablation(ablation: AblationFile, where: str) -> None:
    """Refuse an ablation that does not make one cell for each task, model and switch."""
    for key, value in ablation.base.items():
        if key == "label" or (isinstance(value, list) and key not in ABLATION_AXES):
            legal = ", ".join(ABLATION_AXES)
            raise UserError(
                f"{where}: base: {key} = {value!r}: lists are legal for {legal} only, "
                "and the label is made"
            )
    named: dict[str, str] = {}
    for name, changes in ablation.switches.items():
        if _slug(name) in ("", BASE):
            raise UserError(f"{where}: switch {name!r}: its name needs letters or digits")
        if (other := named.setdefault(_slug(name), name)) != name:
            raise UserError(
                f"{where}: switches {other!r} and {name!r} would both be called {_slug(name)!r} "
                "in names of runs; tell them apart by letters or digits"
            )
        for key, value in changes.items():
            if key in (*ABLATION_AXES, "label") or isinstance(value, list):
                raise UserError(f"{where}: {name}: a switch can't set {key} to {value!r}")


_LISTS = (
    f"beside an ablation lists are legal for {', '.join(ABLATION_AXES)} only, in defaults and in "
    "the protocol too"
)


def check_ablation_points(file: StudyFile, points: Iterable[Point], path: Path) -> None:
    """Refuse points that are not one run of the base or a switch for each task, model and seed.

    Raises:
        UserError: a field is a list in `defaults` or the protocol, or another block has the label
            of the base or of a switch.
    """
    if file.ablation is None:
        return
    labels = {BASE, *(switch.label for switch in study_switches(file))}
    seen: dict[tuple[str, ...], str] = {}
    for point in points:
        if point.label not in labels and point.where.startswith(f"{path}: ablation"):
            raise UserError(f"{point.where}: {_LISTS} (a run would be called {point.label!r})")
        if point.label not in labels:
            continue
        key = (point.label, *(str(point.fields[name]) for name in ABLATION_AXES))
        first = seen.get(key)
        if first == point.where:
            raise UserError(f"{point.where}: {_LISTS} (several runs would be {point.label!r})")
        if first:
            raise UserError(
                f"{point.where}: label {point.label!r} is that of {first} too; give it another"
            )
        seen[key] = point.where


def expand_block(block: Block, layers: list[Layer]) -> list[Point]:
    """Expand one block over its axes.

    Raises:
        UserError: a key is unknown, a label not fit for a path, an axis empty, a task, model or
            method no name, or there are too many runs.
    """
    where = block.where
    check_known(block.fields, [*legal_fields(), "label"], f"{where}: key")
    shared = {key: value for layer in layers for key, value in layer.defaults.items()}
    fields = {**shared, **block.fields}
    label = fields.pop("label", "")
    if not isinstance(label, str | int | float) or not re.fullmatch(r"[\w.+-]*", str(label)):
        raise UserError(f"{where}: label {label!r}: legal are letters, digits and . + - _")
    refuse_bools(fields, where)
    axes = _axes(fields, where)
    points = []
    for values in itertools.product(*axes.values()):
        place = dict(zip(axes, values, strict=True))
        chosen = _with_special(block, layers, {**fields, **place})
        tags = [tag(key, value) for key, value in place.items() if key not in NAMED]
        if chosen.get("peft") and "peft" not in place:  # its name must differ from plain LoRA's
            tags.append(tag("peft", chosen["peft"]))
        name = "-".join(filter(None, [*tags, str(label)]))
        points.append(Point(chosen, name, where, frozenset(block.fields)))
    return points


def refuse_bools(fields: Mapping[str, Any], where: str) -> None:
    """Refuse fields that are true or false, or a list with one of these.

    Raises:
        UserError: with the field and its value.
    """
    for key, value in fields.items():
        given = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) for one in given):
            raise UserError(
                f"{where}: {key} = {value!r}: no field is true or false (YAML takes yes, no, on "
                "and off for these, too)"
            )


def _with_special(block: Block, layers: list[Layer], fields: dict) -> dict:
    """Add a point's `per_task` and `per_method` fields, except those that the block itself has."""
    for key in ("task", "model", "method"):
        if not isinstance(fields.get(key), str):
            raise UserError(f"{block.where}: {key} = {fields.get(key)!r}: expected a name")
    chosen = dict(fields)
    for part, name in (("per_task", fields["task"]), ("per_method", fields["method"])):
        for layer in layers:
            special = getattr(layer, part).get(name, {})
            chosen |= {k: v for k, v in special.items() if k not in block.fields}
    return chosen


def _axes(fields: dict, where: str) -> dict[str, list]:
    """Return the fields that are lists; refuse an empty list, and more than `MOST_RUNS` runs."""
    axes = {key: value for key, value in fields.items() if isinstance(value, list)}
    for key, value in axes.items():
        if not value:
            raise UserError(f"{where}: {key}: an empty list makes no run")
    count = math.prod(map(len, axes.values()))
    if count > MOST_RUNS:
        raise UserError(f"{where}: {count:,} runs (legal: up to {MOST_RUNS:,})")
    return axes


def tag(key: str, value: Any) -> str:
    """Name one value of an axis, fit for a path: alpha16, warm_start-mnli-adapter, peft-pissa."""
    if not isinstance(value, dict):
        return key + re.sub(r"[^\w.+-]+", "-", str(value))
    parts = [part if isinstance(part, str) else f"{name}{part}" for name, part in value.items()]
    return re.sub(r"[^\w.+-]+", "-", "-".join([key, *(parts or ["none"])]))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
