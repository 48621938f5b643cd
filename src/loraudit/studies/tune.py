"""Which values are tried for a point of the grid before its runs are trained: a study's `tune`."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from loraudit.base.errors import UserError
from loraudit.studies.grid import NAMED, Point, tag
from loraudit.studies.methods import METHODS
from loraudit.studies.spec import FLAT_FIELDS, AdapterSpec
from loraudit.studies.study_file import TuneFile
from loraudit.studies.values import check_known

FIXED = (
    *NAMED,
    *("train_rows", "train_draw", "selection_rows", "validation_rows", "validate_epochs"),
    *("max_length", "warm_start", "base_bits", "base_group", "peft"),
)
"""Fields that say what a run is, what it reads or what it is scored on: they are not tuned."""


def check_tune(tune: TuneFile, where: str) -> None:
    """Refuse what can't be tried.

    Raises:
        UserError: an unknown field or method, a field that is not tuned, an empty axis, a value
            given twice, or a field that the method lacks.
    """
    check_known(tune.per_method, METHODS, f"{where}: per_method")
    if len(set(tune.seeds)) < len(tune.seeds):
        raise UserError(f"{where}: seeds: a seed is given twice in {list(tune.seeds)}")
    legal = [name for name in FLAT_FIELDS if name not in FIXED]
    places = {"axes": tune.axes} | {f"per_method: {m}": a for m, a in tune.per_method.items()}
    for place, axes in places.items():
        check_known(axes, legal, f"{where}: {place}: key")
        for field, values in axes.items():
            if not values:
                raise UserError(f"{where}: {place}: {field}: an empty list tries nothing")
            if len({str(value) for value in values}) < len(values):
                raise UserError(f"{where}: {place}: {field}: a value is given twice in {values!r}")


def tried(tune: TuneFile, point: Point) -> dict[str, list]:
    """Return {field: values to try} for a point; fields that its block sets itself are left out.

    Raises:
        UserError: the method lacks a field, or the run starts warm.
    """
    name = point.fields["method"]
    axes = tune.per_method.get(name, tune.axes)
    if name not in tune.per_method and METHODS[name].twin in tune.per_method:
        axes = tune.per_method[str(METHODS[name].twin)]  # twins are tuned together
    axes = {field: values for field, values in axes.items() if field not in point.own}
    for field in axes:
        if field in AdapterSpec.model_fields and METHODS[name].trains != "adapter":
            raise UserError(
                f"{point.where}: tune: method {name!r} has no field {field!r}; give it axes of its "
                f"own, as in per_method: {{{name}: {{learning_rate: [...]}}}}"
            )
    if axes and point.starts_warm:
        raise UserError(
            f"{point.where}: tune: a run that is tuned starts cold (legal warm_start: null)"
        )
    return axes


def trials(axes: Mapping[str, list], label: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each combination of values, and the label of the runs that try it."""
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        tags = [tag(field, value) for field, value in chosen.items()]
        yield chosen, "-".join(filter(None, [label, "tune", *tags]))
