"""LoRA on parts of a fused layer: each part has A and B of its own, and all share one x.

GPT-2 computes query, key and value by one layer, W0 (3 d, d). With adapters on query and value:

    x (tokens, d) ---+--- W0 x + b0 ---------------------------------> h (tokens, 3 d)
                     |
                  dropout --- q: + (alpha/r) B_q A_q x  to h's columns 0 to d
                         \\--- v: + (alpha/r) B_v A_v x  to h's columns 2 d to 3 d

This is what adapters on separate layers compute, with one dropout mask for all parts, as in
loralib's MergedLinear (microsoft/LoRA @c4593f0, loralib/layers.py). A part is a `LoRALinear` of its
own, whose base is some outputs of the layer (`Outputs`), so that it is merged, saved and given
another rank like any other. parts.py makes them one adapter of the whole layer for PEFT's files.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from loraudit.adapters.base_layers import is_packed
from loraudit.adapters.fast_lora import one_dtype
from loraudit.adapters.lora import LoRALinear
from loraudit.adapters.parts import Layout, SavedPart
from loraudit.base.errors import UserError
from loraudit.studies.entries import Rows, range_sizes


class Outputs:
    """Some outputs of a linear layer, with what `LoRALinear` asks of a base layer.

    It is no module, so that the layer's weight has one name in the model.

    Args:
        layer: nn.Linear, Conv1D, or a packed layer.
        rows: the outputs.
    """

    def __init__(self, layer: nn.Module, rows: Rows):
        self.layer, self.rows = layer, rows
        self.in_features = layer.nx if isinstance(layer, Conv1D) else layer.in_features
        self.out_features = sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """The number of outputs of each range."""
        return range_sizes(self.rows)

    def requires_grad_(self, flag: bool) -> "Outputs":
        """Freeze the layer, or let it train."""
        self.layer.requires_grad_(flag)
        return self

    def weight(self) -> Float[Tensor, "outputs d_in"]:
        """Return a copy of the part's rows of W0."""
        return torch.cat([self._stored()[start:stop] for start, stop in self.rows])

    def add(self, update: Float[Tensor, "outputs d_in"]) -> None:
        """Add to the part's rows of W0, in place.

        Raises:
            UserError: the weight is packed.
        """
        if is_packed(self.layer):
            raise UserError("merge: the base is quantised (base_bits): nothing can be added to it")
        stored = self._stored()
        pieces = update.to(stored.dtype).split(self.sizes)
        for (start, stop), piece in zip(self.rows, pieces, strict=True):
            stored[start:stop] += piece

    def _stored(self) -> Tensor:
        """Return W0 (d_out, d_in) as a view of what the layer stores."""
        weight = self.layer.weight
        return weight.T if isinstance(self.layer, Conv1D) else weight


class LoRAPart(LoRALinear):
    """The A (r, d_in) and B (outputs, r) of one part of a fused layer; `FusedLoRA` calls it.

    Arguments and errors are as in `LoRALinear`, but `base` is an `Outputs`, and dropout is the
    fused layer's.
    """

    base: Outputs

    @staticmethod
    def like(base: Outputs) -> Tensor:
        """Return a tensor of the dtype and on the device that A and B are to have."""
        return base.layer.meta["scale"] if is_packed(base.layer) else base.layer.weight

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch outputs"]:
        """Return the update (alpha/r) B A x alone, for an x after dropout."""
        low = nn.functional.linear(x, self.lora_A)
        return nn.functional.linear(low, self.lora_B) * self.scaling

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the part's rows of W0. Idempotent."""
        if not self.merged:
            self.base.add(self.delta_weight())
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the update, so that W0 is as before up to rounding. Idempotent."""
        if self.merged:
            self.base.add(-self.delta_weight())
            self.merged = False


class FusedLoRA(nn.Module):
    """A frozen linear layer with adapters on some of its parts, which are modules in it by name.

    Args:
        base: nn.Linear, Conv1D, or a packed layer; it is frozen and not copied.
        dropout: probability of dropping an entry of x on the way to the adapters, in [0, 1).

    Raises:
        ValueError: dropout outside [0, 1).
    """

    def __init__(self, base: nn.Module, dropout: float = 0.0):
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)

    def add(self, name: str, rows: Rows, *arguments) -> LoRAPart:
        """Put an adapter on a part; `arguments` are those of `LoRALinear`, without dropout."""
        rank, alpha, *drawn = arguments
        part = LoRAPart(Outputs(self.base, rows), rank, alpha, 0.0, *drawn)
        self.add_module(name, part)
        return part

    @property
    def layout(self) -> Layout:
        """The layer's outputs and its parts, without those of rank 0."""
        parts = [SavedPart(n, p.rank, p.base.rows) for n, p in self.parts().items() if p.rank]
        size = self.base.nf if isinstance(self.base, Conv1D) else self.base.out_features
        return Layout(size, tuple(parts))

    def parts(self) -> dict[str, LoRAPart]:
        """Return {name: part} in the order in which they were added."""
        return {n: part for n, part in self.named_children() if isinstance(part, LoRAPart)}

    def acting(self) -> list[LoRAPart]:
        """Return the parts whose update is to be added: it is not in W0 yet, and not of rank 0."""
        return [part for part in self.parts().values() if part.rank and not part.merged]

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Compute W0 x + b0, and add each part's update to its outputs."""
        h, acting = self.base(x), self.acting()
        if not acting:
            return h
        x = self.dropout(x).to(acting[0].lora_A.dtype)
        pieces: dict[tuple[int, int], Tensor] = {}
        for part in acting:
            updates = part(x).split(part.base.sizes, -1)
            pieces |= dict(zip(part.base.rows, updates, strict=True))
        return h + _side_by_side(pieces, h)


def _side_by_side(pieces: dict[tuple[int, int], Tensor], h: Tensor) -> Tensor:
    """Return updates of some outputs as one of all outputs of h, 0 between them."""
    whole, end = [], 0
    for (start, stop), piece in sorted(pieces.items(), key=lambda item: item[0]):
        whole += [piece.new_zeros(*h.shape[:-1], start - end), piece]
        end = stop
    whole.append(whole[-1].new_zeros(*h.shape[:-1], h.shape[-1] - end))
    return torch.cat(whole, -1)


class FusedLowRank(torch.autograd.Function):
    """`FusedLoRA`'s forward as one node, with the gradients of x and of each part's A and B."""

    @staticmethod
    def forward(ctx, x, weight, bias, layout, *pairs):
        """Return h (*batch, d_out) for x (*batch, d_in).

        `layout` has the rows and the scaling of each part, `pairs` are A, B, A, B and so on.
        """
        stacked, columns = torch.cat(pairs[::2]), pairs[1::2]
        low = stacked @ x.reshape(-1, x.shape[-1]).T  # (R, tokens)
        h = nn.functional.linear(x, weight, bias)
        flat, ranks = h.view(-1, h.shape[-1]), [b.shape[1] for b in columns]
        for (rows, scaling), b, own in zip(layout, columns, low.split(ranks), strict=True):
            for (start, stop), piece in zip(rows, b.split(range_sizes(rows)), strict=True):
                flat[:, start:stop].addmm_(own.T, piece.T, alpha=scaling)
        ctx.save_for_backward(x, low, weight, stacked, *columns)
        ctx.layout = layout
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, dh):
        """Return the gradients of x (None if it needs none), and of A and B of each part."""
        x, low, weight, stacked, *columns = ctx.saved_tensors
        dh, ranks = dh.reshape(-1, dh.shape[-1]), [b.shape[1] for b in columns]
        d = torch.zeros_like(low)  # (R, tokens)
        into, gradients = d.split(ranks), []
        for (rows, scaling), b, own, total in zip(
            ctx.layout, columns, low.split(ranks), into, strict=True
        ):
            pieces = []
            for (start, stop), piece in zip(rows, b.split(range_sizes(rows)), strict=True):
                total.addmm_(piece.T, dh[:, start:stop].T, alpha=scaling)
                pieces.append((own @ dh[:, start:stop]).mul_(scaling).T)
            gradients.append(torch.cat(pieces))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dh @ weight).addmm_(d.T, stacked).view_as(x)
        of_a = (d @ x.reshape(-1, x.shape[-1])).split(ranks)
        pairs = [g for pair in zip(of_a, gradients, strict=True) for g in pair]
        return dx, None, None, None, *pairs


class FastFusedLoRA(FusedLoRA):
    """`FusedLoRA` as one node wherever that computes the same up to rounding, and else as it is."""

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Compute W0 x + b0, and add each part's update to its outputs."""
        acting = self.acting()
        if not acting or not self.exact(x):
            return super().forward(x)
        weight = self.base.weight.T if isinstance(self.base, Conv1D) else self.base.weight
        layout = [(part.base.rows, part.scaling) for part in acting]
        pairs = [m.to(weight.dtype) for part in acting for m in (part.lora_A, part.lora_B)]
        return FusedLowRank.apply(x.to(weight.dtype), weight, self.base.bias, layout, *pairs)

    def exact(self, x: Tensor) -> bool:
        """Tell whether one node computes what `FusedLoRA` does, up to rounding."""
        if is_packed(self.base) or (self.training and self.dropout.p > 0):
            return False
        return one_dtype(x, self.base.weight, *(part.lora_A for part in self.acting()))
