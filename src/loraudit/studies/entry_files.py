"""Read one task's or model's entry from its YAML table."""

import re
from pathlib import Path
from typing import Any, TypeVar

from loraudit.base.errors import UserError, unknown
from loraudit.base.shipped import read_table
from loraudit.studies.entries import ListedModel, ListedTask, ModelEntry, TaskEntry
from loraudit.studies.values import validated

Entry = TypeVar("Entry", TaskEntry, ModelEntry)


def load_task(name: str, path: Path | str = "config/tasks.yaml") -> TaskEntry:
    """Read one task's entry.

    Raises:
        UserError: the entry is unknown or ill-formed, or its name is not fit for a path.
    """
    return _narrowed(TaskEntry, listed_task(name, path))


def listed_task(name: str, path: Path | str = "config/tasks.yaml") -> ListedTask:
    """Read one task's entry with what else the file says of it; raises as `load_task` does."""
    entry = _entry("task", name, read_table(path), path)
    check_name(f"{path}: task", name)
    task: ListedTask = validated(ListedTask, _named(name, entry, path), f"{path}: {name}")
    if "selection" in task.also_validate:
        raise UserError(
            f"{path}: {name}: also_validate: 'selection' is taken: it names the rows that are held "
            "out of the training split"
        )
    return task


def load_model(name: str, path: Path | str = "config/models.yaml") -> ModelEntry:
    """Read one model's entry, and fill in its family's module names.

    Raises:
        UserError: the entry is unknown or ill-formed, or its name is not fit for a path.
    """
    return _narrowed(ModelEntry, listed_model(name, path))


def listed_model(name: str, path: Path | str = "config/models.yaml") -> ListedModel:
    """Read one model's entry with what else the file says of it; raises as `load_model` does."""
    table = read_table(path, "families", "models")
    families = table.get("families", {})
    entry = dict(_entry("model", name, table.get("models", {}), path))
    check_name(f"{path}: model", name)
    family = entry.pop("family", None)
    shared = {} if family is None else _entry(f"{path}: {name}: family", family, families, path)
    return validated(ListedModel, _named(name, {**shared, **entry}, path), f"{path}: {name}")


def _named(name: str, entry: dict, path: Path | str) -> dict:
    """Return an entry with its name, which is its key in the file."""
    if (own := entry.get("name", name)) != name:
        raise UserError(f"{path}: {name}: name = {own!r}: an entry is called by its key; drop it")
    return {**entry, "name": name}


def _narrowed(cls: type[Entry], listed: Entry) -> Entry:
    """Return what a run's spec holds of a listed entry."""
    return cls(**{name: getattr(listed, name) for name in cls.model_fields})


def _entry(what: str, name: Any, table: Any, path: Path | str) -> dict:
    """Return the entry of this name from a table of mappings."""
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected names and entries, got {table!r}")
    if not isinstance(name, str) or name not in table:
        raise unknown(what, name, map(str, table))
    if not isinstance(table[name], dict):
        raise UserError(f"{path}: {name}: expected keys and values, got {table[name]!r}")
    return table[name]


NAME, LONGEST = r"\w[\w.+-]*", 100
"""What a study, task or model may be called, as a pattern and as the most bytes: the names become
folders."""


def check_name(what: str, name: str) -> None:
    """Refuse a name that is not fit for a path.

    Raises:
        UserError: the name is not fit; the message says what is legal.
    """
    if not re.fullmatch(NAME, name) or len(name.encode()) > LONGEST:
        raise UserError(
            f"{what}: {name!r}: legal are letters, digits and . + - _, first a letter or digit, "
            f"{LONGEST} bytes at most"
        )
