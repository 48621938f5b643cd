"""Find a model's layers behind q k v o gate up down, tell their kind and sizes, and freeze them."""

import re
from typing import NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraudit.base.errors import UserError, unknown
from loraudit.studies.entries import (
    FusedPart,
    Matrix,
    ModelEntry,
    Rows,
    layer_pattern,
    place_of,
    range_sizes,
)


def in_head(parameter: str, head: tuple[str, ...]) -> bool:
    """Tell whether a parameter's dotted name lies in one of the head modules."""
    return any(f".{name}." in f".{parameter}" for name in head)


class Target(NamedTuple):
    """A matrix of one layer that gets an adapter.

    `name` is the adapter's: that of the linear layer `layer`, and for a part of it the matrix after
    it ("h.0.attn.c_attn.q"). `rows` are the part's outputs; None means all.
    """

    name: str
    layer: str
    matrix: Matrix
    rows: Rows | None = None


def targets_of(model: nn.Module, entry: ModelEntry, targets: tuple[Matrix, ...]) -> list[Target]:
    """Return the matrices behind q, k, v, o, gate, up, down, in model order.

    Raises:
        UserError: a target matches no linear layer of this model, or not one in each layer although
            the entry does not say so, or a layer's outputs can't be cut as the entry says.
    """
    linear = [name for name, layer in model.named_modules() if is_linear(layer)]
    found: dict[str, list[Target]] = {}
    for matrix in targets:
        module = entry.modules[matrix]
        hits = [name for name in names_like(model, layer_pattern(module)) if name in linear]
        _check_hits(model, entry, matrix, hits)
        for name in hits:
            target = Target(name, name, matrix)
            if isinstance(module, FusedPart):
                rows = part_rows(model, name, module, f"model {entry.name!r}: modules: {matrix}")
                target = Target(f"{name}.{matrix}", name, matrix, rows)
            found.setdefault(name, []).append(target)
    # the parts of a layer stand in the order of its outputs
    return [t for name in linear for t in sorted(found.get(name, []), key=lambda t: t.rows or ())]


def target_modules(model: nn.Module, entry: ModelEntry, targets: tuple[Matrix, ...]) -> list[str]:
    """Return the full names of the linear layers that hold these matrices; see `targets_of`."""
    return list(dict.fromkeys(target.layer for target in targets_of(model, entry, targets)))


def _check_hits(model: nn.Module, entry: ModelEntry, matrix: Matrix, hits: list[str]) -> None:
    """Refuse a name that means no layer, or is missing in some of the numbered blocks."""
    pattern = layer_pattern(entry.modules[matrix])
    if not hits:
        raise UserError(
            f"targets: model {entry.name!r} has no linear layer {pattern!r} for {matrix!r} "
            "(models.yaml)"
        )
    blocks = names_like(model, f"{pattern.partition('*')[0]}*")
    lacking = [b for b in blocks if not any(f"{hit}.".startswith(f"{b}.") for hit in hits)]
    if lacking and matrix not in entry.some_layers:
        raise UserError(
            f"targets: {matrix} = {pattern!r} is in {len(hits)} of {len(blocks)} layers of model "
            f"{entry.name!r} and not in {lacking[0]!r}; if that is right, its entry has to say "
            f"some_layers: [{matrix}]"
        )


def part_rows(model: nn.Module, name: str, part: FusedPart, where: str) -> Rows:
    """Return the outputs of a linear layer that are one of its parts.

    Args:
        model: the model, whose config may hold the parts' shares.
        name: full name of the layer.
        part: which part, as the model's entry says.
        where: start of error messages.

    Raises:
        UserError: the config lacks a number that the entry names, or the number of outputs is no
            multiple of the sum of the shares.
    """
    named = (1,) * part.of if isinstance(part.of, int) else part.of
    *shares, repeats = (_number(model, value, where) for value in (*named, part.repeats))
    d_out = (linear_sizes(model, name) or (0, 0))[1]
    unit, rest = divmod(d_out, sum(shares) * repeats)
    if rest or not unit:
        times = f"{repeats} times " if repeats > 1 else ""
        raise UserError(
            f"{where}: the {d_out} outputs of {name!r} can't be cut {times}into parts of shares "
            f"{', '.join(map(str, shares))} (legal: a divisor of {d_out} as the sum of the shares"
            f"{' times the repeats' if repeats > 1 else ''})"
        )
    start = unit * sum(shares[: part.part])
    stop, period = start + unit * shares[part.part], unit * sum(shares)
    return tuple((start + i * period, stop + i * period) for i in range(repeats))


def _number(model: nn.Module, value: int | str, where: str) -> int:
    """Return a whole number that an entry gives, or names in the model's config."""
    if isinstance(value, int):
        return value
    found = getattr(model.config, value, None)
    if isinstance(found, int) and found > 0:
        return found
    known = {k for k, v in model.config.to_dict().items() if type(v) is int and v > 0}
    raise unknown(f"{where}: number in the model's config", value, known)


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
    if entry.head:
        _check_output(model, entry, outputs)
    places: dict[tuple[int, str], str] = {}
    matrices: dict[str, Matrix] = {}
    for matrix, module in entry.modules.items():
        pattern = layer_pattern(module)
        for name in names_like(model, pattern):
            if in_head(f"{name}.", entry.head):
                raise UserError(
                    f"{where}: modules: {matrix} = {pattern!r} means {name!r}, which lies in the "
                    f"head ({', '.join(entry.head)}): a head is trained whole, without adapters"
                )
            other = matrices.setdefault(name, matrix)
            if other != matrix and layer_pattern(entry.modules[other]) != pattern:
                raise UserError(f"{where}: modules: {other} and {matrix} both mean {name!r}")
            adapter = f"{name}.{matrix}" if isinstance(module, FusedPart) else name
            place = place_of(adapter, {matrix: module})
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


def blocks_of(model: nn.Module, entry: ModelEntry) -> dict[str, nn.Module]:
    """Return {full name: block} in order; a block is what `*` numbers in the entry's module names.

    The result is empty if the entry's names do not agree on where the blocks are.
    """
    modules = map(layer_pattern, entry.modules.values())
    patterns = {f"{name.partition('*')[0]}*" for name in modules if "*" in name}
    names = [name for pattern in patterns for name in names_like(model, pattern)]
    return {name: model.get_submodule(name) for name in names} if len(patterns) == 1 else {}


def freeze(model: nn.Module, head: tuple[str, ...], train_head: bool) -> None:
    """Freeze every parameter, except the head's when `train_head`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(train_head and in_head(name, head))


def hold_frozen(model: nn.Module, head: tuple[str, ...], dtype: torch.dtype) -> None:
    """Hold the frozen weights and biases of linear layers outside the head in `dtype`, in place.

    Under autocast to `dtype` this changes no bit of what the model computes, since a linear layer
    then casts its weight anyway, each time that it runs. Embeddings and LayerNorm, with which
    autocast computes in float32, stay as they are, and so does a frozen head, which is saved, and a
    language model's last layer where its weight is that of the embedding.
    """
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and not in_head(f"{name}.", head):
            for parameter in layer.parameters(recurse=False):
                if not parameter.requires_grad and id(parameter) not in embedded:
                    parameter.data = parameter.data.to(dtype)


def matrix_sizes(model: nn.Module, target: Target) -> tuple[int, int]:
    """Return (d_in, d_out) of a target; of a part, d_out is the number of its own outputs."""
    d_in, d_out = linear_sizes(model, target.layer) or (0, 0)
    if target.rows is not None:
        d_out = sum(range_sizes(target.rows))
    return d_in, d_out


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
