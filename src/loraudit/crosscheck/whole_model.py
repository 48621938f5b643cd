"""The cross-check: our LoRA and PEFT's side by side on the same start and the same batches.

Both twins train STEPS optimizer steps of ACCUMULATED batches of ROWS real rows, with dropout and
the run's own learning rate, AdamW settings (weight decay on all tensors) and schedule. After each
step every trainable tensor is compared. After training, when B is no longer zero, these are too:

    - outputs and gradients
    - the merged models
    - adapters that one code saves and the other loads
    - two adapters that are switched on one base
    - the run's fast path with the plain layers on the whole model

All of this is done in float64 and in float32. If the run computes in bf16, the trained twins do so
at the end, and outputs, gradients and the merged models are compared once more. Then each shape of
the adapted layers is compared alone, with loralib too (single_layer.py). On a quantised base (in
float64 its same integers are unpacked to float64) nothing can be merged, so the check is that
merging is refused; the layers compared alone are unquantised ones of the same shapes.

The models that are compared share the frozen tensors of an unquantised base, so that memory holds
these once in the checked dtype and not once for each model. A check makes sure that nothing has
changed them before the adapters are merged, which comes last.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraudit.adapters import inject, peft_folder, peft_twin
from loraudit.adapters.base_layers import hold_frozen, in_head, linear_sizes, targets_of
from loraudit.adapters.base_model import load_base
from loraudit.adapters.fast_base import fast_base
from loraudit.adapters.parts import fold, layouts_of
from loraudit.base.errors import UserError
from loraudit.crosscheck import single_layer
from loraudit.data.batches import (
    NO_LOSS,
    collate,
    global_batches,
    labels_tensor,
    load_examples,
    pad_id,
)
from loraudit.studies.entries import Rows
from loraudit.studies.spec import RunSpec, derive_seed
from loraudit.training.losses import token_losses
from loraudit.training.schedule import learning_rate, make_schedule

STEPS, ACCUMULATED, ROWS = 8, 2, 2
ROWS_AT_ONCE = 4096
LAYER_DROPOUT = 0.1
"""The least LoRA dropout of the layer checks, so that dropout is checked in runs without it too."""

TOLERANCE = {
    "float64": {"exact": 0.0, "close": 1e-10, "trajectory": 1e-8, "read": 1e-6},
    "float32": {"exact": 0.0, "close": 1e-4, "trajectory": 1e-3, "read": 1e-4},
}
"""The largest absolute difference allowed. "close" is some 1,000 rounding errors (float64 2e-16,
float32 1e-7) of outputs of order 1 that are sums of a few hundred terms. "trajectory" allows 100
times as much in float64 and 10 times in float32, since AdamW divides by the root of a squared
gradient and so magnifies the rounding of small ones. "exact" is for names and initial values, which
no arithmetic changes. "read" is for adapters that PEFT loads on a quantised base: it holds them in
float32 (a rounding of 6e-8), whatever the base's dtype."""

BF16_TOLERANCE = 0.1
"""The largest difference allowed between twins in bfloat16, some 25 of its roundings (4e-3).

Outputs are taken relative to the larger of 1 and the largest output. Gradients and merged weights,
most of which are far below 1, are taken relative to the largest of them."""

Tensors = dict[str, torch.Tensor]
Copy = Callable[[nn.Module], nn.Module]


def crosscheck(spec: RunSpec, tokens: Path, model_folder: Path) -> list[dict]:
    """Compare the twins; return rows of check, against, dtype, difference, tolerance, ok.

    Raises:
        UserError: settings do not fit the data or the model.
    """
    examples = load_examples(spec, tokens, "train")
    generator = np.random.default_rng(derive_seed(spec.seed, "order", 1))
    indices = global_batches(examples.lengths, ROWS, "shuffle", generator)
    indices = [indices[step % len(indices)] for step in range(STEPS * ACCUMULATED + 1)]
    pad = pad_id(tokens)
    batches = [collate(examples, index, spec, pad) for index in indices]
    for batch, index in zip(batches, indices, strict=True):
        batch["labels"] = labels_tensor(examples, index, spec)
    base = load_base(spec, model_folder, pad)
    rows = [row for name in TOLERANCE for row in compare(base, spec, batches, name)]
    return rows + [
        row
        for case in layer_cases(base, spec)
        for dtype in single_layer.TOLERANCE
        for row in single_layer.compare_layer(case, dtype)
    ]


def layer_cases(model: nn.Module, spec: RunSpec) -> list[single_layer.Case]:
    """Return one case for each kind and shape among the layers that the run adapts."""
    cases: dict[tuple, single_layer.Case] = {}
    adapter = spec.lora
    parts: dict[str, list[Rows]] = {}
    for target in targets_of(model, spec.model, adapter.targets):
        parts.setdefault(target.layer, []).extend([target.rows] if target.rows else [])
    for name, rows in parts.items():
        layer = model.get_submodule(name)
        case = single_layer.Case(
            "conv1d" if isinstance(layer, Conv1D) else "linear",
            *(linear_sizes(model, name) or (0, 0)),
            rank=adapter.rank,
            alpha=adapter.alpha,
            dropout=max(adapter.lora_dropout, LAYER_DROPOUT),
            bias=layer.bias is not None,
            parts=tuple(rows),
        )
        cases.setdefault((case.kind, case.d_in, case.d_out, case.parts), case)
    return list(cases.values())


def compare(base: nn.Module, spec: RunSpec, batches: list[Tensors], dtype: str) -> list[dict]:
    """Run all checks in one dtype ("float64" or "float32"), without changing `base`.

    The twins train on all batches but the last, on which they are compared after training.
    """
    original, whole = base, copy.deepcopy(base).to(getattr(torch, dtype))
    copied = sharing(whole, spec)
    base = fast_base(copied(whole), spec)
    ours = inject.apply(copied(base), spec)
    twin = peft_twin.apply(copied(base), spec)
    *training, probe = batches
    rows: list[dict] = []

    def check(name: str, difference: float, kind: str) -> None:
        tolerance = TOLERANCE[dtype][kind]
        row = {"check": name, "against": "PEFT", "dtype": dtype, "difference": difference}
        rows.append({**row, "tolerance": tolerance, "ok": bool(difference <= tolerance)})

    check("same layers", _names_that_differ(ours, twin), "exact")
    if rows[-1]["ok"]:
        check("initial values", _largest(values(ours), values(twin)), "exact")
        check("optimizer steps", trajectory(ours, twin, spec, training), "trajectory")
        check("outputs", _logit_gap(ours, twin, probe), "close")
        check("gradients", _largest(gradients(ours, probe), gradients(twin, probe)), "close")
        check("plain outputs and gradients", _plain_gap(ours, copied(whole), spec, probe), "close")
        if spec.lora.init == "loftq":  # LoftQ has changed the base: take it from ours
            base = inject.remove(copied(ours))
        read = "read" if spec.base_bits else "close"
        check("ours read by PEFT", _ours_to_peft(ours, copied(base), spec, probe), read)
        check("PEFT's read by ours", _peft_to_ours(twin, copied(base), spec, probe), "close")
        check("several adapters", _several(ours, base, copied, spec, probe), read)
        if spec.base_bits:
            check("merging refused", _merged_anyway(ours), "exact")
        else:
            check("base unchanged", _moved(whole, original), "exact")
            for name, difference in _merging(ours, twin, original, probe).items():
                check(name, difference, "close")
        if spec.precision == "bf16" and dtype == "float32":
            rows += _bf16_rows(ours, twin, spec, probe)
    return rows


def sharing(whole: nn.Module, spec: RunSpec) -> Copy:
    """Return a function that copies models made of `whole`, but for its tensors outside the head.

    These stay the same objects in all copies. Packed layers hold more than parameters and may be
    packed anew, so models on a quantised base are copied entirely.
    """
    shared = {
        id(parameter): parameter
        for name, parameter in whole.named_parameters()
        if not spec.base_bits and not in_head(name, spec.model.head)
    }
    return lambda model: copy.deepcopy(model, dict(shared))


def _moved(whole: nn.Module, original: nn.Module) -> float:
    """Return the largest difference of a model's tensors from those that it was made of.

    They are compared some rows at a time, since an embedding may be as large as all else together.
    """
    made_of = dict(original.named_parameters())
    return max(
        _largest({"": rows}, {"": made.to(rows.dtype)})
        for name, parameter in whole.named_parameters()
        for rows, made in zip(
            parameter.detach().split(ROWS_AT_ONCE),
            made_of[name].detach().split(ROWS_AT_ONCE),
            strict=True,
        )
    )


def _merging(
    ours: nn.Module, twin: nn.Module, original: nn.Module, probe: Tensors
) -> dict[str, float]:
    """Merge both twins and unmerge ours; return {check: difference}.

    Ours gets copies of the weights that change; PEFT's twin changes the shared ones.
    """
    unmerged = logits(ours, probe)
    for layer in inject.wrapped(ours).values():
        weight = layer.base.weight.detach().clone()
        layer.base.weight = nn.Parameter(weight, requires_grad=False)
    inject.merge(ours)
    twin.merge_adapter()
    gaps = {
        "merged equals unmerged": (logits(ours, probe) - unmerged).abs().max().item(),
        "merged outputs": _logit_gap(ours, twin, probe),
        "merged weights": _largest(base_weights(ours), base_weights(twin)),
    }
    inject.unmerge(ours)
    left = [
        _largest({"": weight}, {"": original.get_submodule(name).weight.detach().to(weight.dtype)})
        for name, weight in base_weights(ours).items()
    ]
    return gaps | {
        "unmerged weights": max(left),
        "unmerged again": (logits(ours, probe) - unmerged).abs().max().item(),
    }


def _bf16_rows(ours: nn.Module, twin: nn.Module, spec: RunSpec, probe: Tensors) -> list[dict]:
    """Compare the trained twins in bf16, in which they are left merged; returns `compare`'s rows.

    Runs in bf16 have no quantised base.
    """
    twin.unmerge_adapter()
    left, right = (_in_bf16(model, spec, probe) for model in (ours, twin))
    gaps = {name: _relative(left[name], right[name], name.endswith("outputs")) for name in left}
    gaps["merged equals unmerged"] = _relative(left["merged outputs"], left["outputs"], True)
    facts = {"against": "PEFT", "dtype": "bfloat16"}
    return [
        {"check": name, **facts, "difference": gap, "tolerance": BF16_TOLERANCE,
         "ok": bool(gap <= BF16_TOLERANCE)}
        for name, gap in gaps.items()
    ]  # fmt: skip


def _in_bf16(model: nn.Module, spec: RunSpec, probe: Tensors) -> dict[str, Tensors]:
    """Return what a twin computes in bf16 as a run does, apart and merged: {check: tensors}.

    As in a run, the frozen linear layers are held in bfloat16 and Accelerate's autocast computes.
    There is no dropout: PEFT drops entries of x in float32, and a GPU then draws another mask.
    """
    hold_frozen(model, spec.model.head, torch.bfloat16)
    autocast = torch.autocast(next(model.parameters()).device.type, torch.bfloat16)
    model.forward = convert_outputs_to_fp32(autocast(model.forward))
    gradient = gradients(model, probe, dropout=False)
    found = {"outputs": {"": logits(model, probe)}, "gradients": gradient}
    if isinstance(model, peft.PeftModel):
        model.merge_adapter()
    else:
        inject.merge(model)
    return found | {
        "merged outputs": {"": logits(model, probe)},
        "merged weights": base_weights(model),
    }


def _relative(left: Tensors, right: Tensors, at_least_one: bool) -> float:
    """Return the largest difference divided by the largest value, or by 1 if that is to be more."""
    largest = max(tensor.abs().max().item() for tensor in right.values())
    return _largest(left, right) / (max(1.0, largest) if at_least_one else largest)


def _merged_anyway(ours: nn.Module) -> float:
    """Count the adapters that do not refuse to be merged into packed weights."""
    refused = 0
    for layer in inject.lora_layers(ours).values():
        try:
            layer.merge()
        except UserError:
            refused += 1
    return float(len(inject.lora_layers(ours)) - refused)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters under in-house names, for either twin."""
    return {
        peft_folder.own_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def values(model: nn.Module) -> Tensors:
    """Return the values of what either twin trains, parts of a fused layer as one adapter of it.

    So it is also compared that PEFT's B stays zero where it belongs to no part.
    """
    detached = {name: parameter.detach() for name, parameter in trainable(model).items()}
    return fold(detached, layouts_of(model))


def base_weights(model: nn.Module) -> Tensors:
    """Return the adapted layers' frozen weights under in-house names, for either twin."""
    ends = (".base.weight", ".base_layer.weight")
    return {
        peft_folder.own_name(name).removesuffix(end): parameter.detach()
        for name, parameter in model.named_parameters()
        for end in ends
        if name.endswith(end)
    }


def trajectory(ours: nn.Module, twin: nn.Module, spec: RunSpec, batches: list[Tensors]) -> float:
    """Train both side by side, with ACCUMULATED batches a step and the run's schedule.

    Returns:
        The largest difference of any trainable tensor after any step.
    """
    steps = [batches[i : i + ACCUMULATED] for i in range(0, len(batches), ACCUMULATED)]
    pair = [(model, *_optimizer(model, spec, len(steps))) for model in (ours, twin)]
    worst = 0.0
    for step, group in enumerate(steps):
        for model, optimizer, scheduler in pair:
            for number, batch in enumerate(group):
                loss_backward(model, batch, derive_seed(spec.seed, "dropout", step, number))
            if spec.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        worst = max(worst, _largest(values(ours), values(twin)))
    return worst


def _optimizer(model: nn.Module, spec: RunSpec, steps: int) -> tuple:
    """Make the run's AdamW, and its schedule over `steps` steps."""
    optimizer = torch.optim.AdamW(
        [{"params": [p], "lr": learning_rate(spec, n)} for n, p in trainable(model).items()],
        betas=(spec.adam_beta1, spec.adam_beta2),
        eps=spec.adam_epsilon,
        weight_decay=spec.weight_decay,
    )
    return optimizer, make_schedule(spec, optimizer, steps)


def loss_backward(model: nn.Module, batch: Tensors, seed: int, dropout: bool = True) -> None:
    """Add the gradients of a batch's mean loss; `seed` draws the dropout masks."""
    model.train(dropout)
    torch.manual_seed(seed)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    outputs = model(**inputs).logits
    if outputs.ndim == 3:  # text is predicted
        loss = token_losses(outputs, batch["labels"]).sum() / (batch["labels"] != NO_LOSS).sum()
    elif outputs.shape[1] == 1:
        loss = nn.functional.mse_loss(outputs[:, 0], batch["labels"].to(outputs.dtype))
    else:
        loss = nn.functional.cross_entropy(outputs, batch["labels"])
    loss.backward()


def gradients(model: nn.Module, batch: Tensors, dropout: bool = True) -> Tensors:
    """Return the gradients of one batch as `values` names them, and clear them in the model."""
    loss_backward(model, batch, seed=0, dropout=dropout)
    copies = {name: parameter.grad.clone() for name, parameter in trainable(model).items()}
    model.zero_grad()
    return fold(copies, layouts_of(model))


@torch.no_grad()
def logits(model: nn.Module, batch: Tensors) -> torch.Tensor:
    """Return the outputs of one batch in evaluation mode."""
    model.eval()
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits


def _largest(left: Tensors, right: Tensors) -> float:
    """Return the largest absolute difference; infinity if the names differ or a value is NaN."""
    if set(left) != set(right):
        return float("inf")
    gaps = [(left[name] - right[name]).abs().max().item() for name in left]
    return max((gap if gap == gap else float("inf") for gap in gaps), default=float("inf"))


def _logit_gap(ours: nn.Module, twin: nn.Module, batch: Tensors) -> float:
    return (logits(ours, batch) - logits(twin, batch)).abs().max().item()


def _names_that_differ(ours: nn.Module, twin: nn.Module) -> float:
    return float(len(set(values(ours)) ^ set(values(twin))))


def _plain_gap(ours: nn.Module, whole: nn.Module, spec: RunSpec, probe: Tensors) -> float:
    """Compare ours with the plain layers on the whole model, which its fast path must equal."""
    plain = inject.apply(whole, spec.model_copy(update={"compute": "plain"}))
    own = {name: parameter.detach() for name, parameter in trainable(ours).items()}
    plain.load_state_dict(own, strict=False)
    return _largest(  # without dropout, for which the fast path draws fewer numbers
        *({"": logits(m, probe), **gradients(m, probe, dropout=False)} for m in (ours, plain))
    )


def _ours_to_peft(ours: nn.Module, base: nn.Module, spec: RunSpec, probe: Tensors) -> float:
    """Save ours, load it with PEFT on a copy of the base, and compare outputs."""
    with tempfile.TemporaryDirectory() as folder:
        inject.export(ours, spec, Path(folder))
        loaded = peft.PeftModel.from_pretrained(base, folder)
    return _logit_gap(ours, loaded, probe)


def _peft_to_ours(twin: nn.Module, base: nn.Module, spec: RunSpec, probe: Tensors) -> float:
    """Save PEFT's, load it with our code on a copy of the base, and compare outputs."""
    with tempfile.TemporaryDirectory() as folder:
        peft_twin.export(twin, spec, Path(folder))
        loaded = inject.load(base, Path(folder))
    return _logit_gap(loaded, twin, probe)


def _several(
    ours: nn.Module, base: nn.Module, copied: Copy, spec: RunSpec, probe: Tensors
) -> float:
    """Switch between two adapters on one base, in our code and in PEFT; return the largest gap.

    The second adapter is the first one times -1.5.
    """
    with tempfile.TemporaryDirectory() as root:
        other = copied(ours)
        with torch.no_grad():
            for parameter in trainable(other).values():
                parameter.mul_(-1.5)
        folders = {name: Path(root, name) for name in ("first", "second")}
        for model, folder in zip((ours, other), folders.values(), strict=True):
            inject.export(model, spec, folder)
        mine = inject.load(copied(base), folders["first"])
        twin = peft.PeftModel.from_pretrained(copied(base), folders["first"], adapter_name="first")
        twin.load_adapter(folders["second"], adapter_name="second")
        gaps = []
        for name in ("second", "first"):
            inject.switch(mine, folders[name])
            twin.set_adapter(name)
            gaps.append(_logit_gap(mine, twin, probe))
    return max(gaps)


def require_agreement(rows: list[dict], what: str) -> None:
    """Raise a UserError that names every check out of tolerance, if there is one."""
    failed = [row for row in rows if not row["ok"]]
    if failed:
        text = "; ".join(
            f"{row['check']} ({row['dtype']}, {row['against']}) differs by "
            f"{row['difference']:.3g}, tolerance {row['tolerance']:.3g}"
            for row in failed
        )
        raise UserError(f"cross-check of {what} failed: {text}")
