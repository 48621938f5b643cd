"""LoRA with this project's own layers."""

from pathlib import Path

from torch import nn

from loraudit.adapters import inject
from loraudit.studies.spec import RunSpec
from loraudit.training.method import Method


class LoRA(Method):
    """h = W0 x + (alpha / r) B A x (Hu et al. 2022), by adapters/lora.py."""

    def apply(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        """Freeze the model and wrap its target layers, in place."""
        return inject.apply(model, spec)

    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save the adapter and the head in PEFT's format."""
        inject.export(model, spec, folder)
