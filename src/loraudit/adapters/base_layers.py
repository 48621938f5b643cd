"""Find a model's layers behind q k v o up down, tell their kind and sizes, and freeze them."""

import re

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraudit.base.errors import UserError
from loraudit.studies.entries import Matrix, ModelEntry, place_of


def in_head(parameter: str, head: tuple[str, ...]) -> bool:
    """Tell whether a parameter's dotted name lies in one of the head modules."""
    return any(f".{name}." in f".{parameter}" for name in head)


def target_modules(model: nn.Module, entry: ModelEntry, targets: tuple[Matrix, ...]) -> list[str]:
    """Return the full names of the linear layers behind q, k, v, o, up, down, in model order.

    Raises:
        UserError: a target matches no linear layer of this model.
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


def check_entry(model: nn.Module, entry: ModelEntry, outputs: int) -> None:
    """Check that the names of a model's entry fit the model.

    Args:
        model: the model as it was loaded, without adapters.
        entry: its entry in models.yaml.
        outputs: the number of scores that the head gives.

    Raises:
        UserError: the model lacks a head module; the head's last layer is not one of `outputs`
            scores, or not in the head; an adaptable matrix lies in the head; or two of them are one
            layer or share a layer number.
    """
    where, modules = f"model {entry.name!r}", dict(model.named_modules())
    for name in entry.head:
        if name not in modules:
            raise UserError(f"{where} has no head module {name!r}")
    _check_output(model, entry, outputs)
    places: dict[tuple[int, str], str] = {}
    matrices: dict[str, str] = {}
    for matrix, pattern in entry.modules.items():
        for name in names_like(model, pattern):
            if in_head(f"{name}.", entry.head):
                raise UserError(
                    f"{where}: modules: {matrix} = {pattern!r} means {name!r}, which lies in the "
                    f"head ({', '.join(entry.head)}): a head is trained whole, without adapters"
                )
            other = matrices.setdefault(name, matrix)
            if other != matrix:
                raise UserError(f"{where}: modules: {other} and {matrix} both mean {name!r}")
            place = place_of(name, {matrix: pattern})
            if place and places.setdefault(place, name) != name:
                raise UserError(
                    f"{where}: modules: {matrix} = {pattern!r} means both {places[place]!r} and "
                    f"{name!r}; write out the part in which they differ"
                )


def _check_output(model: nn.Module, entry: ModelEntry, outputs: int) -> None:
    """Refuse a head whose last layer does not give the scores, or stays outside of it."""
    layer, where = entry.output_layer, f"model {entry.name!r}"
    if layer not in dict(model.named_modules()):
        raise UserError(f"{where}: output: the model has no module {layer!r}")
    sizes = linear_sizes(model, layer)
    if sizes is None or sizes[1] != outputs:
        linear = (name for name, module in model.named_modules() if is_linear(module))
        legal = [n for n in linear if (linear_sizes(model, n) or (0, 0))[1] == outputs]
        raise UserError(
            f"{where}: the last layer of its head, {layer!r}, does not give the {outputs} scores "
            f"of the task (legal: {', '.join(legal)}); name that layer last in `head`, or `output`"
        )
    if not in_head(f"{layer}.", entry.head):
        raise UserError(
            f"{where}: output: {layer!r} lies outside the head ({', '.join(entry.head)})"
        )


def is_packed(layer: nn.Module) -> bool:
    """Tell whether a layer holds its weight in few bits (quantise.py).

    It is told by the name that hqq gives the packed weight, so that hqq need not be installed.
    """
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


def hold_frozen(model: nn.Module, head: tuple[str, ...], dtype: torch.dtype) -> None:
    """Hold the frozen weights and biases of linear layers outside the head in `dtype`, in place.

    Under autocast to `dtype` this changes no bit of what the model computes, since a linear layer
    then casts its weight anyway, each time that it runs. Embeddings and LayerNorm, with which
    autocast computes in float32, stay as they are, and so does a frozen head, which is saved.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and not in_head(f"{name}.", head):
            for parameter in layer.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


def linear_sizes(model: nn.Module, name: str) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear layer; None if the model has none of that name.

    GPT-2's Conv1D stores its weight as (d_in, d_out), nn.Linear as (d_out, d_in).
    """
    layer = dict(model.named_modules()).get(name)
    if isinstance(layer, nn.Linear) or (layer is not None and is_packed(layer)):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        d_in, d_out = layer.weight.shape
        return d_in, d_out
    return None
