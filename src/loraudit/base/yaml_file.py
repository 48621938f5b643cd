"""Read YAML mappings that hold plain values only, and not too many of them."""

import functools
from pathlib import Path
from typing import Any

import yaml

from loraudit.base.errors import UserError

LARGEST = 1_000_000
"""The most values that a file may hold once its aliases are written out: a few lines of aliases of
aliases can stand for billions of values."""


def read_yaml(path: Path | str) -> dict:
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML of plain values or not a mapping, or its aliases
            contain themselves or stand for more than `LARGEST` values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    return _read_yaml(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_yaml(path: Path, mtime: int) -> dict:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        size = _size(data, {})
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        # PyYAML also lets through the errors that Python raises for impossible dates and numbers
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    if size > LARGEST:
        raise UserError(f"{path}: its aliases mean {size:.2g} values (legal: up to {LARGEST:,})")
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys and values at the top level")
    return data


def _size(value: Any, known: dict[int, int]) -> int:
    """Count the values below `value`, once for each alias; `known` holds counts by identity.

    A value that several aliases name is walked once, so the time grows with the file's length and
    not with the count.

    Raises:
        RecursionError: a value contains itself.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = 0  # being counted: to meet it again means that it contains itself
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    elif not known[id(value)]:
        raise RecursionError
    return known[id(value)]
