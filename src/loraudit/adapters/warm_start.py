"""Start a run from another run's adapter (paper, appendix D.1)."""

from pathlib import Path

import torch
from torch import nn

from loraudit.adapters.base_layers import in_head
from loraudit.adapters.parts import layouts_of
from loraudit.adapters.peft_folder import own_name, read_folder, read_parts
from loraudit.base.errors import UserError
from loraudit.studies.spec import RunSpec


@torch.no_grad()
def start_from(model: nn.Module, spec: RunSpec, folder: Path) -> list[str]:
    """Copy another run's adapter into a model of ours or of PEFT's; return the tensors' names.

    lora_A and lora_B are copied. If `warm_start.tensors` is "adapter+head", so are the head's
    tensors, except those of its output layer, whose rows are the other task's classes. A language
    model has no head, and takes none.

    Args:
        model: a model that `apply` has prepared.
        spec: the spec of its run, with a `warm_start`.
        folder: the other run's adapter folder.

    Raises:
        UserError: this model lacks a tensor of the file or has it in another shape, or the file
            lacks an adapter layer of this model.
        ValueError: the run starts cold.
    """
    start = spec.warm_start
    if start is None:
        raise ValueError("the run's spec has no warm_start")
    own = {own_name(name): parameter for name, parameter in model.named_parameters()}
    config, state, *_ = (read_parts if layouts_of(model) else read_folder)(folder)
    head = spec.model.head or tuple(config.modules_to_save or ())  # a language model has none
    copied = []
    for name, tensor in state.items():
        if in_head(name, head) and (
            start.tensors == "adapter"
            or not spec.model.head
            or in_head(name, (spec.model.output_layer,))
        ):
            continue
        if name not in own or own[name].shape != tensor.shape:
            has = tuple(own[name].shape) if name in own else "nothing"
            raise UserError(
                f"warm_start: {folder} has {name} {tuple(tensor.shape)}, this model {has}"
            )
        own[name].copy_(tensor)
        copied.append(name)
    missing = [name for name in own if name.endswith((".lora_A", ".lora_B")) and name not in copied]
    if missing:
        raise UserError(f"warm_start: {folder} has no {', '.join(missing)}")
    return copied
