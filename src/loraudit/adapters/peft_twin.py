"""PEFT's model of a run, which starts where ours starts and cross-checks it: its twin."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from loraudit.adapters.base_layers import compute_dtype, freeze, in_head, target_modules
from loraudit.adapters.error_ranks import Start, starts
from loraudit.adapters.peft_folder import PREFIX, from_peft, write_folder
from loraudit.base.errors import UserError
from loraudit.studies.entries import HubSource
from loraudit.studies.spec import AdapterSpec, RunSpec, derive_seed


def lora_config(spec: RunSpec, names: list[str]) -> peft.LoraConfig:
    """Return PEFT's configuration of a run's LoRA on the layers of these full names.

    Raises:
        UserError: PEFT refuses a value of the adapter's `peft`.
    """
    adapter = spec.lora
    fields = {
        "task_type": peft.TaskType.SEQ_CLS,
        "base_model_name_or_path": base_name(spec),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.lora_dropout,
        "init_lora_weights": "gaussian" if adapter.init == "gaussian" else True,
        "target_modules": list(names),
        "modules_to_save": list(spec.model.head),
        "bias": "none",
        "inference_mode": True,
        **adapter.peft,
    }
    with _peft_errors(adapter.peft):
        return peft.LoraConfig(**fields)


def base_name(spec: RunSpec) -> str:
    """Return the name by which an adapter's config calls its base model."""
    source = spec.model.source
    return source.hub if isinstance(source, HubSource) else spec.model.name


@contextmanager
def _peft_errors(options: dict) -> Iterator[None]:
    """Turn PEFT's refusal of the user's `options` into one sentence; other errors pass through."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        if not options:
            raise
        raise UserError(f"peft = {options}: PEFT says: {' '.join(str(error).split())}") from None


def apply(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Wrap the model with PEFT, starting where the in-house twin starts.

    PEFT's own initialisation is run again for each layer, with the seed that our layer has. Equal
    starts therefore show that both initialise alike, since no tensors are copied. (Starts that are
    computed from a quantisation error are copied: PEFT has them for bitsandbytes only.) Other
    starts, which the adapter's `peft` may ask for, are made once, with the run's seed.

    Raises:
        UserError: this model lacks a target, or PEFT refuses a variant.
    """
    freeze(model, spec.model.head, train_head=False)
    adapter = spec.lora
    layer_starts = starts(model, spec, target_modules(model, spec.model, adapter.targets))
    ranks = {name: start.rank for name, start in layer_starts.items()}
    config = with_ranks(lora_config(spec, list(layer_starts)), adapter, ranks)
    config.inference_mode, config.base_model_name_or_path = False, None  # PEFT fills it in
    torch.manual_seed(derive_seed(spec.seed, "lora_A"))
    with _peft_errors(adapter.peft):
        twin = peft.get_peft_model(model, config)
    for name, start in layer_starts.items():
        layer = twin.get_submodule(PREFIX + name)
        if isinstance(layer, LoraLayer):
            layer.to(compute_dtype(layer.get_base_layer()))  # PEFT makes float32 on packed layers
            _initialise(layer, start, config.init_lora_weights, spec, name)
    refreeze_head(twin, spec)
    return twin


def refreeze_head(wrapped: nn.Module, spec: RunSpec) -> None:
    """Freeze the head again if the run has it frozen: PEFT makes all that it saves trainable."""
    if spec.head == "frozen":
        for name, parameter in wrapped.named_parameters():
            if in_head(name, spec.model.head):
                parameter.requires_grad_(False)


@torch.no_grad()
def _initialise(layer: LoraLayer, start: Start, init: bool | str, spec: RunSpec, name: str) -> None:
    """Give one of PEFT's layers the start of the in-house layer."""
    matrices = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if start.a is not None:
        for own, value in zip(matrices, (start.a, start.b), strict=True):
            own.copy_(value)
    elif init in (True, "gaussian"):
        torch.manual_seed(derive_seed(spec.seed, "lora_A", name))
        layer.reset_lora_parameters("default", init)
        if spec.lora.init_std:  # PEFT's own deviation is always 1/r
            torch.manual_seed(derive_seed(spec.seed, "lora_A", name))
            torch.nn.init.normal_(matrices[0], std=spec.lora.init_std)


def with_ranks(
    config: peft.LoraConfig, adapter: AdapterSpec, ranks: dict[str, int]
) -> peft.LoraConfig:
    """Add layers of another rank to rank_pattern, and to alpha_pattern so that alpha / r stays."""
    moved = {name: rank for name, rank in ranks.items() if rank != adapter.rank}
    if moved:
        config.rank_pattern = moved
        config.alpha_pattern = {n: adapter.alpha * r / adapter.rank for n, r in moved.items()}
    return config


def export(model: nn.Module, spec: RunSpec, folder: Path) -> None:
    """Save the PEFT twin's adapter and head."""
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in peft.get_peft_model_state_dict(model).items()
    }
    ranks = {
        key.removesuffix(".lora_A"): tensor.shape[0]
        for key, tensor in from_peft(state).items()
        if key.endswith(".lora_A")
    }
    write_folder(state, with_ranks(lora_config(spec, list(ranks)), spec.lora, ranks), folder)
