"""Read YAML mappings: plain values only, and no more of them than the file is long."""

import functools
from pathlib import Path
from typing import Any

import yaml

from loraudit.base.errors import UserError

LARGEST = 1_000_000
"""Values that a file may hold once its aliases are written out; a few lines can mean billions."""


def read_yaml(path: Path | str) -> dict:
    """Read a YAML mapping.

    Raises:
        UserError: no such file, not YAML of plain values, not a mapping, or one whose aliases hold
            themselves or more than `LARGEST` values.
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
        # besides its own errors, the reader lets through those of dates and numbers that are none
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    if size > LARGEST:
        raise UserError(f"{path}: its aliases mean {size:.2g} values (legal: up to {LARGEST:,})")
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys and values at the top level")
    return data


def _size(value: Any, known: dict[int, int]) -> int:
    """Count the values below `value`, each alias's anew; RecursionError if one holds itself.

    `known` has the counts by identity, so that the time is that of the file, not of the count.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = 0
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    elif not known[id(value)]:
        raise RecursionError
    return known[id(value)]
