"""Read YAML mappings."""

import functools
from pathlib import Path

import yaml

from loraudit.errors import UserError


def read_yaml(path: Path | str) -> dict:
    """Read a YAML mapping.

    Raises:
        UserError: no such file, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    return _read_yaml(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_yaml(path: Path, mtime: int) -> dict:
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys and values at the top level")
    return data
