"""What LoRA is compared with: the head alone (method "head"), all parameters (method "full")."""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from loraudit.models import freeze, in_head
from loraudit.spec import RunSpec


def apply(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Set what is trainable, in place."""
    freeze(model, spec.model.head, spec.head == "trained")
    if spec.method == "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(spec.head == "trained" or not in_head(name, spec.model.head))
    return model


def export(model: nn.Module, spec: RunSpec, folder: Path) -> None:
    """Save the head alone; full fine-tuning keeps no weights (a whole checkpoint per run)."""
    if spec.method == "head":
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in model.state_dict().items()
            if in_head(name, spec.model.head)
        }
        save_file(state, folder / "head.safetensors", metadata={"format": "pt"})
