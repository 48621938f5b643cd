"""Which fields of PEFT's LoraConfig the field `peft` of a run may set.

The names are read from the source text of the installed PEFT: importing it would take seconds, and
planning a study should not import torch.
"""

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any

from loraudit.base.errors import unknown

GOVERNED = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "lora_dropout": "lora_dropout",
    "modules_to_save": "head, and the model's entry",
    "fan_in_fan_out": "the model's entry",
    "bias": "method: bitfit",
}
"""LoraConfig's fields that may not be set, because the run's own field (the value) sets them."""

NEEDS_MORE = ("eva", "corda", "lora_ga", "loftq")
"""Values of init_lora_weights that need data or bitsandbytes as well as a configuration."""


def check_options(options: dict[str, Any]) -> None:
    """Check the keys of a run's `peft`.

    Raises:
        ValueError: LoraConfig lacks a key, the run's own fields set it, or PEFT can't make the
            start from a configuration alone, or not again when the adapter is loaded.
    """
    for key in options:
        if key in GOVERNED:
            raise ValueError(f"peft: {key!r} is governed by the run (use {GOVERNED[key]})")
        if key not in lora_fields():
            legal = sorted(lora_fields() - set(GOVERNED))
            raise ValueError(str(unknown("peft: key", key, legal)))
    init = options.get("init_lora_weights", True)
    if init in NEEDS_MORE:
        raise ValueError(
            f"peft: init_lora_weights {init!r} needs more than a configuration"
            + (" (use init: loftq)" if init == "loftq" else "")
        )
    if str(init).startswith("pissa_niter"):
        raise ValueError(
            f"peft: init_lora_weights {init!r} changes the base at random, which loading the "
            "adapter can't repeat (use pissa)"
        )


@functools.cache
def lora_fields() -> frozenset[str]:
    """Return the fields that LoraConfig itself defines, without those it inherits."""
    spec = importlib.util.find_spec("peft")
    assert spec is not None and spec.origin is not None  # a dependency of this package
    tree = ast.parse(Path(spec.origin).parent.joinpath("tuners/lora/config.py").read_text())
    (config,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "LoraConfig"
    )
    fields = (node.target for node in config.body if isinstance(node, ast.AnnAssign))
    return frozenset(target.id for target in fields if isinstance(target, ast.Name))
