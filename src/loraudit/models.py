"""The pretrained model: load it, name its matrices, freeze it."""

import re
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraudit.errors import UserError
from loraudit.spec import Matrix, ModelEntry, RunSpec, derive_seed


def load_base(spec: RunSpec, folder: Path) -> nn.Module:
    """Load the sequence classifier of a run; its head is drawn from the run's seed.

    A head in the checkpoint, of whatever size, is not used. With `base_bits`, the linear layers
    outside the head are quantised.

    Raises:
        UserError: the checkpoint lacks weights other than the head's or has them in other shapes,
            max_length is above its number of positions, or `base_group` does not fit its layers.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=max(1, len(spec.task.classes)),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    absent = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    missing = [name for name in absent if not in_head(name, spec.model.head)]
    if missing:
        raise UserError(f"model {spec.model.name!r}: no weights for {', '.join(sorted(missing))}")
    positions = getattr(model.config, "max_position_embeddings", spec.max_length)
    if spec.max_length > positions:
        raise UserError(
            f"max_length {spec.max_length} is more than model {spec.model.name!r} can read "
            f"(legal: 4 to {positions})"
        )
    reset_head(model, spec)
    if spec.base_bits:
        from loraudit.quantise import quantise

        quantise(model, spec)
    return model


def reset_head(model: nn.Module, spec: RunSpec) -> None:
    """Draw the head's weights from N(0, initializer_range^2), biases zero, by the run's seed.

    Raises:
        UserError: the model has no such head module.
    """
    torch.manual_seed(derive_seed(spec.seed, "head"))
    for name in spec.model.head:
        try:
            head = model.get_submodule(name)
        except AttributeError:
            raise UserError(f"model {spec.model.name!r} has no head module {name!r}") from None
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=getattr(model.config, "initializer_range", 0.02))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def in_head(parameter: str, head: tuple[str, ...]) -> bool:
    """Tell whether a parameter's dotted name lies in one of the head modules."""
    return any(f".{name}." in f".{parameter}" for name in head)


def target_modules(model: nn.Module, entry: ModelEntry, targets: tuple[Matrix, ...]) -> list[str]:
    """Return the full names of the linear layers behind q, k, v, o, up, down, in model order.

    Raises:
        UserError: a target that matches no linear layer of this model.
    """
    linear = [name for name, layer in model.named_modules() if is_linear(layer)]
    matched: set[str] = set()
    for target in targets:
        hits = [name for name in names_like(model, entry.modules[target]) if name in linear]
        if not hits:
            raise UserError(
                f"targets: model {entry.name!r} has no linear layer "
                f"{entry.modules[target]!r} for {target!r} (models.yaml)"
            )
        matched.update(hits)
    return [name for name in linear if name in matched]


def is_packed(layer: nn.Module) -> bool:
    """Tell whether a layer holds its weight in few bits (quantise.py), by hqq's name for it."""
    return hasattr(layer, "W_q")


def is_linear(layer: nn.Module) -> bool:
    """Tell whether a layer is one of the linear kinds: nn.Linear, Conv1D, or packed."""
    return isinstance(layer, nn.Linear | Conv1D) or is_packed(layer)


def compute_dtype(layer: nn.Module) -> torch.dtype:
    """Return the dtype in which a linear layer computes."""
    return layer.compute_dtype if is_packed(layer) else layer.weight.dtype


def names_like(model: nn.Module, pattern: str) -> list[str]:
    """Return the modules whose full name ends in a dotted pattern; `*` is a layer number."""
    regex = re.compile(rf"(^|\.){re.escape(pattern).replace(re.escape('*'), r'[0-9]+')}$")
    return [name for name, _ in model.named_modules() if regex.search(name)]


def freeze(model: nn.Module, head: tuple[str, ...], train_head: bool) -> None:
    """Freeze every parameter, except the head's when `train_head`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(train_head and in_head(name, head))


def linear_sizes(model: nn.Module, name: str) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear layer; None where the model has none of that name.

    GPT-2's Conv1D stores its weight as (d_in, d_out), nn.Linear as (d_out, d_in).
    """
    layer = dict(model.named_modules()).get(name)
    if isinstance(layer, nn.Linear) or (layer is not None and is_packed(layer)):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        d_in, d_out = layer.weight.shape
        return d_in, d_out
    return None
