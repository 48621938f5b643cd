"""In-house LoRA on a model: put adapters on it, and list, remove, merge, save and load them."""

from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraudit.adapters import peft_folder, peft_twin
from loraudit.adapters.base_layers import freeze, in_head, is_packed
from loraudit.adapters.error_ranks import starts
from loraudit.adapters.fast_lora import FastLoRALinear
from loraudit.adapters.fused import FastFusedLoRA, FusedLoRA, LoRAPart
from loraudit.adapters.lora import Init, LoRALinear
from loraudit.adapters.lora_variants import LoRAConv1D, LoRAPacked
from loraudit.adapters.parts import fold, layouts_of
from loraudit.base.errors import UserError
from loraudit.studies.spec import RunSpec, derive_seed


def apply(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Freeze the model and wrap its target layers in `LoRALinear` or `FusedLoRA`, in place.

    Each adapter's A is drawn with a seed derived from the run's seed and the adapter's name. PEFT's
    own initialisation, run with the same seed, gives its twin the same A.

    Raises:
        UserError: this model lacks a target, or the rank is above a matrix's width.
    """
    freeze(model, spec.model.head, spec.head == "trained")
    adapter = spec.lora
    init: Init = "gaussian" if adapter.init == "gaussian" else "kaiming"
    for target, start in starts(model, spec):
        torch.manual_seed(derive_seed(spec.seed, "lora_A", target.name))
        base = model.get_submodule(target.layer)
        alpha = adapter.alpha * start.rank / adapter.rank  # all layers keep the spec's alpha / rank
        if target.rows is not None:
            if not isinstance(base, FusedLoRA):
                kind = FusedLoRA if spec.compute == "plain" else FastFusedLoRA
                model.set_submodule(target.layer, kind(base, adapter.lora_dropout))
                base = model.get_submodule(target.layer)
            base.add(target.matrix, target.rows, start.rank, alpha, init, adapter.init_std)
            continue
        drawn = adapter.lora_dropout, init, adapter.init_std
        layer = lora_class(base, spec.compute)(base, start.rank, alpha, *drawn)
        if start.a is not None:
            layer.load_state_dict({"lora_A": start.a, "lora_B": start.b}, strict=False)
        model.set_submodule(target.name, layer)
    return model


def lora_class(base: nn.Module, compute: str = "plain") -> type[LoRALinear]:
    """Return the class for a linear layer, by how it stores its weight and by the `compute`."""
    if isinstance(base, Conv1D):
        return LoRAConv1D
    if is_packed(base):
        return LoRAPacked
    return LoRALinear if compute == "plain" else FastLoRALinear


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return {full name: adapter} of the adapters on a model, those on parts of a layer too."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def wrapped(model: nn.Module) -> dict[str, LoRALinear | FusedLoRA]:
    """Return {full name: layer} of the layers that have adapters; each holds its own as `base`."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoRALinear | FusedLoRA) and not isinstance(layer, LoRAPart)
    }


def merge(model: nn.Module) -> None:
    """Merge every adapter into its base layer."""
    for layer in lora_layers(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Take every adapter out of its base layer again."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def remove(model: nn.Module) -> nn.Module:
    """Put the base layers back in place of the adapters; a merged update stays in them."""
    for name, layer in wrapped(model).items():
        model.set_submodule(name, layer.base)
    return model


def switch(model: nn.Module, folder: Path) -> nn.Module:
    """Replace a model's adapters and head by a PEFT folder's, on the same base.

    Raises:
        ValueError: the adapters are merged, so their update would stay in the base.
        UserError: `load` refuses the folder, or it has no head although it is no language model's,
            so that the other task's head would stay in place. The model is then unchanged.
    """
    config, state = peft_folder.read_folder(folder)
    if not config.modules_to_save and config.task_type != TaskType.CAUSAL_LM:
        raise UserError(f"{folder}: no head (modules_to_save); the one in place is another task's")
    layers = wrapped(model)
    if any(layer.merged for layer in lora_layers(model).values()):
        raise ValueError("unmerge before switching the adapter")
    try:
        return _put_on(remove(model), config, state, folder)
    except UserError:  # nothing was put on: give the old adapters back
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        raise


def adapter_state(model: nn.Module, head: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return lora_A, lora_B and head tensors under in-house names, without adapters of rank 0."""
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if (name.endswith((".lora_A", ".lora_B")) and tensor.numel()) or in_head(name, head)
    }


def export(model: nn.Module, spec: RunSpec, folder: Path) -> None:
    """Save the adapter and head as a PEFT folder.

    A layer whose rank is not the spec's is named in rank_pattern, and in alpha_pattern with the
    alpha that keeps its scaling. A layer of rank 0 is left out. Adapters on parts of a layer become
    one of the whole layer, with zeros in B for the other parts.

    Raises:
        ValueError: the adapters are merged, so loading the file would add the update twice.
    """
    if any(layer.merged for layer in lora_layers(model).values()):
        raise ValueError("unmerge before export")
    layouts = layouts_of(model)
    state = fold(adapter_state(model, spec.model.head), layouts)
    ranks = peft_folder.ranks_of(state)
    config = peft_twin.with_ranks(peft_twin.lora_config(spec, list(ranks)), spec.lora, ranks)
    peft_folder.write_folder(peft_folder.to_peft(state), config, folder, layouts)


def load(model: nn.Module, folder: Path) -> nn.Module:
    """Put a PEFT folder's adapter and head on a fresh base model, in place.

    Raises:
        UserError: `peft_folder.read_folder` refuses the folder, or names or shapes of its tensors
            do not fit this model. The model is then unchanged.
    """
    return _put_on(model, *peft_folder.read_folder(folder), folder)


def _put_on(model: nn.Module, config: LoraConfig, state: dict, folder: Path) -> nn.Module:
    """Check that an adapter fits a model that has none, and put it on in place."""
    peft_folder.check_fits(model, state, folder)
    peft_folder.check_config(model, config, state, folder)
    names = [key.removesuffix(".lora_A") for key in state if key.endswith(".lora_A")]
    for name in names:
        rank = state[f"{name}.lora_A"].shape[0]
        base = model.get_submodule(name)
        alpha = peft_folder.alpha_of(config, name)
        layer = lora_class(base)(base, rank, alpha, config.lora_dropout)
        model.set_submodule(name, layer.train(model.training))
    model.load_state_dict(state, strict=False)
    return model
