"""The digest that tells whether a run was trained by today's code."""

import functools
from pathlib import Path

from loraudit.base.code_digest import code_digest
from loraudit.studies.methods import METHODS

SCRIPT = Path("scripts/train.py")
"""The program of rule train, in the repository's folder."""


@functools.cache
def training_code(name: str, script: Path = SCRIPT) -> str:
    """Return the digest of what trains a method: its code, and its entry in methods.yaml.

    The entry's fields that only tables and figures use are left out.
    """
    method = METHODS[name]
    entry = method.model_dump_json(exclude={"label", "published_as"})
    return code_digest(script, method.module, data=entry)
