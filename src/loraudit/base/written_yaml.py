"""Read YAML files that people write: a key that stands in a mapping twice is refused.

YAML's parsers keep the last of the two in silence, and what stands under the first is lost.
"""

import functools
from pathlib import Path

import yaml

from loraudit.base.errors import UserError
from loraudit.base.yaml_file import read_yaml


def read_written(path: Path | str) -> dict:
    """Read a YAML mapping, as `yaml_file.read_yaml` does.

    Raises:
        UserError: as there, or a key stands in a mapping twice.
    """
    data = read_yaml(path)
    refuse_doubled(Path(path))
    return data


def refuse_doubled(path: Path) -> None:
    """Refuse a YAML file in which a key stands in a mapping twice.

    Raises:
        UserError: with the key, and both of its lines.
    """
    _refuse_doubled(path, path.stat().st_mtime_ns)


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it."""


@functools.lru_cache(maxsize=64)
def _refuse_doubled(path: Path, mtime: int) -> None:
    waiting = [yaml.compose(path.read_text(encoding="utf-8"), Loader=LOADER)]
    seen: set[int] = set()  # a node that several aliases name is looked at once
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            waiting.append(value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise UserError(
                    f"{path}, line {line}: key {key.value!r} stands there twice (before that in "
                    f"line {lines[name]})"
                )
            lines[name] = line
