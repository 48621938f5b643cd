"""The layer cross-check: one LoRA layer in our code, in PEFT and, if installed, in loralib.

All get the same frozen weight, A, B, inputs and dropout mask. They are compared on outputs,
gradients, STEPS steps of AdamW with a schedule and accumulated batches, merging (the weights too),
saving, and other values of A and B on the same base. whole_model.py compares several adapters on
one model with PEFT's. `Case` says which layer; `compare_layer` returns rows of check, against,
dtype, difference, tolerance, ok.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import peft
import torch
from torch import Tensor, nn
from transformers import get_scheduler
from transformers.pytorch_utils import Conv1D

from loraudit.adapters.lora import LoRALinear
from loraudit.adapters.lora_variants import LoRAConv1D, LoRAEmbedding

STEPS, ACCUMULATED, ROWS, LENGTH = 40, 2, 3, 4

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.02}
"""The largest difference allowed, relative to the larger of 1 and the largest value compared.

float64 and float32 allow thousands of roundings (2e-16, 6e-8), because 40 steps of AdamW add them
up. bfloat16 rounds at 4e-3, a few times in a product through rank r: it shows that autocast is
handled alike, while the other two show small faults."""


@dataclass(frozen=True)
class Case:
    """A layer: its kind, d_in (tokens for an embedding), d_out, rank, alpha, dropout, bias."""

    kind: Literal["linear", "conv1d", "embedding"]
    d_in: int
    d_out: int
    rank: int
    alpha: float
    dropout: float = 0.0
    bias: bool = True
    padding_idx: int | None = None
    seed: int = 0


@dataclass
class Layer:
    """One implementation's layer, with its A (r, d_in) and B (d_out, r) under our names."""

    module: nn.Module
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    merge: Callable[[], object]
    unmerge: Callable[[], object]
    weight: Callable[[], Tensor]

    def fill(self, lora_A: Tensor, lora_B: Tensor) -> "Layer":
        """Set the values of A and B, and return this object."""
        with torch.no_grad():
            self.lora_A.copy_(lora_A)
            self.lora_B.copy_(lora_B)
        return self


def base_layer(case: Case, dtype: torch.dtype) -> nn.Module:
    """Make the frozen layer with random weight, and random bias so that a lost bias shows."""
    torch.manual_seed(case.seed)
    if case.kind == "embedding":
        sizes = case.d_in, case.d_out, case.padding_idx
        return nn.Embedding(*sizes, dtype=dtype).requires_grad_(False)
    if case.kind == "conv1d":
        layer = Conv1D(case.d_out, case.d_in).to(dtype)
        nn.init.normal_(layer.weight)
    else:
        layer = nn.Linear(case.d_in, case.d_out, bias=case.bias, dtype=dtype)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer.requires_grad_(False)


def ours(case: Case, base: nn.Module) -> Layer:
    """Wrap a base layer in the in-house class."""
    if case.kind == "embedding":
        layer = LoRAEmbedding(base, case.rank, case.alpha)
    else:
        lora_class = LoRAConv1D if case.kind == "conv1d" else LoRALinear
        layer = lora_class(base, case.rank, case.alpha, case.dropout)
    return Layer(
        layer, layer.lora_A, layer.lora_B, layer.merge, layer.unmerge, lambda: layer.base.weight
    )


def pefts(case: Case, base: nn.Module) -> Layer:
    """Wrap a base layer by PEFT."""
    config = peft.LoraConfig(
        r=case.rank,
        lora_alpha=case.alpha,
        lora_dropout=case.dropout,
        target_modules=["layer"],
        fan_in_fan_out=case.kind == "conv1d",
    )
    holder = peft.inject_adapter_in_model(config, nn.ModuleDict({"layer": base}))
    layer = holder["layer"]
    if case.kind == "embedding":
        pair = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    else:
        pair = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return Layer(layer, *pair, layer.merge, layer.unmerge, lambda: layer.base_layer.weight)


def loralibs(case: Case, base: nn.Module) -> Layer:
    """Copy a base layer into loralib's class, which merges on eval() and unmerges on train().

    Raises:
        ImportError: loralib is not installed.
    """
    import loralib

    if case.kind == "embedding":
        layer = loralib.Embedding(
            case.d_in,
            case.d_out,
            r=case.rank,
            lora_alpha=case.alpha,
            padding_idx=case.padding_idx,
        )
    else:
        layer = loralib.Linear(
            case.d_in,
            case.d_out,
            r=case.rank,
            lora_alpha=case.alpha,
            lora_dropout=case.dropout,
            fan_in_fan_out=case.kind == "conv1d",
            bias=getattr(base, "bias", None) is not None,
        )
    layer = layer.to(base.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(base.weight)
        if getattr(base, "bias", None) is not None:
            layer.bias.copy_(base.bias).requires_grad_(False)
    return Layer(layer, layer.lora_A, layer.lora_B, layer.eval, layer.train, lambda: layer.weight)


def references() -> dict[str, Callable[[Case, nn.Module], Layer]]:
    """Return the implementations to compare with; loralib may not be installed."""
    try:
        import loralib  # noqa: F401
    except ImportError:
        return {"PEFT": pefts}
    return {"PEFT": pefts, "loralib": loralibs}


def inputs(case: Case, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Draw batches of (ROWS, LENGTH) token ids for an embedding, else of (ROWS, LENGTH, d_in)."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    if case.kind == "embedding":
        size = (ROWS, LENGTH)
        return [torch.randint(case.d_in, size, generator=generator) for _ in range(count)]
    shape = (ROWS, LENGTH, case.d_in)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]


def draw_pair(case: Case, dtype: torch.dtype, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Draw an A and a B, neither of them zero."""
    generator = torch.Generator().manual_seed(case.seed + seed)
    shapes = (case.rank, case.d_in), (case.d_out, case.rank)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)


def difference(left: Tensor, right: Tensor) -> float:
    """Return the largest absolute difference, divided by the larger of 1 and the largest value.

    It is infinity if a value is NaN.
    """
    gap = (left.double() - right.double()).abs().max().item()
    return gap / max(1.0, right.double().abs().max().item()) if gap == gap else float("inf")


def compare_layer(case: Case, dtype: str) -> list[dict]:
    """Run every check of one layer in "float64", "float32" or "bfloat16" (autocast of float32)."""
    kind = torch.float32 if dtype == "bfloat16" else getattr(torch, dtype)
    checks = autocast_checks if dtype == "bfloat16" else layer_checks
    rows = []
    for name, build in references().items():
        for check, gap in checks(case, kind, build):
            row = {"check": f"layer: {check}", "against": name, "dtype": dtype}
            limit = TOLERANCE[dtype]
            rows.append({**row, "difference": gap, "tolerance": limit, "ok": gap <= limit})
    return rows


def twins(case: Case, dtype: torch.dtype, build: Callable) -> tuple[Layer, Layer]:
    """Make our layer and another's on copies of the same base, with the same A and B."""
    base, pair = base_layer(case, dtype), draw_pair(case, dtype)
    left, right = (make(case, copy.deepcopy(base)).fill(*pair) for make in (ours, build))
    return left, right


def autocast_checks(case: Case, dtype: torch.dtype, build: Callable) -> Iterator[tuple[str, float]]:
    """Yield the differences under bfloat16 autocast, as of a run in bf16.

    Outputs and gradients are compared on a weight in `dtype`, and merging on one that is held in
    bfloat16. There is no check of the weight after unmerging: in bfloat16 a sum keeps 8 binary
    digits, so what an update of large values has covered does not come back, in any code. (An
    embedding is not held in bfloat16.)
    """
    left, right = twins(case, dtype, build)
    (x,) = inputs(case, dtype, 1)
    with torch.autocast("cpu", torch.bfloat16):
        yield "outputs with dropout", difference(*(_train_output(s, x) for s in (left, right)))
        yield from _gradient_gaps(case, left, right, x)
    if case.kind == "embedding":
        return
    for side in (left, right):
        for parameter in side.module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    before = _autocast_output(left, x)
    for side in (left, right):
        side.module.train()  # loralib merges on eval()
        side.merge()
    merged = [_autocast_output(side, x) for side in (left, right)]
    yield "merged equals unmerged", difference(merged[0], before)
    yield "merged outputs", difference(*merged)
    yield "merged weights", difference(left.weight(), right.weight())


def _autocast_output(layer: Layer, x: Tensor) -> Tensor:
    """Return a layer's output without dropout under bfloat16 autocast; merged stays merged."""
    dropouts = [module for module in layer.module.modules() if isinstance(module, nn.Dropout)]
    for dropout in dropouts:
        dropout.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return layer.module(x)


def layer_checks(case: Case, dtype: torch.dtype, build: Callable) -> Iterator[tuple[str, float]]:
    """Yield the name and the difference of each check in one float type."""
    x, *batches = inputs(case, dtype, 1 + STEPS * ACCUMULATED)
    yield "start is the base", _start_gap(case, dtype, x)
    left, right = twins(case, dtype, build)
    yield "outputs with dropout", difference(*(_train_output(side, x) for side in (left, right)))
    yield from _gradient_gaps(case, left, right, x)
    left, right = twins(case, dtype, build)
    yield f"{STEPS} steps of AdamW", _trajectory_gap(left, right, batches)
    unmerged = [_eval_output(side, x) for side in (left, right)]
    yield "outputs after training", difference(*unmerged)
    yield from _merge_gaps(left, right, x, unmerged[0])
    yield "eval, train, eval", difference(*(_switched(side, x) for side in (left, right)))
    yield from _exchange_gaps(case, dtype, build, x)


def _train_output(layer: Layer, x: Tensor) -> Tensor:
    layer.module.train()
    torch.manual_seed(7)  # the same dropout mask for all
    return layer.module(x)


def _eval_output(layer: Layer, x: Tensor, switch: bool = True) -> Tensor:
    if switch:
        layer.module.eval()
    with torch.no_grad():
        return layer.module(x)


def _merge_gaps(left: Layer, right: Layer, x: Tensor, out: Tensor) -> Iterator[tuple[str, float]]:
    """Merge and unmerge both; ours does each twice, and the second must change nothing."""
    for side in (left, right):
        side.module.train()  # loralib merges on eval()
    start = left.weight().clone()
    left.merge()
    left.merge()
    right.merge()
    merged = [_eval_output(side, x, switch=False) for side in (left, right)]
    yield "merged equals unmerged", difference(merged[0], out)
    yield "merged outputs", difference(*merged)
    yield "merged weights", difference(left.weight(), right.weight())
    left.unmerge()
    left.unmerge()
    right.unmerge()
    yield "unmerged weights", difference(left.weight(), start)
    yield "unmerged again", difference(_eval_output(left, x), out)


def _switched(layer: Layer, x: Tensor) -> Tensor:
    for mode in (False, True, False):
        layer.module.train(mode)
    return _eval_output(layer, x)


def _start_gap(case: Case, dtype: torch.dtype, x: Tensor) -> float:
    """Return how far our new layer is from its base; infinity if A and B do not start right.

    At the start A is random and B zero, in an embedding the reverse; with both zero, no gradient
    would ever reach them.
    """
    base = base_layer(case, dtype)
    expected = base(x)
    layer = ours(case, base)
    zero, random = layer.lora_B, layer.lora_A
    if case.kind == "embedding":
        zero, random = random, zero
    if zero.any() or not random.all():
        return float("inf")
    return difference(_eval_output(layer, x), expected)


def _gradient_gaps(case: Case, left: Layer, right: Layer, x: Tensor) -> Iterator[tuple[str, float]]:
    """Yield the gaps of the gradients of x, A and B, and whether only A and B have any."""
    gradients = []
    for layer in (left, right):
        own = x.clone()
        if case.kind != "embedding":
            own.requires_grad_()
        _train_output(layer, own).pow(2).sum().backward()
        frozen = [p.grad for p in layer.module.parameters() if not p.requires_grad]
        trained = sum(p.requires_grad for p in layer.module.parameters())
        clean = trained == 2 and all(grad is None for grad in frozen)
        gradients.append((own.grad, layer.lora_A.grad, layer.lora_B.grad, clean))
    (x_1, a_1, b_1, clean), (x_2, a_2, b_2, _) = gradients
    if case.kind != "embedding":
        yield "gradient of x", difference(x_1, x_2)
    yield "gradient of A", difference(a_1, a_2)
    yield "gradient of B", difference(b_1, b_2)
    yield "only A and B train", 0.0 if clean else float("inf")


def _trajectory_gap(left: Layer, right: Layer, batches: list[Tensor]) -> float:
    """Train both with AdamW, linear schedule and warm-up; return the largest gap of any step."""
    trained = []
    for layer in (left, right):
        pair = [layer.lora_A, layer.lora_B]
        for parameter in pair:
            parameter.grad = None
        optimizer = torch.optim.AdamW(pair, lr=1e-2, weight_decay=0.01)
        trained.append((layer, optimizer, get_scheduler("linear", optimizer, STEPS // 10, STEPS)))
    worst = 0.0
    for step in range(STEPS):
        for layer, optimizer, scheduler in trained:
            for x in batches[step * ACCUMULATED : (step + 1) * ACCUMULATED]:
                (_train_output(layer, x).pow(2).mean() / ACCUMULATED).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        worst = max(
            worst, difference(left.lora_A, right.lora_A), difference(left.lora_B, right.lora_B)
        )
    return worst


def _exchange_gaps(
    case: Case, dtype: torch.dtype, build: Callable, x: Tensor
) -> Iterator[tuple[str, float]]:
    """Save and load A and B, carry them to the other layer and back, and change their values."""
    base = base_layer(case, dtype)
    saved = ours(case, copy.deepcopy(base)).fill(*draw_pair(case, dtype, seed=3))
    loaded = ours(case, copy.deepcopy(base))
    kept = {k: v for k, v in saved.module.state_dict().items() if k in ("lora_A", "lora_B")}
    loaded.module.load_state_dict(kept, strict=False)
    yield "saved and loaded", difference(_eval_output(loaded, x), _eval_output(saved, x))
    for name, (source, target) in {
        "ours read by the other": (ours, build),
        "the other's read by ours": (build, ours),
    }.items():
        first = source(case, copy.deepcopy(base)).fill(*draw_pair(case, dtype, seed=3))
        second = target(case, copy.deepcopy(base)).fill(first.lora_A, first.lora_B)
        yield name, difference(_eval_output(first, x), _eval_output(second, x))
    pairs = draw_pair(case, dtype, seed=4), draw_pair(case, dtype, seed=5)
    left, right = (make(case, copy.deepcopy(base)) for make in (ours, build))
    before = [_eval_output(side.fill(*pairs[0]), x) for side in (left, right)]
    for side in (left, right):
        side.module.train()
    other = [_eval_output(side.fill(*pairs[1]), x) for side in (left, right)]
    for side in (left, right):
        side.module.train()
    again = _eval_output(left.fill(*pairs[0]), x)
    yield "other A and B", difference(*other)
    yield "the first ones again", difference(again, before[0])
