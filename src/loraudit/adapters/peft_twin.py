"""PEFT's model of a run, which starts where ours starts and cross-checks it: its twin.

PEFT can't adapt a part of a fused layer (fused.py). There the twin's adapter is on the whole layer,
of the sum of the parts' ranks, with B zero outside of the parts' blocks. A mask on B's gradient
keeps it zero: AdamW does not move a zero whose gradient is always zero. So the twin computes what
ours does, by PEFT's code.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from loraudit.adapters.base_layers import Target, compute_dtype, freeze, in_head, linear_sizes
from loraudit.adapters.error_ranks import Start, starts
from loraudit.adapters.parts import Layout, SavedPart, free
from loraudit.adapters.peft_folder import PREFIX, from_peft, ranks_of, write_folder
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
        "task_type": task_type(spec),
        "base_model_name_or_path": base_name(spec),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.lora_dropout,
        "init_lora_weights": "gaussian" if adapter.init == "gaussian" else True,
        "target_modules": list(names),
        "modules_to_save": list(spec.model.head) or None,
        "bias": "none",
        "inference_mode": True,
        **adapter.peft,
    }
    with peft_errors(adapter.peft):
        return peft.LoraConfig(**fields)


def task_type(spec: RunSpec) -> peft.TaskType:
    """Return PEFT's name for what the run predicts."""
    return peft.TaskType.CAUSAL_LM if spec.task.causal_lm else peft.TaskType.SEQ_CLS


def base_name(spec: RunSpec) -> str:
    """Return the name by which an adapter's config calls its base model."""
    source = spec.model.source
    return source.hub if isinstance(source, HubSource) else spec.model.name


@contextmanager
def peft_errors(options: dict) -> Iterator[None]:
    """Turn PEFT's refusal of the user's `options` into one sentence; other errors pass through."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
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
    found = starts(model, spec)
    layer_starts = {target.name: start for target, start in found if target.rows is None}
    layouts = _layouts(model, found)
    ranks = {name: start.rank for name, start in layer_starts.items()}
    ranks |= {name: sum(p.rank for p in layout.parts) for name, layout in layouts.items()}
    config = with_ranks(lora_config(spec, list(ranks)), adapter, ranks)
    config.inference_mode, config.base_model_name_or_path = False, None  # PEFT fills it in
    torch.manual_seed(derive_seed(spec.seed, "lora_A"))
    with peft_errors(adapter.peft):
        twin = peft.get_peft_model(model, config)
    for name, start in layer_starts.items():
        layer = twin.get_submodule(PREFIX + name)
        if isinstance(layer, LoraLayer):
            layer.to(compute_dtype(layer.get_base_layer()))  # PEFT makes float32 on packed layers
            _initialise(layer, start, config.init_lora_weights, spec, name)
    for name, layout in layouts.items():
        layer = twin.get_submodule(PREFIX + name)
        layer.to(compute_dtype(layer.get_base_layer()))
        _start_parts(layer, layout, spec, name)
        hold_parts(layer, layout)
    twin.layouts = layouts
    refreeze_head(twin, spec)
    return twin


def _layouts(model: nn.Module, found: list[tuple[Target, Start]]) -> dict[str, Layout]:
    """Return the layouts of the fused layers that have adapters on parts."""
    parts: dict[str, list[SavedPart]] = {}
    for target, start in found:
        if target.rows is not None:
            part = SavedPart(target.matrix, start.rank, target.rows)
            parts.setdefault(target.layer, []).append(part)
    sizes = {name: linear_sizes(model, name) or (0, 0) for name in parts}
    return {name: Layout(sizes[name][1], tuple(own)) for name, own in parts.items()}


@torch.no_grad()
def _start_parts(layer: LoraLayer, layout: Layout, spec: RunSpec, name: str) -> None:
    """Draw each part's rows of A as PEFT draws an A of its own, with the part's seed."""
    ranks = [part.rank for part in layout.parts]
    blocks = layer.lora_A["default"].weight.split(ranks)
    for part, rows in zip(layout.parts, blocks, strict=True):
        torch.manual_seed(derive_seed(spec.seed, "lora_A", f"{name}.{part.matrix}"))
        if spec.lora.init == "gaussian":
            nn.init.normal_(rows, std=spec.lora.init_std or 1 / part.rank)
        else:
            nn.init.kaiming_uniform_(rows, a=math.sqrt(5))


def hold_parts(layer: LoraLayer, layout: Layout) -> None:
    """Keep one of PEFT's B at zero outside of the parts' blocks, where it has to be zero now."""
    weight = layer.lora_B["default"].weight
    mask = free(layout, weight)
    weight.trained_numbers = int(mask.sum())
    weight.register_hook(lambda gradient: gradient * mask.to(gradient))


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
    ranks = ranks_of(from_peft(state))
    config = with_ranks(lora_config(spec, list(ranks)), spec.lora, ranks)
    write_folder(state, config, folder, getattr(model, "layouts", None))
