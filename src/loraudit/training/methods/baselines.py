"""What LoRA is compared with: full fine-tuning, BitFit, and the head alone."""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from loraudit.adapters import warm_start
from loraudit.adapters.base_layers import freeze, in_head
from loraudit.studies.spec import RunSpec
from loraudit.training.method import Method


class HeadOnly(Method):
    """Trains the classification head alone. The other baselines are subclasses."""

    def trains(self, parameter: str) -> bool:
        """Tell whether the parameter of this full name, outside the head, is trained."""
        return False

    def apply(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        """Freeze all parameters that the method does not train, in place."""
        freeze(model, spec.model.head, spec.head == "trained")
        for name, parameter in model.named_parameters():
            if not in_head(name, spec.model.head):
                parameter.requires_grad_(self.trains(name))
        return model

    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save the head and all other trained parameters as <method>.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tied = getattr(model, "all_tied_weights_keys", {})  # each is the same tensor as another
        state = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in model.state_dict().items()
            if name not in tied and (in_head(name, spec.model.head) or self.trains(name))
        }
        save_file(state, folder / f"{spec.method}.safetensors", metadata={"format": "pt"})

    def start_from(self, model: nn.Module, spec: RunSpec, folder: Path) -> list[str]:
        """Copy what another run of this method has trained (`Method.start_from`)."""
        return warm_start.start_from_weights(model, spec, folder / f"{spec.method}.safetensors")


class BitFit(HeadOnly):
    """Trains the head and every bias of the model (Ben Zaken et al. 2022, BitFit)."""

    def trains(self, parameter: str) -> bool:
        """Tell whether a parameter is a bias."""
        return parameter.endswith("bias")


class FullFineTuning(HeadOnly):
    """Trains all parameters."""

    def trains(self, parameter: str) -> bool:
        """Return True, because nothing is frozen."""
        return True

    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save nothing: the weights of the whole model are too large to keep for every run."""
