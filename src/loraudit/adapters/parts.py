"""Adapters on parts of a fused layer as one adapter of the whole layer, and back.

PEFT adapts whole layers. The adapters of a layer's parts (fused.py) are, in its files,

    A (R, d_in) = the parts' A, one below the other;   R = the sum of their ranks
    B (d_out, R) = block by block the parts' B, and 0 elsewhere

with the scaling of the parts, which is the same for all.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from loraudit.studies.entries import Rows


class SavedPart(NamedTuple):
    """A part's matrix, rank and outputs, as an adapter of the whole layer has them in order."""

    matrix: str
    rank: int
    rows: Rows


class Layout(NamedTuple):
    """The number of outputs of a fused layer, and its parts."""

    d_out: int
    parts: tuple[SavedPart, ...]


Layouts = Mapping[str, Layout]
"""{full name of a fused layer: its layout}."""


def layouts_of(model: nn.Module) -> dict[str, Layout]:
    """Return the layouts of the in-house fused layers of a model (`FusedLoRA.layout`)."""
    found = {name: getattr(layer, "layout", None) for name, layer in model.named_modules()}
    return {name: layout for name, layout in found.items() if isinstance(layout, Layout)}


def fold(state: Mapping[str, Tensor], layouts: Layouts) -> dict[str, Tensor]:
    """Return adapter tensors with the parts of each fused layer as one adapter of the layer.

    Args:
        state: {in-house name: tensor}, such as "h.0.attn.c_attn.q.lora_A"; others stay.
        layouts: of the model.
    """
    folded = dict(state)
    for layer, (d_out, parts) in layouts.items():
        if not parts:
            continue
        pairs = [
            [folded.pop(f"{layer}.{part.matrix}.{one}") for one in ("lora_A", "lora_B")]
            for part in parts
        ]
        folded[f"{layer}.lora_A"] = torch.cat([a for a, _ in pairs])
        whole = pairs[0][1].new_zeros(d_out, sum(part.rank for part in parts))
        blocks = whole.split([part.rank for part in parts], 1)
        for part, block, (_, b) in zip(parts, blocks, pairs, strict=True):
            block[_index(part.rows)] = b
        folded[f"{layer}.lora_B"] = whole
    return folded


def unfold(state: Mapping[str, Tensor], layouts: Layouts) -> dict[str, Tensor]:
    """Return adapter tensors with those of each fused layer as adapters of its parts."""
    unfolded = dict(state)
    for layer, (_, parts) in layouts.items():
        if not parts:
            continue
        ranks = [part.rank for part in parts]
        a = unfolded.pop(f"{layer}.lora_A").split(ranks)
        b = unfolded.pop(f"{layer}.lora_B").split(ranks, 1)
        for part, own_a, own_b in zip(parts, a, b, strict=True):
            unfolded[f"{layer}.{part.matrix}.lora_A"] = own_a.contiguous()
            unfolded[f"{layer}.{part.matrix}.lora_B"] = own_b[_index(part.rows)]
    return unfolded


def free(layout: Layout, like: Tensor) -> Tensor:
    """Return a mask (d_out, R): 1 where the folded B has a part's entries, 0 where it stays 0."""
    mask = torch.zeros(
        layout.d_out, sum(p.rank for p in layout.parts), dtype=like.dtype, device=like.device
    )
    for part, block in zip(
        layout.parts, mask.split([p.rank for p in layout.parts], 1), strict=True
    ):
        block[_index(part.rows)] = 1
    return mask


def _index(rows: Rows) -> Tensor:
    """Return the numbers of the outputs."""
    return torch.cat([torch.arange(start, stop) for start, stop in rows])
