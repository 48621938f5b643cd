"""Measure what LoRA costs on a fused layer of three parts, beside three separate layers.

One thread, MiniLM's and GPT-2's widths, 8 x 64 tokens, rank 8 on query, key and value. Every round
times each case once, in random order. Two numbers are given of each case: its time over that of
our three separate layers in the same round, and its share, which is its time less its frozen
layer's (or layers'), over the share of our three separate layers.

    python benchmarks/fused.py [--rounds 60] [--out DIR]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import loralib
import pandas as pd
import torch
from torch import nn

from common import RANK, interleaved, spread
from loraudit.adapters.fast_lora import FastLoRALinear
from loraudit.adapters.fused import FastFusedLoRA, FusedLoRA
from loraudit.adapters.lora import LoRALinear
from loraudit.base.files import write_atomic
from loraudit.report.formatting import markdown

ALPHA = 16
PARTS = ("q", "k", "v")
SETTINGS = ((384, 8, 64), (768, 8, 64))
"""Width of the layer, rows and tokens."""

BESIDE = "three layers, ours"
FROZEN = {"one": "one layer, frozen", "three": "three layers, frozen"}


class Side(nn.Module):
    """Layers that read one x, with their outputs side by side, as a model without fusing has them.

    Args:
        layers: their d_in is the same.
    """

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (*batch, sum of the layers' outputs)."""
        return torch.cat([layer(x) for layer in self.layers], -1)


def cases(d: int) -> dict[str, nn.Module]:
    """Return the cases by name; all hold the same numbers, as far as they have the same parts."""
    torch.manual_seed(0)
    whole = nn.Linear(d, len(PARTS) * d).requires_grad_(False)
    apart = [nn.Linear(d, d).requires_grad_(False) for _ in PARTS]
    for layer, weight, bias in zip(apart, whole.weight.split(d), whole.bias.split(d), strict=True):
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    made = {
        FROZEN["one"]: whole,
        FROZEN["three"]: Side(*apart),
        BESIDE: Side(*(FastLoRALinear(layer, RANK, ALPHA) for layer in apart)),
        "three layers, plain": Side(*(LoRALinear(layer, RANK, ALPHA) for layer in apart)),
        "one fused layer, ours": fused(FastFusedLoRA, whole),
        "one fused layer, plain": fused(FusedLoRA, whole),
        "one fused layer, loralib": with_loralib(whole),
    }
    for layer in made.values():
        alike(layer, d)
    return made


def fused(kind: type[FusedLoRA], whole: nn.Linear) -> FusedLoRA:
    """Put an adapter on each of the parts of a layer."""
    layer, d = kind(whole), whole.in_features
    for place, name in enumerate(PARTS):
        layer.add(name, ((place * d, (place + 1) * d),), RANK, ALPHA)
    return layer


def with_loralib(whole: nn.Linear) -> nn.Module:
    """Return loralib's MergedLinear of the same weight."""
    layer = loralib.MergedLinear(
        whole.in_features,
        whole.out_features,
        r=RANK,
        lora_alpha=ALPHA,
        enable_lora=[True] * len(PARTS),
    )
    layer.weight, layer.bias = whole.weight, whole.bias
    return layer


@torch.no_grad()
def alike(layer: nn.Module, d: int) -> None:
    """Give a case the A and B that all cases have, drawn by the part's place."""
    a = torch.randn(len(PARTS) * RANK, d, generator=torch.Generator().manual_seed(1)) / d**0.5
    b = torch.randn(len(PARTS) * d, RANK, generator=torch.Generator().manual_seed(2))
    if isinstance(layer, loralib.MergedLinear):
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
        return
    parts = [part for part in layer.modules() if isinstance(part, LoRALinear)]
    for part, own_a, own_b in zip(parts, a.split(RANK), b.split(d), strict=bool(parts)):
        part.lora_A.copy_(own_a)
        part.lora_B.copy_(own_b)


def calls(d: int, rows: int, tokens: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return forward-and-backward calls of each case; each returns its outputs."""
    made = cases(d)
    x = torch.randn(rows, tokens, d, requires_grad=True)
    dh = torch.randn(rows, tokens, len(PARTS) * d)

    def call(layer: nn.Module) -> Callable[[], torch.Tensor]:
        def forward_backward() -> torch.Tensor:
            x.grad = None
            layer.zero_grad()
            h = layer(x)
            h.backward(dh)
            return h.detach()

        return forward_backward

    return {name: call(layer) for name, layer in made.items()}


def measured(d: int, rows: int, tokens: int, rounds: int) -> pd.DataFrame:
    """Time all cases of one setting.

    Returns:
        A row per case: its median in milliseconds, and the median and quartiles of its time over
        that of three separate layers, and of its share over theirs.
    """
    seconds = interleaved(calls(d, rows, tokens), rounds)
    times = spread(seconds.div(seconds[BESIDE], axis=0))
    adapted = [name for name in seconds if name not in FROZEN.values()]
    frozen = {name: FROZEN["three" if name.startswith("three") else "one"] for name in adapted}
    added = pd.DataFrame({name: seconds[name] - seconds[frozen[name]] for name in adapted})
    shares = spread(added.div(added[BESIDE], axis=0)).rename(columns=lambda n: f"share_{n}")
    table = times.merge(shares, left_on="what", right_on="share_what", how="left")
    table.insert(1, "ms", 1000 * seconds.median().reindex(table.what).to_numpy())
    table.insert(0, "setting", f"{d} to {len(PARTS)} x {d}, {rows} x {tokens} tokens")
    return table.drop(columns="share_what")


def main() -> None:
    """Read the arguments, measure, print the table, and write it as CSV if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, help="a folder, which gets fused.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.concat(
        [measured(*setting, arguments.rounds) for setting in SETTINGS], ignore_index=True
    )
    print(markdown(table.round(3).astype(str).replace("nan", "")))
    if arguments.out:
        write_atomic(arguments.out / "fused.csv", lambda path: table.to_csv(path, index=False))


if __name__ == "__main__":
    main()
