"""LoRA by PEFT, which cross-checks this project's own, and PEFT's variants of LoRA."""

from pathlib import Path

from torch import nn

from loraudit.adapters import peft_twin
from loraudit.studies.spec import RunSpec
from loraudit.training.method import Method


class PeftLoRA(Method):
    """PEFT's LoraModel, started where our own starts; the spec's `peft` chooses a variant."""

    def apply(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        """Wrap the model by PEFT."""
        return peft_twin.apply(model, spec)

    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save the adapter and the head in PEFT's format."""
        peft_twin.export(model, spec, folder)
