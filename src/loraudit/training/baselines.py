"""What LoRA is compared with.

Method "head" trains the classification head alone, "bitfit" the head and every bias of the model
(Ben Zaken et al. 2022, BitFit), "full" all parameters.
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from loraudit.adapters.layers import freeze, in_head
from loraudit.studies.spec import RunSpec


def apply(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Set what is trainable, in place."""
    freeze(model, spec.model.head, spec.head == "trained")
    for name, parameter in model.named_parameters():
        if not in_head(name, spec.model.head):
            parameter.requires_grad_(_trains(spec.method, name))
    return model


def _trains(method: str, name: str) -> bool:
    """Tell whether a method trains a parameter outside the head."""
    return method == "full" or (method == "bitfit" and name.endswith("bias"))


def export(model: nn.Module, spec: RunSpec, folder: Path) -> None:
    """Save the head and, for BitFit, the biases; full fine-tuning keeps no weights (too large)."""
    if spec.method == "full":
        return
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if in_head(name, spec.model.head) or _trains(spec.method, name)
    }
    save_file(state, folder / f"{spec.method}.safetensors", metadata={"format": "pt"})
