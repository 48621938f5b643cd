"""Start a run from what another run has saved (paper, appendix D.1)."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

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
    copied = _copy({n: t for n, t in state.items() if not _left_out(n, head, spec)}, own, folder)
    missing = [name for name in own if name.endswith((".lora_A", ".lora_B")) and name not in copied]
    if missing:
        raise UserError(f"warm_start: {folder} has no {', '.join(missing)}")
    return copied


@torch.no_grad()
def start_from_weights(model: nn.Module, spec: RunSpec, file: Path) -> list[str]:
    """Copy the weights that another run has trained into a model; return the tensors' names.

    All are copied but the head's, of which `start_from` says what is.

    Args:
        model, spec: as in `start_from`.
        file: safetensors of the other run's weights.

    Raises:
        UserError: there is no such file, or this model lacks a tensor of it or has it in another
            shape.
    """
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"warm_start: {file}: can't be read: {error}") from None
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {n: t for n, t in state.items() if not _left_out(n, spec.model.head, spec)}
    return _copy(kept, own, file)


def _left_out(name: str, head: tuple[str, ...], spec: RunSpec) -> bool:
    """Tell whether a tensor of the other run is its head's and stays there."""
    if not in_head(name, head):
        return False
    adapter = spec.warm_start is not None and spec.warm_start.tensors == "adapter"
    return adapter or not spec.model.head or in_head(name, (spec.model.output_layer,))


def _copy(state: dict[str, Tensor], own: dict[str, Tensor], where: Path) -> list[str]:
    """Copy tensors into those of a model that have their names; return the names."""
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            has = tuple(own[name].shape) if name in own else "nothing"
            raise UserError(
                f"warm_start: {where} has {name} {tuple(tensor.shape)}, this model {has}"
            )
        own[name].copy_(tensor)
    return list(state)
