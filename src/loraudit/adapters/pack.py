"""Several runs' adapters and heads on one frozen model, each applied to its own rows.

A batch of K runs has K * n rows, first the n of run 0, then those of run 1, and so on. A layer's
frozen product is one for all of them; the low-rank products are K in one kernel (`bmm`):

    x (K n, tokens, d_in) --- W0 (d_out, d_in) -----------------------> h (K n, tokens, d_out)
      as (K, n tokens, d_in) --- A^T (K, d_in, R) --- s (K, 1, 1) --- B^T (K, R, d_out) ---(+)

R is the largest rank among the runs. The rows of A and columns of B above a run's own rank are 0,
and so are all of a run without an adapter on this layer: they add 0 and get the gradient 0.

The runs' own A and B stay ordinary parameters of ordinary models (inject.py), so that optimizers,
checkpoints and files are the runs' own; only the frozen tensors of these models are shared. `Pack`
copies their values into the stacked A and B before a step, and hands the gradients back after it.

The result is that of the plain layers up to rounding; tests/adapters/test_pack.py compares values
and gradients in float64.
"""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraudit.adapters.base_layers import in_head
from loraudit.adapters.inject import lora_layers
from loraudit.adapters.lora import LoRALinear
from loraudit.base.errors import UserError


def copy_sharing(model: nn.Module, head: tuple[str, ...]) -> nn.Module:
    """Copy a model; the copy has a head of its own and holds the same other parameters.

    They are the same objects, so that what moves or casts those of one copy does it for all.
    """
    shared = {id(p): p for name, p in model.named_parameters() if not in_head(name, head)}
    return copy.deepcopy(model, shared)


class Rows:
    """The number of rows of the batch that the packed model is given."""

    count = 0

    def note(self, module: nn.Module, inputs: tuple, named: dict) -> None:
        """Note the number of rows, as a hook before the model's forward pass."""
        self.count = len(named["input_ids"])


class PackLinear(nn.Module):
    """A frozen linear layer with an update for each of K runs, on the run's own rows.

    Args:
        base: the frozen layer.
        own: each run's layer in its own model; None for a run that does not adapt this layer. One
            of them at least is a layer, and all have the same dropout.
        name: full name of the layer, for errors.
        rows: knows the number of rows of the batch.
    """

    def __init__(self, base: nn.Module, own: Sequence[LoRALinear | None], name: str, rows: Rows):
        super().__init__()
        given = [layer for layer in own if layer is not None]
        rank, like = max(layer.rank for layer in given), given[0]
        (d_out, _), (_, d_in) = like.lora_B.shape, like.lora_A.shape
        self.base, self.name, self.rows = base, name, rows
        self.lora_A = nn.Parameter(like.lora_A.new_zeros(len(own), rank, d_in))
        self.lora_B = nn.Parameter(like.lora_B.new_zeros(len(own), d_out, rank))
        scaling = [0.0 if layer is None else layer.scaling for layer in own]
        self.register_buffer("scaling", like.lora_A.new_tensor(scaling)[:, None, None])
        self.dropout = nn.Dropout(like.dropout.p)

    def forward(self, x: Float[Tensor, "rows *tokens d_in"]) -> Float[Tensor, "rows *tokens d_out"]:
        """Compute h = W0 x + b0 + s_k B_k A_k x of each run k's rows.

        Raises:
            UserError: x is not of the batch's rows, as where a model shares products among them.
        """
        runs = len(self.lora_A)
        if len(x) != self.rows.count:
            raise UserError(
                f"pack: layer {self.name!r} is given {len(x)} rows, and the batch has "
                f"{self.rows.count}: what it computes is not of single rows, so that runs of this "
                "model and these targets can't be trained together (set runs_per_batch: 1)"
            )
        h = self.base(x)
        own = self.dropout(x).to(self.lora_A.dtype).reshape(runs, -1, x.shape[-1])
        low = torch.bmm(own, self.lora_A.mT) * self.scaling  # (K, n tokens, R)
        stacked = h.reshape(runs, -1, h.shape[-1])
        return torch.baddbmm(stacked, low, self.lora_B.mT).view(h.shape)


class PackHead(nn.Module):
    """The K runs' own copies of a head module, each applied to its own rows."""

    def __init__(self, own: Sequence[nn.Module]):
        super().__init__()
        self.own = nn.ModuleList(own)

    def forward(self, x: Tensor, *others: object, **named: object) -> Tensor:
        """Return the outputs of all rows, in order."""
        parts = x.chunk(len(self.own))
        done = [head(part, *others, **named) for head, part in zip(self.own, parts, strict=True)]
        return torch.cat(done)


class Pack:
    """A model that computes with K runs' adapters and heads at once.

    Args:
        model: a copy of the frozen model (`copy_sharing`), without adapters, changed in place.
        runs: the runs' own models, with the adapters on.
        head: names of the head's modules.
    """

    def __init__(self, model: nn.Module, runs: Sequence[nn.Module], head: tuple[str, ...]):
        self.model, rows = model, Rows()
        found = [lora_layers(run) for run in runs]
        names = dict.fromkeys(name for layers in found for name in layers)
        self.layers: list[tuple[PackLinear, list[LoRALinear | None]]] = []
        for name in names:
            own = [layers.get(name) for layers in found]
            layer = PackLinear(model.get_submodule(name), own, name, rows)
            model.set_submodule(name, layer)
            self.layers.append((layer, own))
        for name in head:
            model.set_submodule(name, PackHead([run.get_submodule(name) for run in runs]))
        model.register_forward_pre_hook(rows.note, with_kwargs=True)

    @cached_property
    def places(self) -> list[tuple[nn.Parameter, tuple, nn.Parameter]]:
        """(stacked matrix, index of a run's part in it, the run's own matrix) of all adapters."""
        found: list[tuple[nn.Parameter, tuple, nn.Parameter]] = []
        for layer, own in self.layers:
            for run, of in enumerate(own):
                if of is not None:
                    found.append((layer.lora_A, (run, slice(of.rank)), of.lora_A))
                    found.append((layer.lora_B, (run, slice(None), slice(of.rank)), of.lora_B))
        return found

    @cached_property
    def parts(self) -> list[Tensor]:
        """The runs' parts of the stacked matrices, once these are on their device."""
        return [stack.detach()[index] for stack, index, _ in self.places]

    @torch.no_grad()
    def pull(self) -> None:
        """Copy the runs' A and B into the stacked ones."""
        # all in a few kernels, where a loop would start one for each
        torch._foreach_copy_(self.parts, [own for _, _, own in self.places])

    def push(self) -> None:
        """Hand the gradients of the stacked A and B to the runs' own, and clear the stacks'."""
        for stack, index, own in self.places:
            own.grad = stack.grad[index].contiguous()
        for layer, _ in self.layers:
            layer.lora_A.grad = layer.lora_B.grad = None
