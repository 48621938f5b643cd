"""LoRA by PEFT, which cross-checks this project's own, PEFT's variants of LoRA, and its methods."""

from pathlib import Path
from types import ModuleType

from torch import nn

from loraudit.adapters import peft_twin, peft_types
from loraudit.studies.spec import RunSpec
from loraudit.training.method import Method


class PeftLoRA(Method):
    """PEFT's LoraModel, started where our own starts; the spec's `peft` chooses a variant.

    With a `peft_type` in it, another of PEFT's methods is meant (adapters/peft_types.py).
    """

    def apply(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        """Wrap the model by PEFT."""
        return self._code(spec).apply(model, spec)

    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save the adapter and the head in PEFT's format."""
        self._code(spec).export(model, spec, folder)

    @staticmethod
    def _code(spec: RunSpec) -> ModuleType:
        return peft_types if "peft_type" in spec.lora.peft else peft_twin
