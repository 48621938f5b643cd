"""Switch off, take away and add ranks of a LoRALinear, as the adaptive methods do.

With a gate g_i in {0, 1} per rank,

    h = W0 x + b0 + s B diag(g) A x,        s = alpha / r of the start, whatever the rank is now

A gate of 0 is the same as a zero column of B, so the layer's forward needs no gates: a rank is
switched off for a while by zeroing its column of B, and for good by removing its row of A and its
column of B, which saves memory and time. A new rank has a row of A drawn as the run's init says and
a zero column of B, so it changes no output until it is trained. A layer of rank 0 computes what the
frozen layer does; it has nothing to train, and may grow again.

AdamW's moments of the ranks that stay keep every bit; those of new ranks start at zero. Its step
count is one number per tensor and goes on, so a new rank gets no more bias correction: its first
update is (1 - beta1) / sqrt(1 - beta2) times the learning rate (3.2 times for 0.9 and 0.999).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loraudit.adapters.lora import LoRALinear


@contextmanager
def gated(layers: Mapping[str, LoRALinear], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Switch ranks off inside a `with`, and restore every bit of them at its end.

    Args:
        layers: {name: layer}.
        gates: {name: (rank,) of 1 and 0 or booleans} of the layers to gate; 0 switches off.
    """
    kept = {name: layers[name].lora_B.detach().clone() for name in gates}
    try:
        for name, gate in gates.items():
            layers[name].lora_B.data.mul_(gate.to(kept[name]))  # (d_out, r) * (r,)
        yield
    finally:
        for name, lora_B in kept.items():
            layers[name].lora_B.data.copy_(lora_B)


def prune(
    layer: LoRALinear, keep: Bool[Tensor, " rank"], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Take away the ranks where `keep` is false, in place."""
    index = keep.nonzero()[:, 0].to(layer.lora_A.device)
    _rebuild(layer, index, layer.lora_A.detach()[:0], optimizer)


def grow(
    layer: LoRALinear, count: int, seed: int, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Add ranks in place: rows of A drawn from `seed` alone, columns of B zero.

    Raises:
        ValueError: the layer would have more ranks than min(d_in, d_out), the most that can help.
    """
    rank, width = layer.rank + count, layer.width
    if rank > width:
        raise ValueError(f"rank {rank} is above the layer's width {width}")
    rows = torch.empty(count, layer.lora_A.shape[1], dtype=layer.lora_A.dtype)
    layer.draw(rows, torch.Generator().manual_seed(seed))
    index = torch.arange(layer.rank, device=layer.lora_A.device)
    _rebuild(layer, index, rows.to(layer.lora_A.device), optimizer)


def resize(layer: LoRALinear, rank: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Give a layer another rank and zero all values; saved ones are copied in afterwards."""
    rows = layer.lora_A.detach().new_zeros(rank, layer.lora_A.shape[1])
    _rebuild(layer, torch.arange(0, device=rows.device), rows, optimizer)


@torch.no_grad()
def _rebuild(
    layer: LoRALinear,
    kept: Int[Tensor, " kept"],
    rows: Float[Tensor, "new d_in"],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Keep the ranks `kept` and put `rows` after them.

    The parameters are new objects, because DDP and autograd remember the shape of an old one.

    Raises:
        ValueError: the update is merged.
    """
    if layer.merged:
        raise ValueError("unmerge before changing the rank")
    columns = layer.lora_B.new_zeros(layer.lora_B.shape[0], len(rows))
    layer.rank = len(kept) + len(rows)
    layer.alpha = layer.scaling * layer.rank
    for name, dim, new in (("lora_A", 0, rows), ("lora_B", 1, columns)):
        old = getattr(layer, name)
        data = _joined(old, dim, kept, new)
        setattr(layer, name, nn.Parameter(data, requires_grad=layer.rank > 0))
        if optimizer is not None:
            zeros = partial(_joined, dim=dim, kept=kept, new=torch.zeros_like(new))
            _hand_over(optimizer, old, getattr(layer, name), zeros)


def _joined(tensor: Tensor, dim: int, kept: Tensor, new: Tensor) -> Tensor:
    """Return the slices `kept` of a tensor along `dim`, followed by `new`."""
    return torch.cat((tensor.index_select(dim, kept), new), dim)


def _hand_over(
    optimizer: torch.optim.Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    moved: Callable[[Tensor], Tensor],
) -> None:
    """Replace a parameter in an optimizer and keep its state; `moved` reshapes moments."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        moments = {
            k: v for k, v in state.items() if v.shape == old.shape
        }  # the step count has no shape
        optimizer.state[new] = state | {key: moved(value) for key, value in moments.items()}
