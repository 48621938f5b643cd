"""Which fields of PEFT's LoraConfig, or of another method's, the field `peft` of a run may set.

`peft_type` in it names another of PEFT's methods. The names are read from the source text of the
installed PEFT: importing it would take seconds, and planning a study should not import torch.
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

GOVERNED_TOO = {
    "alpha": "alpha",
    "feedforward_modules": "targets: those of down",
    "task_type": "the task",
    "inference_mode": "the run",
    "init_weights": "seed; weights start as PEFT's default",
}
"""Fields of other methods' configurations that may not be set."""

_INPUT = "it adds tokens or keys to the input, and adapts no matrix that `targets` could name"
_TASKS = "it learns several tasks at once, and a run has one"
REFUSED = {
    "LORA": "it is the default: leave peft_type out",
    "ADALORA": "it moves ranks while it trains: use method adalora",
    "PROMPT_TUNING": _INPUT,
    "P_TUNING": _INPUT,
    "PREFIX_TUNING": _INPUT,
    "CARTRIDGE": _INPUT,
    "CPT": _INPUT,
    "ADAPTION_PROMPT": _INPUT,
    "MULTITASK_PROMPT_TUNING": _TASKS,
    "POLY": _TASKS,
    "XLORA": "it mixes adapters that were trained before",
    "TRAINABLE_TOKENS": "it trains rows of the embedding, and no matrix that `targets` could name",
    "LN_TUNING": "it trains LayerNorms, and no matrix that `targets` could name",
    "SHADOW": "PEFT's own layers of it fail on a sequence classifier",
}
"""Types of PEFT's methods that no run can have, with the reason."""

NEEDS_MORE = ("eva", "corda", "lora_ga", "loftq")
"""Values of init_lora_weights that need data or bitsandbytes as well as a configuration."""


def check_options(options: dict[str, Any]) -> None:
    """Check the keys of a run's `peft`.

    Raises:
        ValueError: `peft_type` is unknown or refused, the configuration lacks a key, the run's own
            fields set it, or PEFT can't make the start from a configuration alone, or not again
            when the adapter is loaded.
    """
    if "peft_type" in options:
        _check_type(options)
        return
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


def _check_type(options: dict[str, Any]) -> None:
    """Check a method that is not LoRA, and the keys of its configuration."""
    kind = options["peft_type"]
    if kind in REFUSED:
        raise ValueError(f"peft: peft_type {kind} is refused: {REFUSED[kind]}")
    if not isinstance(kind, str) or kind not in peft_types():
        legal = sorted(peft_types().keys() - REFUSED.keys())
        raise ValueError(str(unknown("peft: peft_type", kind, legal)))
    governed, fields = {**GOVERNED, **GOVERNED_TOO}, type_fields(kind)
    for key in options.keys() - {"peft_type"}:
        if key in governed:
            raise ValueError(f"peft: {key!r} is governed by the run (use {governed[key]})")
        if key not in fields:
            raise ValueError(str(unknown(f"peft: {kind}: key", key, fields - governed.keys())))


def type_fields(kind: str) -> frozenset[str]:
    """Return the fields of the configuration of one of PEFT's methods, without those of all."""
    return peft_types()[kind]


@functools.cache
def peft_types() -> dict[str, frozenset[str]]:
    """Return {type of method: fields of its configuration} of the installed PEFT.

    A configuration's class says its type where it sets `self.peft_type`; a class without fields of
    its own has those of its base.
    """
    spec = importlib.util.find_spec("peft")
    assert spec is not None and spec.origin is not None  # a dependency of this package
    files = sorted(Path(spec.origin).parent.glob("tuners/**/config.py"))
    trees = [ast.parse(file.read_text()) for file in files]
    nodes = [n for tree in trees for n in tree.body if isinstance(n, ast.ClassDef)]
    classes = {node.name: node for node in nodes}
    found = {}
    for node in nodes:
        kinds = [
            part.value.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Assign)
            and isinstance(part.value, ast.Attribute)
            and ast.unparse(part.targets[0]) == "self.peft_type"
        ]
        if kinds:
            found[kinds[-1]] = frozenset(_fields(node, classes))
    return found


def _fields(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Return the fields of a class and of its bases among `classes`."""
    fields = {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            fields |= _fields(classes[base.id], classes)
    return fields


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
