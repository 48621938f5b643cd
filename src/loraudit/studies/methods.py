"""The methods that a run can train by, and what is known of each before a model is loaded.

The entries are in methods.yaml beside this file. What a method does to a model is the class that
its entry names as `code`; training/method.py says what such a class must do.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from loraudit.base.named_code import module_of
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.values import Frozen, validated

TABLE = Path(__file__).with_name("methods.yaml")

DOTTED = r"^[\w.]+:\w+$"
"""A class, written as module:name, such as loraudit.training.methods.lora:LoRA."""


class MethodEntry(Frozen):
    """One entry of methods.yaml."""

    name: str
    """the entry's own key"""
    label: str
    """what tables and figures call the method"""
    code: str = Field(pattern=DOTTED)
    """the class that carries it out"""
    trains: Literal["adapter", "weights", "head"]
    """what it trains beside the head: LoRA matrices, weights of the model itself, or nothing"""
    settings: str | None = Field(default=None, pattern=DOTTED)
    """the class of the method's own settings; a study file has them under the method's name"""
    twin: str | None = None
    """the method that computes the same with other code"""
    published_as: str | None = None
    """the method whose published numbers hold for this one too; null: it has its own"""
    crosschecked: bool = False
    """whether it starts as plain LoRA, so that our layers can be compared with PEFT's"""
    starts_warm: bool = False
    """whether a run may start from what another run of the method has saved"""
    moves_ranks: bool = False
    """whether it moves ranks between layers while it trains"""
    masks_ranks: bool = False
    """whether ranks out of use stay in the model, so that fewer are saved than are trained"""
    whole_layers: bool = False
    """whether it adapts whole layers only, and no part of a fused one"""
    own_init: bool = False
    """whether it starts A and B its own way, without the field `init`"""
    fixed: dict[str, Any] = {}
    """fields of a run that have this value with the method, as another would mean nothing"""
    saves: bool = True
    """whether a run saves what it trained; if not, each task costs a whole model's checkpoint"""

    @property
    def module(self) -> str:
        """The module of `code`, which is imported by name, so a rule's digest must name it."""
        return module_of(self.code)


METHODS: dict[str, MethodEntry] = {
    name: validated(MethodEntry, {"name": name, **entry}, f"{TABLE}: {name}")
    for name, entry in read_yaml(TABLE).items()
}
"""All methods by name, in the order of tables and figures."""


def names_of(**facts: object) -> list[str]:
    """Return the methods whose entries have all these values, as in names_of(trains="adapter")."""
    return [
        name
        for name, method in METHODS.items()
        if all(getattr(method, key) == value for key, value in facts.items())
    ]
