"""Scores that others made, as they stand in their files: one value per seed, cell and epoch choice.

A table is a CSV file with a row per score (`read_table`). Run logs are read by `run_logs`. Both
give `Score`s, which `as_published` turns into `Published` numbers with seeds: from there on they
are judged as a poster's per-seed results are.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, get_args

from loraudit.base.errors import UserError, unknown
from loraudit.studies.claims import numeric_fields
from loraudit.studies.entries import MATRICES, Metric
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import Published
from loraudit.studies.scores import unit_of
from loraudit.studies.spec import FLAT_FIELDS, RunSpec
from loraudit.studies.values import validated

CELL = ("task", "model", "method", "rank", "targets", "metric", "split", "train_rows")
"""Columns that name a cell."""

NEEDED = ("task", "model", "method", "seed", "metric", "score")
"""Columns that every row fills in, unless `--set` gives their value for all rows."""

NO_SETTINGS = {*CELL, "seed", "validation_rows", "train_draw", "lora_plus", "ranks", "peft"}
SETTINGS = tuple(name for name in FLAT_FIELDS if name not in NO_SETTINGS)
"""Columns that say how a score was made, by a run's field names; a verdict names what differs."""

NUMBERS = frozenset(numeric_fields())
"""Fields of a run whose values are numbers."""

HEADS = get_args(RunSpec.model_fields["head"].annotation)

PER_ROW = ("seed", "score", "epoch")
"""Columns that differ between rows, so that `--set` gives them no value."""

COLUMNS = (*CELL, *PER_ROW, "epoch_choice", *SETTINGS)
"""All columns that a table may have."""

CHOICES = {
    **{"best": "best epoch", "best_epoch": "best epoch"},
    **{"last": "last epoch", "last_epoch": "last epoch"},
    **{"": "unknown", "unknown": "unknown"},
}
"""What `epoch_choice` may say, and what it means."""

METRICS = {
    **{"acc": "accuracy", "mcc": "matthews", "matthews_correlation": "matthews"},
    **{"pearsonr": "pearson", "spearmanr": "spearman"},
}
"""Other names of metrics, such as those that `evaluate` gives them."""

MODULES = {
    **{"query": "q", "q_proj": "q", "query_proj": "q", "q_lin": "q"},
    **{"key": "k", "k_proj": "k", "key_proj": "k", "k_lin": "k"},
    **{"value": "v", "v_proj": "v", "value_proj": "v", "v_lin": "v"},
    **{"o_proj": "o", "out_proj": "o", "out_lin": "o", "attention.output.dense": "o"},
    **{"gate_proj": "gate", "up_proj": "up", "intermediate.dense": "up", "lin1": "up"},
    **{"down_proj": "down", "lin2": "down"},
}
"""Names that libraries give to the matrices, and the project's."""


class Score(NamedTuple):
    """One score as a file has it.

    `place` says where it stands. `cell` has the fields of `CELL`, `settings` some of `SETTINGS`.
    `epoch` orders the evaluations of one run; None where a file has one score per run, which is
    then of the epoch that `choice` names (a value of `CHOICES`).
    """

    place: str
    cell: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    value: float
    epoch: float | None
    choice: str


class Legal(NamedTuple):
    """The names that a file may use: those of the project, and those of the numbers beside it."""

    methods: frozenset[str]
    metrics: frozenset[str]


def legal_names(numbers: Iterable[Published]) -> Legal:
    """Return the names of methods and metrics that are known here or in published numbers.

    Of those known here they are the ones that are fractions: a score's unit is told by its size.
    """
    numbers = list(numbers)
    methods = {number.method for number in numbers if number.method}
    metrics = {number.metric for number in numbers}
    fractions = {metric for metric in get_args(Metric) if unit_of(metric) == "points"}
    return Legal(frozenset(METHODS) | methods, frozenset(fractions | metrics))


def read_table(path: Path, given: Mapping[str, Any], legal: Legal) -> list[Score]:
    """Read a CSV file with a row per score; commas, semicolons or tabs are between its columns.

    Args:
        path: its first line names the columns, in any order.
        given: fields for rows that don't fill them in themselves.
        legal: the known methods and metrics.

    Raises:
        UserError: the file has no rows, a column or a value is unknown or missing, or a number is
            none. The message names the line and, for an unknown name, the nearest legal one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    rows = _rows(text, path)
    _, first = next(rows, (1, []))
    names = [_column(name) for name in first]
    for name in names:
        if name not in COLUMNS:
            raise unknown(f"{path}: column", name, COLUMNS)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{path}: the column {twice!r} is there twice")
    missing = [name for name in NEEDED if name not in names and name not in given]
    if missing:
        raise UserError(
            f"{path}: no column {' and no column '.join(missing)}; every score needs "
            f"{', '.join(NEEDED)}{_once(missing)}"
        )
    scores = []
    for number, row in rows:
        if not any(map(str.strip, row)):
            continue
        if len(row) != len(names):
            raise UserError(f"{path}, line {number}: {len(row)} values for {len(names)} columns")
        fields = {name: text.strip() for name, text in zip(names, row, strict=True) if text.strip()}
        scores.append(score_of({**given, **fields}, f"{path}, line {number}", legal))
    if not scores:
        raise UserError(f"{path}: no scores below the first line")
    return scores


def _rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Return the rows of a table, each with the number of its line.

    Raises:
        UserError: a quote is not closed, by which a value would take in the lines that follow.
    """
    lines = text.splitlines(keepends=True)
    head = lines[0] if lines else ""
    rows = csv.reader(lines, delimiter=max(",;\t", key=head.count), strict=True)
    line = 1
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: {error} (is a quote not closed?)") from None
        if rows.line_num > line:
            raise UserError(
                f"{path}, line {line}: a value goes over {rows.line_num - line + 1} lines "
                "(is a quote not closed?)"
            )
        yield line, row
        line = rows.line_num + 1


def _once(missing: Iterable[str]) -> str:
    """Say which of the missing fields can be given once for all rows; "" for none."""
    words = [f"--set {name}=VALUE" for name in missing if name not in PER_ROW]
    return f" (a value for all rows: {' '.join(words)})" if words else ""


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def score_of(fields: Mapping[str, Any], place: str, legal: Legal) -> Score:
    """Check one score's fields, of which the values may be text.

    Raises:
        UserError: a field is missing or wrong; the message begins with `place`.
    """
    for name in NEEDED:
        if name not in fields:
            raise UserError(f"{place}: {name} is missing{_once([name])}")
    metric = known_metric(str(fields["metric"]), legal)
    if metric is None:
        raise unknown(f"{place}: metric", str(fields["metric"]), legal.metrics)
    epoch = fields.get("epoch")
    choice = _column(str(fields.get("epoch_choice", "")))
    if choice not in CHOICES:
        raise unknown(f"{place}: epoch_choice", choice, ("best", "last", "unknown"))
    if epoch is not None and choice:
        raise UserError(f"{place}: epoch and epoch_choice: give one of the two")
    settings = {
        name: _setting(name, fields[name], f"{place}: {name}")
        for name in SETTINGS
        if name in fields
    }
    return Score(
        place=place,
        cell={**_cell(fields, place, legal), "metric": metric},
        settings=settings,
        seed=_whole(fields["seed"], f"{place}: seed"),
        value=_number(fields["score"], f"{place}: score"),
        epoch=None if epoch is None else _number(epoch, f"{place}: epoch"),
        choice=CHOICES[choice],
    )


def known_method(name: str, legal: Legal) -> str | None:
    """Return the known method of that name, however it is written: vb-lora, VB_LoRA, VBLORA."""
    return {_letters(known): known for known in legal.methods}.get(_letters(name))


def known_metric(name: str, legal: Legal) -> str | None:
    """Return the known metric of that name, which may be one of `METRICS`, however written."""
    name = METRICS.get(_column(name), name)
    return {_letters(known): known for known in legal.metrics}.get(_letters(name))


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _cell(fields: Mapping[str, Any], place: str, legal: Legal) -> dict[str, Any]:
    """Return a cell's fields but for its metric, as published numbers have them."""
    method = known_method(str(fields["method"]), legal)
    if method is None:
        raise unknown(f"{place}: method", str(fields["method"]), legal.methods)
    entry = METHODS.get(method)
    cell: dict[str, Any] = {
        "task": str(fields["task"]).lower(),
        "model": str(fields["model"]).rpartition("/")[2],
        "method": entry.published_as or method if entry else method,
        "rank": None,
        "targets": None,
        "split": str(fields.get("split", "validation")),
        "train_rows": None,
    }
    if entry is None or entry.trains == "adapter":
        absent = [name for name in ("rank", "targets") if name not in fields]
        if entry and absent:
            raise UserError(f"{place}: {absent[0]} is missing, which the method {method} has")
        cell["rank"] = _whole(fields["rank"], f"{place}: rank") if "rank" in fields else None
        cell["targets"] = targets_name(fields["targets"]) if "targets" in fields else None
    if "train_rows" in fields:
        cell["train_rows"] = _whole(fields["train_rows"], f"{place}: train_rows")
    return cell


def targets_name(targets: object) -> str:
    """Write matrices as "q+v", in the project's order and names; unknown names stand last."""
    text = "+".join(map(str, targets)) if isinstance(targets, list | tuple | set) else str(targets)
    for mark in ", ;|":
        text = text.replace(mark, "+")
    names = {MODULES.get(name, name) for name in filter(None, text.split("+"))}
    known = [name for name in MATRICES if name in names]
    return "+".join([*known, *sorted(names - set(known))])


def _number(value: object, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: expected a number, got {value!r}") from None
    if not math.isfinite(number):
        raise UserError(f"{where}: expected a finite number, got {value!r}")
    return number


def _whole(value: object, where: str) -> int:
    number = _number(value, where)
    if number != int(number) or number < 0:
        raise UserError(f"{where}: expected a whole number of 0 or more, got {value!r}")
    return int(number)


def _setting(name: str, value: Any, where: str) -> Any:
    """Return a setting's value from text: a number, None for "none", or the text.

    A warm start is named by its task ("mnli"): from that task's adapter. Other programs have words
    of their own for a schedule or a precision; the head is trained or frozen.
    """
    found = _setting_value(name, value, where)
    if name == "head" and found not in HEADS:
        raise unknown(where, str(found), HEADS)
    if name in NUMBERS and found is not None:
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise UserError(f"{where}: expected a number, got {value!r}")
        if found < 0:
            raise UserError(f"{where}: expected a number of 0 or more, got {value!r}")
    return found


def _setting_value(name: str, value: Any, where: str) -> Any:
    if isinstance(value, str) and value.lower() in ("none", "null"):
        return None
    if isinstance(value, str) and name == "warm_start":
        return {"task": value.lower(), "tensors": "adapter"}
    if value is not None and not isinstance(value, str | int | float):
        raise UserError(f"{where}: expected a number or a word, got {value}")
    if not isinstance(value, str | float):
        return value
    try:
        float(value)
    except ValueError:
        return value
    number = _number(value, where)
    return int(number) if number == int(number) else number


def as_published(
    scores: Iterable[Score], name: str, protocol: tuple[str, ...] = ()
) -> list[Published]:
    """Gather scores into numbers by seed, one for each cell, set of settings and epoch choice.

    Scores of several evaluations per seed give two numbers, of the best and of the last one.

    Args:
        scores: of one unit, percent or fraction.
        name: what the scores are called, such as results.csv: the numbers' `key`.
        protocol: files of config/protocols that say how the scores were made.

    Raises:
        UserError: the scores are in mixed units or out of range, or a seed is there twice.
    """
    scores = list(scores)
    unit = _unit(scores)
    runs: dict[str, list[Score]] = {}
    for score in scores:
        by_epoch = score.choice if score.epoch is None else "by epoch"
        runs.setdefault(repr((score.cell, score.settings, by_epoch)), []).append(score)
    return [
        number
        for rows in runs.values()
        for number in _numbers(rows, name, {"unit": unit, "protocol": protocol})
    ]


def _unit(scores: list[Score]) -> str:
    """Return the unit that all scores are in: percent if any is above 1."""
    large = next((score for score in scores if abs(score.value) > 1), None)
    if large is None:
        return "fraction"
    small = next((score for score in scores if 0 < abs(score.value) <= 1), None)
    if small:
        raise UserError(
            f"score: mixed units: {large.value:g} ({large.place}) is a percentage and "
            f"{small.value:g} ({small.place}) looks like a fraction; write all scores in one unit"
        )
    beyond = next((score for score in scores if abs(score.value) > 100), None)
    if beyond:
        raise UserError(f"{beyond.place}: score: {beyond.value:g} is above 100 %")
    return "percent"


def _numbers(rows: list[Score], name: str, more: dict[str, Any]) -> Iterator[Published]:
    """Make the numbers of one cell's scores."""
    seen: dict[tuple, Score] = {}
    for row in rows:
        other = seen.setdefault((row.seed, row.epoch), row)
        if other is not row:
            at = "" if row.epoch is None else f" and epoch {row.epoch:g}"
            cell = ", ".join(f"{value}" for value in row.cell.values() if value is not None)
            raise UserError(
                f"seed {row.seed}{at} is there twice for {cell}: {other.place} and {row.place}"
            )
    seeds: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row.seed, row.epoch or 0)):
        seeds.setdefault(row.seed, []).append(row.value)
    several = any(len(epochs) > 1 for epochs in seeds.values())
    choices = ("best epoch", "last epoch") if rows[0].epoch is not None else (rows[0].choice,)
    settings = dict(rows[0].settings)
    for choice in choices if several else choices[-1:]:
        pick = max if choice == "best epoch" else (lambda epochs: epochs[-1])
        fields = {
            **{"reference": name, "table": "", "where": name, "source": "as given"},
            **{"confidence": "seen", "statistic": "mean", "selection": choice, "n": len(seeds)},
            **{"value": fmean(pick(epochs) for epochs in seeds.values()), "seeds": seeds},
            **{"alpha": settings.get("alpha")},
            **{"settings": {key: value for key, value in settings.items() if key != "alpha"}},
        }
        yield validated(Published, {**fields, **rows[0].cell, **more}, rows[0].place)
