"""The layer cross-check: one LoRA layer in our code, in PEFT and, if installed, in loralib.

All get the same frozen weight, A, B, inputs and dropout mask. They are compared on outputs,
gradients, STEPS steps of AdamW with a schedule and accumulated batches, merging (the weights too),
saving, and other values of A and B on the same base. whole_model.py compares several adapters on
one model with PEFT's. `Case` says which layer; `compare_layer` returns rows of check, against,
dtype, difference, tolerance, ok.

Adapters on parts of a fused layer (fused.py) are compared with PEFT's adapter of the whole layer,
held at zero elsewhere; with the equation of `ClosedForm`; and with loralib's MergedLinear if it has
such parts. There, A is that of the parts below each other, and so is B, as in MergedLinear.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import peft
import torch
from torch import Tensor, nn
from transformers import get_scheduler
from transformers.pytorch_utils import Conv1D

from loraudit.adapters.fused import FastFusedLoRA
from loraudit.adapters.lora import LoRALinear
from loraudit.adapters.lora_variants import LoRAConv1D, LoRAEmbedding
from loraudit.adapters.parts import Layout, SavedPart, fold, unfold
from loraudit.adapters.peft_twin import hold_parts
from loraudit.studies.entries import Rows, range_sizes

STEPS, ACCUMULATED, ROWS, LENGTH = 40, 2, 3, 4

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.02}
"""The largest difference allowed, relative to the larger of 1 and the largest value compared.

float64 and float32 allow thousands of roundings (2e-16, 6e-8), because 40 steps of AdamW add them
up. bfloat16 rounds at 4e-3, a few times in a product through rank r: it shows that autocast is
handled alike, while the other two show small faults."""


@dataclass(frozen=True)
class Case:
    """A layer: its kind, d_in (tokens for an embedding), d_out, rank, alpha, dropout, bias.

    `parts` are the outputs of the parts of a linear layer that are adapted; none means the whole.
    """

    kind: Literal["linear", "conv1d", "embedding"]
    d_in: int
    d_out: int
    rank: int
    alpha: float
    dropout: float = 0.0
    bias: bool = True
    padding_idx: int | None = None
    parts: tuple[Rows, ...] = ()
    seed: int = 0

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes of A and B, those of all parts below each other."""
        if not self.parts:
            return (self.rank, self.d_in), (self.d_out, self.rank)
        return (self.rank * len(self.parts), self.d_in), (sum(self.heights), self.rank)

    @property
    def heights(self) -> list[int]:
        """The number of outputs of each part."""
        return [sum(range_sizes(rows)) for rows in self.parts]

    @property
    def layout(self) -> Layout:
        """The parts as parts.py has them."""
        named = (SavedPart(f"part{i}", self.rank, rows) for i, rows in enumerate(self.parts))
        return Layout(self.d_out, tuple(named))


@dataclass
class Layer:
    """One implementation's layer, with its A and B (`Case.shapes`).

    They are one parameter each, or one for each part. `pick` cuts B's numbers out of a tensor of
    B's shape in PEFT, which has zeros for other parts.
    """

    module: nn.Module
    a: tuple[nn.Parameter, ...]
    b: tuple[nn.Parameter, ...]
    merge: Callable[[], object]
    unmerge: Callable[[], object]
    weight: Callable[[], Tensor]
    pick: Callable[[Tensor], Tensor] = lambda whole: whole
    put: Callable[[Tensor], Tensor] = lambda stacked: stacked

    @property
    def lora_A(self) -> Tensor:
        """The values of A."""
        return torch.cat([a.detach() for a in self.a])

    @property
    def lora_B(self) -> Tensor:
        """The values of B."""
        return self.pick(torch.cat([b.detach() for b in self.b]))

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of A and B."""
        a, b = (torch.cat([p.grad for p in pair]) for pair in (self.a, self.b))
        return a, self.pick(b)

    def fill(self, lora_A: Tensor, lora_B: Tensor) -> "Layer":
        """Set the values of A and B, and return this object."""
        with torch.no_grad():
            for own, values in ((self.a, lora_A), (self.b, self.put(lora_B))):
                for p, rows in zip(own, values.split([len(p) for p in own]), strict=True):
                    p.copy_(rows)
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
    if case.parts:
        return _our_parts(case, base)
    if case.kind == "embedding":
        layer = LoRAEmbedding(base, case.rank, case.alpha)
    else:
        lora_class = LoRAConv1D if case.kind == "conv1d" else LoRALinear
        layer = lora_class(base, case.rank, case.alpha, case.dropout)
    pair = (layer.lora_A,), (layer.lora_B,)
    return Layer(layer, *pair, layer.merge, layer.unmerge, lambda: layer.base.weight)


def _our_parts(case: Case, base: nn.Module) -> Layer:
    """Wrap a base layer in `FusedLoRA`, by its fast path (which runs without dropout)."""
    layer = FastFusedLoRA(base, case.dropout)
    parts = [layer.add(part.matrix, part.rows, case.rank, case.alpha) for part in case.layout.parts]
    pair = tuple(p.lora_A for p in parts), tuple(p.lora_B for p in parts)
    merge, unmerge = ([getattr(p, do) for p in parts] for do in ("merge", "unmerge"))
    return Layer(
        layer,
        *pair,
        lambda: [m() for m in merge],
        lambda: [u() for u in unmerge],
        lambda: layer.base.weight,
    )


def pefts(case: Case, base: nn.Module) -> Layer:
    """Wrap a base layer by PEFT."""
    count = len(case.parts) or 1
    config = peft.LoraConfig(
        r=case.rank * count,
        lora_alpha=case.alpha * count,
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
    a, b = pair
    whole = Layer(layer, (a,), (b,), layer.merge, layer.unmerge, lambda: layer.base_layer.weight)
    if case.parts:
        hold_parts(layer, case.layout)
        whole.pick, whole.put = _picker(case), _putter(case)
    return whole


def _picker(case: Case) -> Callable[[Tensor], Tensor]:
    """Return a function from PEFT's B (d_out, R) to the parts' B below each other."""

    def pick(whole: Tensor) -> Tensor:
        a = whole.new_zeros(whole.shape[1], 1)
        parts = unfold({"x.lora_A": a, "x.lora_B": whole}, {"x": case.layout})
        return torch.cat([parts[f"x.{part.matrix}.lora_B"] for part in case.layout.parts])

    return pick


def _putter(case: Case) -> Callable[[Tensor], Tensor]:
    """Return the inverse of `_picker`, with zeros elsewhere."""

    def put(stacked: Tensor) -> Tensor:
        state: dict[str, Tensor] = {}
        for part, b in zip(case.layout.parts, stacked.split(case.heights), strict=True):
            state |= {f"x.{part.matrix}.lora_A": b.new_zeros(part.rank, 1)}
            state |= {f"x.{part.matrix}.lora_B": b}
        return fold(state, {"x": case.layout})["x.lora_B"]

    return put


class ClosedForm(nn.Module):
    """h = W0 x + b0 + (alpha/r) U x, with the update U (d_out, d_in) written down row by row.

    The rows of each part are (B A) of the part, all others zero.
    """

    def __init__(self, case: Case, base: nn.Module):
        super().__init__()
        self.case, self.base, self.dropout = case, base, nn.Dropout(case.dropout)
        like = base.weight
        self.a, self.b = (nn.Parameter(like.new_zeros(shape)) for shape in case.shapes)
        self.merged = False

    def update(self) -> Tensor:
        """Return (alpha/r) U."""
        case, rows = self.case, dict[int, Tensor]()
        pairs = self.a.split(case.rank), self.b.split(case.heights)
        for outputs, a, b in zip(case.parts, *pairs, strict=True):
            numbers = [row for start, stop in outputs for row in range(start, stop)]
            rows |= dict(zip(numbers, b @ a, strict=True))
        zero = self.a.new_zeros(case.d_in)
        whole = torch.stack([rows.get(row, zero) for row in range(case.d_out)])
        return case.alpha / case.rank * whole

    def forward(self, x: Tensor) -> Tensor:
        """Compute h."""
        h = self.base(x)
        return h if self.merged else h + nn.functional.linear(self.dropout(x), self.update())

    @torch.no_grad()
    def merge(self, sign: int = 1) -> None:
        """Add the update to W0; with sign -1, subtract it."""
        update = sign * self.update().to(self.base.weight.dtype)
        self.base.weight += update.T if self.case.kind == "conv1d" else update
        self.merged = sign > 0


def closed_form(case: Case, base: nn.Module) -> Layer:
    """Wrap a base layer in `ClosedForm`."""
    layer = ClosedForm(case, base)
    return Layer(
        layer, (layer.a,), (layer.b,), layer.merge, lambda: layer.merge(-1), lambda: base.weight
    )


def loralibs(case: Case, base: nn.Module) -> Layer:
    """Copy a base layer into loralib's class, which merges on eval() and unmerges on train().

    Raises:
        ImportError: loralib is not installed.
    """
    import loralib

    common = {
        "r": case.rank,
        "lora_alpha": case.alpha,
        "lora_dropout": case.dropout,
        "fan_in_fan_out": case.kind == "conv1d",
        "bias": getattr(base, "bias", None) is not None,
    }
    if case.parts:
        enabled = merged_linear_parts(case) or []
        layer = loralib.MergedLinear(case.d_in, case.d_out, enable_lora=enabled, **common)
    elif case.kind == "embedding":
        layer = loralib.Embedding(
            case.d_in,
            case.d_out,
            r=case.rank,
            lora_alpha=case.alpha,
            padding_idx=case.padding_idx,
        )
    else:
        layer = loralib.Linear(case.d_in, case.d_out, **common)
    layer = layer.to(base.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(base.weight)
        if getattr(base, "bias", None) is not None:
            layer.bias.copy_(base.bias).requires_grad_(False)
    pair = (layer.lora_A,), (layer.lora_B,)
    return Layer(layer, *pair, layer.eval, layer.train, lambda: layer.weight)


def merged_linear_parts(case: Case) -> list[bool] | None:
    """Return which parts loralib's MergedLinear adapts (`enable_lora`); None if it can't.

    Its parts are of equal height, and each is one range of outputs.
    """
    size = case.heights[0]
    wanted = [((start, start + size),) for start in range(0, case.d_out, size)]
    if case.d_out % size or list(case.parts) != [rows for rows in wanted if rows in case.parts]:
        return None
    return [rows in case.parts for rows in wanted]


def references(case: Case) -> dict[str, Callable[[Case, nn.Module], Layer]]:
    """Return the implementations to compare a layer with; loralib may not be installed."""
    found: dict[str, Callable[[Case, nn.Module], Layer]] = {"PEFT": pefts}
    if case.parts:
        found["closed form"] = closed_form
    if importlib.util.find_spec("loralib") and (not case.parts or merged_linear_parts(case)):
        found["loralib"] = loralibs
    return found


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
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in case.shapes)


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
    for name, build in references(case).items():
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
        clean = trained == len(layer.a + layer.b) and all(grad is None for grad in frozen)
        gradients.append((own.grad, *layer.gradients(), clean))
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
        pair = [*layer.a, *layer.b]
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
    kept = {k: v for k, v in saved.module.state_dict().items() if "lora_" in k}
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
