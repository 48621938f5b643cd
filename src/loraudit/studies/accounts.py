"""How a published number was made, by a run's field names, and how far a run was made like it.

A number's source may give several accounts (the paper's text and its code, say): each is a file of
config/protocols, with what holds for the number alone on top. What a source does not state is in no
account.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from loraudit.base.errors import unknown
from loraudit.base.shipped import own_and_shipped, own_or_shipped
from loraudit.base.written_yaml import read_written
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import Published
from loraudit.studies.spec import ADAPTER_FIELDS, FLAT_FIELDS, RunSpec
from loraudit.studies.study_file import ProtocolFile
from loraudit.studies.values import check_known, validated

FOLDER = Path("config/protocols")

MATCHED = ("task", "model", "method", "rank", "targets", "train_rows", "validation_rows")
"""Fields by which numbers are picked for a cell, so that they never differ here."""

ROUNDING = ("seed", "micro_batch", "padding", "compute", "recompute")
"""Fields that change a score by rounding or by chance only: no protocol differs in them."""

MAIN = ("epochs", "learning_rate", "global_batch", "head", "alpha", "warm_start")
"""Fields whose absence from an account is told; differences are told in all fields."""


class Likeness(NamedTuple):
    """How a run's protocol compares with a number's: a word, and the sentence for readers."""

    word: Literal["same", "another", "partly stated", "not stated"]
    sentence: str = ""


def accounts(number: Published, folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Return {account's name: fields of a run} of a number; empty where nothing is stated.

    Raises:
        UserError: no protocol has that name, or a field is unknown.
    """
    own = {**number.settings, **({} if number.alpha is None else {"alpha": number.alpha})}
    where = f"{number.key}: settings"
    check_known([*number.settings, *number.unstated], FLAT_FIELDS, where)
    found = {name: {**_stated(name, number, folder), **own} for name in number.protocol}
    if not found and own:
        found = {"its source": own}
    method = METHODS.get(number.method or "")
    no_adapter = method is None or method.trains != "adapter"
    dropped = {*MATCHED, *ROUNDING, *number.unstated}
    dropped |= ADAPTER_FIELDS if no_adapter else set()
    return {
        name: {key: value for key, value in fields.items() if key not in dropped}
        for name, fields in found.items()
    }


def protocols(folder: Path = FOLDER) -> list[ProtocolFile]:
    """Return all protocols that there are."""
    return [validated(ProtocolFile, read_written(p), str(p)) for p in own_and_shipped(folder)]


def _stated(name: str, number: Published, folder: Path) -> dict[str, Any]:
    """Return what a protocol states for a number's task and method."""
    path = own_or_shipped(folder / f"{name}.yaml")
    if not path.is_file():
        legal = (known.stem for known in own_and_shipped(folder))
        raise unknown(f"{number.key}: protocol", name, legal)
    file: ProtocolFile = validated(ProtocolFile, read_written(path), str(path))
    fields = {
        **file.defaults,
        **file.per_task.get(number.task or "", {}),
        **file.per_method.get(number.method or "", {}),
    }
    return {key: value for key, value in fields.items() if key not in file.assumed}


def of_run(spec: RunSpec) -> dict[str, Any]:
    """Return a run's fields as an account has them; a warm start is named by its task."""
    fields = spec.flat()
    if start := spec.warm_start:
        fields["warm_start"] = {"task": start.task, "tensors": start.tensors}
    return fields


def likeness(
    ours: Iterable[Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]]
) -> Likeness:
    """Compare our account, or the nearest of several, with the nearest of a number's accounts."""
    ours = list(ours)
    if not theirs:
        return Likeness("not stated", "how the number was made is not stated")
    if not ours:
        return Likeness("not stated", "how our scores were made is not stated")
    pairs = [
        (_differences(mine, fields), name, fields, mine)
        for name, fields in theirs.items()
        for mine in ours
    ]
    differing, name, fields, mine = min(pairs, key=lambda pair: len(pair[0]))
    adapter = "warm_start" in fields or any(mine.get("alpha") is not None for mine in ours)
    asked = [key for key in MAIN if adapter or key not in ADAPTER_FIELDS]
    gaps = {
        "the number": [key for key in asked if key not in fields],
        "our scores": [key for key in asked if key in fields and key not in mine],
    }
    missing = {side: ", ".join(map(_words, keys)) for side, keys in gaps.items() if keys}
    unsaid = "; ".join(f"not stated of {side}: {keys}" for side, keys in missing.items())
    if differing:
        text = f"the number was made under another protocol ({name}): {', '.join(differing)}"
        return Likeness("another", "; ".join(filter(None, [text, unsaid])))
    return Likeness("partly stated", unsaid) if missing else Likeness("same")


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Say each field that both accounts have with different values, the main ones first."""
    fields = [key for key in (*MAIN, *theirs) if key in theirs and key in ours]
    return [
        f"{_words(key)} {_value(theirs[key])} (here {_value(ours[key])})"
        for key in dict.fromkeys(fields)
        if ours[key] != theirs[key]
    ]


def _words(field: str) -> str:
    return field.replace("_", " ")


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict) and "tensors" in value:
        return f"from {value['task']}'s {value['tensors']}"
    return f"{value:g}" if isinstance(value, float) else str(value)
