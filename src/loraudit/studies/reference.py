"""Published numbers as data: config/reference/*.yaml, one file per source, checked when read.

A file holds tables. A table holds the fields that its numbers have in common (`shared`) and rows; a
row has further fields and `values`, one for each column. A value is a number, [number, ±], or a
mapping of fields that hold for this number alone. Results by seed are given as
{seeds: {seed: [score of epoch 1, epoch 2, ...]}}; value and n are then computed from them. With
`of`, the rows of the split, they are counts of right rows: exact where a percentage is rounded.

models.yaml in the same folder says what the models of the numbers are (`Architecture`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from loraudit.base.errors import UserError, unknown
from loraudit.base.shipped import own_and_shipped, own_or_shipped, read_table
from loraudit.base.written_yaml import read_written
from loraudit.studies.study_file import Reading
from loraudit.studies.values import Count, Frozen, Positive, validated

FOLDER = Path("config/reference")
MODELS = "models.yaml"
"""The file of that folder which describes models and holds no numbers."""

Confidence = Literal["seen", "computed", "inferred", "memory"]


class Published(Frozen):
    """One published number and all that is known of it.

    `value` and `pm` (the ± beside it) are in `unit`. `pm_means` is what the source says ± is;
    "unknown" leaves the reading to the study. `train_rows` is None for the whole training split.
    `doubt` says why the number may not be what the source says; such a number is never compared.
    `margin` is the largest difference, in `unit`, that counts as equal in this task.

    How the number was made: `protocol` names the file of config/protocols that says so, or several
    where accounts differ; `settings` are fields of a run that hold instead, and `unstated` those
    that are not known although the protocol has them.
    """

    reference: str
    table: str
    where: str
    source: str
    confidence: Confidence
    task: str | None = None
    model: str | None = None
    method: str | None = None
    rank: int | None = None
    alpha: float | None = None
    targets: str | None = None
    parameters: Annotated[float, Field(gt=0)] | None = None
    train_rows: int | None = None
    metric: str
    split: str = "validation"
    unit: Literal["percent", "fraction", "other"] = "percent"
    margin: Positive | None = None
    protocol: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    unstated: tuple[str, ...] = ()
    value: float
    pm: Annotated[float, Field(ge=0)] | None = None
    pm_means: Reading | Literal["unknown"] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    statistic: Literal["median", "mean", "single run", "setting", "unknown"] = "unknown"
    selection: Literal["best epoch", "last epoch", "none", "unknown"] = "unknown"
    seeds: dict[int, tuple[float, ...]] | None = None
    of: Count | None = None
    doubt: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> "Published":
        if self.pm is not None and self.pm_means is None:
            raise ValueError(f"value {self.value} ± {self.pm}: say pm_means (or 'unknown')")
        scores = [score for epochs in (self.seeds or {}).values() for score in epochs]
        within = bool(scores) and min(scores) <= self.value <= max(scores)  # their mean, say
        for score in scores if within else (self.value, *scores):
            _check_unit(score, self.unit)
        if self.selection in ("none", "unknown") and any(
            len(epochs) > 1 for epochs in (self.seeds or {}).values()
        ):
            raise ValueError(
                f"seeds with several epochs and selection {self.selection!r}: say which epoch "
                "counts (legal: best epoch, last epoch)"
            )
        return self

    @property
    def key(self) -> str:
        """The name by which a study asks for the number's table: <file>.<table>.

        Scores out of a file that is no source (`score_files`) have no table, and the file's name.
        """
        return f"{self.reference}.{self.table}" if self.table else self.reference

    def scores(self) -> list[float]:
        """Return each seed's score at the epoch that `selection` chooses; empty without seeds."""
        return scores_of(self.seeds or {}, self.selection)


def _check_unit(score: float, unit: str) -> None:
    """Refuse a score that is out of its unit's range, or that looks like one of the other unit."""
    limit = {"percent": 100.0, "fraction": 1.0, "other": float("inf")}[unit]
    if abs(score) > limit:
        legal = "; say unit: percent" if unit == "fraction" else ""
        raise ValueError(f"score {score:g} is above {limit:g} under unit: {unit}{legal}")
    if unit == "percent" and 0 < abs(score) <= 1:
        raise ValueError(
            f"score {score:g} under unit: percent is 1 % or less, which looks like a fraction; "
            f"say unit: fraction, and for {score:g} % write {score / 100:g}"
        )


def scores_of(seeds: Mapping[int, Sequence[float]], selection: str | None) -> list[float]:
    """Return each seed's last score if `selection` is "last epoch", else its best score."""
    return [epochs[-1] if selection == "last epoch" else max(epochs) for epochs in seeds.values()]


class Table(Frozen):
    """One table of a source; `columns` is the field of a number that its column names fill in."""

    title: str
    columns: Literal["task", "metric", "rank", "targets", "method", "train_rows"] = "task"
    metrics: dict[str, str] = {}
    """The metric of each task, for tables whose columns are tasks."""
    margins: dict[str, float] = {}
    """The margin of each task, for tables whose columns are tasks."""
    shared: dict = {}
    rows: tuple[dict, ...] = Field(min_length=1)


class Reference(Frozen):
    """One file of config/reference."""

    title: str
    authors: str
    year: int
    url: str
    tables: dict[str, Table] = Field(min_length=1)


def load_reference(path: Path | str) -> tuple[Reference, list[Published]]:
    """Read one file, and return the source and its numbers in the order of the file.

    Raises:
        UserError: a key is unknown, a field missing or a value out of range, with its place.
    """
    path = Path(path)
    data = dict(read_written(path))
    tables = data.pop("tables", None)
    if not isinstance(tables, dict):
        raise UserError(f"{path}: tables: expected names and tables, got {tables!r}")
    checked = {
        name: validated(Table, table, f"{path}: tables.{name}") for name, table in tables.items()
    }
    reference = validated(Reference, {**data, "tables": checked}, str(path))
    numbers = []
    for name, table in checked.items():
        for count, row in enumerate(table.rows, 1):
            where = f"{path}: tables.{name}: row {count}"
            numbers += _row(path.stem, name, table, row, where)
    return reference, numbers


def _row(file: str, name: str, table: Table, row: dict, where: str) -> list[Published]:
    row = dict(row)
    values = row.pop("values", None)
    if not isinstance(values, dict) or not values:
        raise UserError(f"{where}: values: expected columns and numbers, got {values!r}")
    numbers = []
    for column, cell in values.items():
        fields = {"reference": file, "table": name, **table.shared, **row, table.columns: column}
        if table.columns == "task" and column in table.metrics:
            fields.setdefault("metric", table.metrics[column])
        if table.columns == "task" and column in table.margins:
            fields.setdefault("margin", table.margins[column])
        fields.update(_cell(cell, fields, f"{where}: {column}"))
        numbers.append(validated(Published, fields, f"{where}: {column}"))
    return numbers


def _cell(cell: object, fields: dict, where: str) -> dict:
    """Return the fields of a number that its entry in a row's `values` gives."""
    if isinstance(cell, list):
        if len(cell) != 2:
            raise UserError(f"{where}: expected [value, ±], got {cell!r}")
        return {"value": cell[0], "pm": cell[1]}
    if not isinstance(cell, dict):
        return {"value": cell}
    if "seeds" not in cell:
        return cell
    try:
        unit = 100 / cell["of"] if "of" in cell else 1
        seeds = {seed: [unit * score for score in epochs] for seed, epochs in cell["seeds"].items()}
        scores = scores_of(seeds, {**fields, **cell}.get("selection"))
        centre = np.median if fields.get("statistic") == "median" else np.mean
        return {**cell, "seeds": seeds, "value": float(centre(scores)), "n": len(scores)}
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
        raise UserError(
            f"{where}: seeds: expected {{seed: [score per epoch]}}, got {cell['seeds']!r}"
        ) from None


def load_all(folder: Path | str = FOLDER) -> dict[str, tuple[Reference, list[Published]]]:
    """Read every file of a folder; returns {file name without suffix: source and numbers}."""
    files = (path for path in own_and_shipped(folder) if path.name != MODELS)
    return {path.stem: load_reference(path) for path in files}


class Architecture(Frozen):
    """What a published number's model is, so that a folder of its name can be told from it."""

    layers: Count
    """transformer layers"""
    width: Count
    """size of the hidden states, in numbers"""
    parameters: Count
    """parameters of the body, without pooler and head"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """digest of model.safetensors, where it is known"""
    source: str
    """where these facts are from"""


def load_models(folder: Path | str = FOLDER) -> dict[str, Architecture]:
    """Read models.yaml; returns {model: what it is}, empty without that file.

    Raises:
        UserError: a key is unknown or missing, or a value wrong.
    """
    path = Path(folder, MODELS)
    entries = read_table(path) if own_or_shipped(path).is_file() else {}
    return {
        name: validated(Architecture, entry, f"{path}: {name}") for name, entry in entries.items()
    }


def select(
    keys: tuple[str, ...], folder: Path | str = FOLDER, asked_as: str = "compare"
) -> list[Published]:
    """Return the numbers of the tables called "<file>.<table>", in the order of `keys`.

    `asked_as` is the key or option that names them, for the message.

    Raises:
        UserError: no file has a table of that name; the message has the nearest match.
    """
    by_key: dict[str, list[Published]] = {}
    stems = {key.partition(".")[0] for key in keys} - {Path(MODELS).stem}
    for path in (own_or_shipped(Path(folder, f"{stem}.yaml")) for stem in stems):
        for number in load_reference(path)[1] if path.is_file() else ():
            by_key.setdefault(number.key, []).append(number)
    for key in keys:
        if key not in by_key:
            legal = {number.key for _, numbers in load_all(folder).values() for number in numbers}
            raise unknown(asked_as, key, legal)
    return [number for key in keys for number in by_key[key]]
