"""Adapters that make up for the quantisation error: how many ranks each gets and how it starts.

    E = W - Q(W)  (d_out, d_in),  singular values s_1 >= s_2 >= ...
    best update of rank r:  (alpha/rank) B A = the first r singular directions of E
    it lowers ||E||_F^2 by s_1^2 + ... + s_r^2

`allocate` shares ranks among matrices so that together they lower the error most at equal trainable
parameters ("ranks by quantisation error", a method of this project). `start` gives A and B: one
step is the equation above; T steps are LoftQ's alternating ones (Li et al. 2024, LoftQ, algorithm
1), with hqq's quantiser as their q.
"""

import math
from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraudit.adapters.base_layers import Target, is_packed, matrix_sizes, targets_of
from loraudit.base.errors import UserError
from loraudit.studies.spec import AdapterSpec, RunSpec


class Start(NamedTuple):
    """A layer's rank, and its first A (r, d_in) and B (d_out, r); None if they are drawn."""

    rank: int
    a: Tensor | None = None
    b: Tensor | None = None


def starts(model: nn.Module, spec: RunSpec) -> list[tuple[Target, Start]]:
    """Return the matrices that get adapters with their starts, without those that get no rank.

    The layers' `original` weights are deleted, since nothing else reads them. LoftQ quantises the
    layers again.

    Raises:
        UserError: this model lacks a target, or the rank is above a matrix's width.
    """
    adapter = spec.lora
    targets = targets_of(model, spec.model, adapter.targets)
    _check_widths(model, targets, adapter.rank)
    layers = {target.layer: model.get_submodule(target.layer) for target in targets}
    ranks = {target.name: adapter.rank for target in targets}
    if adapter.ranks == "error":  # the spec sees to it that each target is a whole layer
        ranks = error_ranks(layers, adapter)
    chosen = {name: Start(rank) for name, rank in ranks.items() if rank}
    steps = {"error": 1, "loftq": adapter.loftq_steps}.get(adapter.init or "", 0)
    for name in chosen if steps else ():
        chosen[name] = start(layers[name], ranks[name], adapter.scaling, steps)
    for layer in layers.values():
        if is_packed(layer):
            layer.original = None
    return [(target, chosen[target.name]) for target in targets if target.name in chosen]


def _check_widths(model: nn.Module, targets: list[Target], rank: int) -> None:
    """Refuse a rank that no update of a matrix can have."""
    for target in targets:
        d_in, d_out = matrix_sizes(model, target)
        if rank > min(d_in, d_out):
            raise UserError(
                f"rank {rank} is above the width of {target.name!r}, which is {d_out} x {d_in} "
                f"(legal: 1 to {min(d_in, d_out)})"
            )


@torch.no_grad()
def error_ranks(layers: Mapping[str, nn.Module], adapter: AdapterSpec) -> dict[str, int]:
    """Return each layer's rank; in all they cost no more than `adapter.rank` in every layer."""
    energy = {name: torch.linalg.svdvals(error(layer)) ** 2 for name, layer in layers.items()}
    cost = {name: layer.in_features + layer.out_features for name, layer in layers.items()}
    budget = adapter.rank * sum(cost.values())
    on_cpu = {name: values.cpu().numpy() for name, values in energy.items()}
    return allocate(on_cpu, cost, budget, min(adapter.least_rank, adapter.rank))


def error(layer: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """Return W - Q(W) in float64, of a layer that still has its `original` weight W."""
    return layer.original.double() - layer.dequantize().double()


@torch.no_grad()
def start(layer: nn.Module, rank: int, scaling: float, steps: int) -> Start:
    """Return A and B with Q + scaling B A close to W; afterwards `layer` holds Q of the last step.

        Q_t = q(W - scaling B_(t-1) A_(t-1)),   scaling B_t A_t = best rank r of W - Q_t

    Q_1 = q(W) is what the layer holds already.
    """
    original = layer.original
    a, b = _low_rank(error(layer) / scaling, rank)
    for _ in range(steps - 1):
        layer.requantise((original.double() - scaling * b @ a).to(original.dtype))
        a, b = _low_rank(error(layer) / scaling, rank)
    return Start(rank, a.to(original.dtype), b.to(original.dtype))


def _low_rank(
    matrix: Float[Tensor, "d_out d_in"], rank: int
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """Return A and B whose product B A is the best approximation of that rank.

    A and B each take the root of the singular values. If there are fewer than `rank` singular
    directions, the other rows of A and columns of B are zero.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    count = min(rank, len(values))
    a = matrix.new_zeros(rank, matrix.shape[1])
    b = matrix.new_zeros(matrix.shape[0], rank)
    root = values[:count].sqrt()
    a[:count], b[:, :count] = root[:, None] * right[:count], left[:, :count] * root
    return a, b


def allocate(
    energy: Mapping[str, np.ndarray], cost: Mapping[str, int], budget: int, least: int = 0
) -> dict[str, int]:
    """Choose the ranks that remove the most energy with at most `budget` parameters, exactly.

    Args:
        energy: squared singular values of each matrix's error, in falling order.
        cost: parameters of one rank of each matrix, d_in + d_out.
        budget: parameters of all matrices together; unless all directions are taken, less than one
            rank's parameters are left over.
        least: ranks that each matrix gets, whatever its energy.

    Raises:
        ValueError: `least` alone costs more than the budget.
    """
    ranks = {name: min(least, len(values)) for name, values in energy.items()}
    left = budget - sum(cost[name] * rank for name, rank in ranks.items())
    if left < 0:
        raise ValueError(f"budget {budget} does not pay for {least} ranks a matrix")
    # Ranks of equal price differ in their gain only, so the best n of a price are its n of largest
    # gain. What is left to choose is the number of ranks at each price.
    offers = sorted(
        (cost[name], -value, name)
        for name, values in energy.items()
        for value in values[ranks[name] :]
    )
    pools = {price: list(pool) for price, pool in groupby(offers, key=lambda offer: offer[0])}
    gains = {price: [-value for _, value, _ in pool] for price, pool in pools.items()}
    for price, number in _counts(gains, left).items():
        for _, _, name in pools[price][:number]:
            ranks[name] += 1
    return ranks


def _counts(gains: Mapping[int, list[float]], budget: int) -> dict[int, int]:
    """Return how many ranks to take at each price so that the sum of their gains is the largest.

    This is a knapsack. Taking the best gain per parameter first is not exact: it may leave room
    that no rank fits in. Dynamic programming over the budget is. A unit is the prices' greatest
    common divisor, which keeps the tables short; best[b] is the largest gain of the prices seen so
    far within b units, and taken[price][b] is the number of that price in it.

    Args:
        gains: {price in parameters: gains at that price, in falling order}.
        budget: parameters to spend.
    """
    unit = math.gcd(*gains) or 1
    units = budget // unit
    best, taken = np.zeros(units + 1), {}
    for price, offered in gains.items():
        step, count = price // unit, np.zeros(units + 1, int)
        new = best.copy()
        for n, gain in enumerate(np.cumsum(offered)[: units // step], 1):
            better = np.flatnonzero(best[: units + 1 - n * step] + gain >= new[n * step :])
            new[better + n * step] = best[better] + gain
            count[better + n * step] = n
        best, taken[price] = new, count
    numbers = {}
    for price in reversed(list(gains)):
        numbers[price] = int(taken[price][units])
        units -= numbers[price] * (price // unit)
    return numbers
