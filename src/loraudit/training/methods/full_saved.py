"""Full fine-tuning whose weights are kept, so that what it changed can be measured."""

from pathlib import Path

from torch import nn

from loraudit.studies.spec import RunSpec
from loraudit.training.methods.baselines import FullFineTuning, HeadOnly


class SavedFullFineTuning(FullFineTuning):
    """Trains all parameters, and saves them: as many bytes for every run as the model has."""

    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save the whole model as full_saved.safetensors."""
        HeadOnly.export(self, model, spec, folder)
