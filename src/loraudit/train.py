"""The training loop: one RunSpec in, one folder with a record out.

Read from `train` downwards: it is in the order in which things happen. Accelerate carries the
processes, devices and precision. Which rows make up an optimizer step is decided here, so that the
global batch is what the spec says, whatever the number of processes.
"""

import importlib
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from loraudit import metrics
from loraudit.accounting import (
    base_bytes,
    count_parameters,
    folder_bytes,
    model_parameters,
    peak_device_memory_mib,
    peak_memory_mib,
)
from loraudit.errors import UserError
from loraudit.files import folder_atomic, folder_fingerprint, read_json, write_atomic, write_json
from loraudit.first_token import shorten
from loraudit.models import load_base
from loraudit.progress import progress
from loraudit.provenance import environment
from loraudit.record import RunRecord, Train, prediction_table, read_record, write_record
from loraudit.schedule import learning_rate, make_schedule
from loraudit.spec import METHOD_MODULES, RunSpec, derive_seed, digest
from loraudit.tasks import (
    Examples,
    collate,
    data_fingerprint,
    global_batches,
    load_examples,
    pad_id,
    scored_splits,
    sorted_batches,
)

EVALUATED = 4
"""Micro batches' rows in one evaluation batch: without a backward pass they fit where one did."""


@dataclass
class State:
    """What the loop carries from step to step."""

    spec: RunSpec
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    pad: int
    step: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"real": 0, "padded": 0})
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})


@dataclass
class Best:
    """The best epoch so far on the validation split (ties: the earlier), and its weights."""

    epoch: int = 0
    value: float = -math.inf
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, epoch: int, value: float, model: torch.nn.Module) -> None:
        """Keep this epoch if it is better."""
        if value > self.value:
            self.epoch, self.value = epoch, value
            self.weights = {
                name: parameter.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }

    @torch.no_grad()
    def restore(self, model: torch.nn.Module) -> None:
        """Put the best epoch's weights back into the model."""
        parameters = dict(model.named_parameters())
        for name, value in self.weights.items():
            parameters[name].copy_(value)


def train(
    spec: RunSpec,
    tokens: Path,
    model_folder: Path,
    out: Path,
    start: Path | None = None,
    code: str | None = None,
) -> None:
    """Train one run and write its folder: spec, record, history, predictions, adapter.

    Args:
        spec: the run.
        tokens: folder of the task's tokens (tokenise.py).
        model_folder: folder of the fetched model.
        out: the run's folder; record.json is written last, so a folder with one is complete.
        start: folder of the run whose adapter this one starts from, if its spec says so.
        code: digest of the code that trains, for the record.

    Raises:
        UserError: settings that do not fit the data, model, launcher or start; a non-finite loss.
    """
    started = time.monotonic()
    accelerator = make_accelerator(spec)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high" if spec.precision == "tf32" else "highest")
    base = load_base(spec, model_folder)
    scored = scored_splits(spec, tokens)
    examples = {split: load_examples(spec, tokens, split) for split in ("train", *scored)}
    base_parameters = model_parameters(base)
    method = importlib.import_module(METHOD_MODULES[spec.method])
    model = method.apply(shorten(base, spec), spec)
    started_from = check_start(spec, start)
    copied = method.start_from(model, spec, start / "adapter") if spec.warm_start else []
    parameters = count_parameters(model, spec.model.head)
    held = base_bytes(model, spec.model.head)
    state = prepare(spec, accelerator, model, len(examples["train"]), pad_id(tokens))

    history: list[dict] = []
    logits: dict[int, dict[str, np.ndarray]] = {}
    best = Best()
    for epoch in range(1, spec.epochs + 1):
        loss = train_epoch(state, examples["train"], epoch)
        logits[epoch] = {}
        scores: dict[str, float] = {}
        for split in scored:
            found = evaluate(state, examples[split], f"evaluate {split} {epoch}")
            values = metrics.compute(found, examples[split].labels, spec.task)
            suffix = "" if split == "validation" else f"_{split}"
            scores |= {f"{name}{suffix}": value for name, value in values.items()}
            logits[epoch][split] = found
        history.append({"epoch": epoch, "step": state.step, "train_loss": loss, **scores})
        best.offer(epoch, scores[spec.task.headline], model)
        logits = {e: value for e, value in logits.items() if e in (best.epoch, epoch)}
        report(accelerator, f"epoch {epoch}/{spec.epochs}", {"train_loss": loss, **scores})
    if not accelerator.is_main_process:
        return

    best.restore(model)
    predictions = prediction_table(
        logits, examples, predict=lambda values: metrics.predictions(values, spec.task)
    )
    with folder_atomic(out / "adapter") as folder:
        method.export(model, spec, folder)
    result = Train(
        steps=state.step,
        best_epoch=best.epoch,
        last_epoch=spec.epochs,
        best=_scores(history, best.epoch),
        last=_scores(history, spec.epochs),
        parameters={**parameters, "model": base_parameters},
        bytes={
            "adapter": folder_bytes(out / "adapter"),
            "checkpoint": (model_folder / "model.safetensors").stat().st_size,
            **held,
        },
        rows={split: len(split_examples) for split, split_examples in examples.items()},
        tokens=state.tokens,
        seconds={**state.seconds, "total": time.monotonic() - started},
        peak_memory_mib=peak_memory_mib(),
        peak_device_memory_mib=peak_device_memory_mib(),
        copied=copied,
    )
    provenance = {
        **environment(),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "data": data_fingerprint(tokens),
        "weights": read_json(model_folder / "manifest.json")["files"]["model.safetensors"],
        "started_from": started_from,
    }
    import pandas as pd

    write_json(out / "spec.json", spec.model_dump(mode="json"))
    write_atomic(out / "history.csv", lambda path: pd.DataFrame(history).to_csv(path, index=False))
    write_atomic(
        out / "predictions.parquet", lambda path: predictions.to_parquet(path, index=False)
    )
    digests = {"spec_sha256": digest(spec), "code_sha256": code}
    write_record(out, RunRecord(spec=spec, train=result, environment=provenance, **digests))


def check_start(spec: RunSpec, start: Path | None) -> dict[str, str] | None:
    """Check that `start` is the run that the spec starts from; returns its adapter's hashes.

    Raises:
        UserError: no folder, a folder for a run that starts cold, or the folder of another run.
    """
    if spec.warm_start is None:
        if start is not None:
            raise UserError(f"start: {start} given, but the spec has no warm_start")
        return None
    if start is None:
        raise UserError(f"start: the spec starts from run {spec.warm_start.run!r}; give its folder")
    found = read_record(start / "record.json").spec_sha256
    if found != spec.warm_start.spec_sha256:
        raise UserError(f"start: {start} is not run {spec.warm_start.run!r} (its spec differs)")
    return folder_fingerprint(start / "adapter")


def make_accelerator(spec: RunSpec) -> Accelerator:
    """Start Accelerate in the spec's precision.

    Raises:
        UserError: the launcher asks for another precision, or the batch does not divide.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", spec.precision):
        raise UserError(
            f"precision: the run says {spec.precision!r}, the launcher {asked!r}; "
            "set precision in the study or choose another file of profiles/accelerate"
        )
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # gloo, when several processes find no GPU
        mixed_precision="bf16" if spec.precision == "bf16" else "no",
    )
    part = spec.micro_batch * accelerator.num_processes
    if spec.global_batch % part:
        raise UserError(
            f"global_batch {spec.global_batch} is not divisible by micro_batch {spec.micro_batch} "
            f"x {accelerator.num_processes} processes (legal: a multiple of {part})"
        )
    return accelerator


def prepare(
    spec: RunSpec, accelerator: Accelerator, model: torch.nn.Module, rows: int, pad: int
) -> State:
    """Make optimizer and schedule, for `rows` training rows padded with token `pad`.

    Weight decay spares biases and LayerNorm, as HF Trainer does.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name
            decay = 0.0 if spared else spec.weight_decay
            groups.setdefault((learning_rate(spec, name), decay), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": lr, "weight_decay": d} for (lr, d), group in groups.items()],
        lr=spec.learning_rate,
        betas=(spec.adam_beta1, spec.adam_beta2),
        eps=spec.adam_epsilon,
        fused=True,
    )
    steps = spec.epochs * math.ceil(rows / spec.global_batch)
    scheduler = make_schedule(spec, optimizer, steps)
    if spec.compute == "compiled":
        model.compile(dynamic=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(derive_seed(spec.seed, "dropout", accelerator.process_index))
    return State(spec, accelerator, model, optimizer, scheduler, pad)


def train_epoch(state: State, examples: Examples, epoch: int) -> float:
    """Train one epoch; returns the mean loss over its rows.

    Raises:
        UserError: a loss that is not finite, with the step.
    """
    spec, started = state.spec, time.monotonic()
    generator = np.random.default_rng(derive_seed(spec.seed, "order", epoch))
    batches = global_batches(examples.lengths, spec.global_batch, spec.batching, generator)
    quiet = not state.accelerator.is_main_process
    total = 0.0
    state.model.train()
    for batch in progress(batches, len(batches), f"train epoch {epoch}/{spec.epochs}", quiet):
        loss = optimizer_step(state, examples, batch)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {state.step} (epoch {epoch}); no result was written. "
                f"Try a learning_rate below {spec.learning_rate:g}"
            )
        total += loss
    state.seconds["train"] += time.monotonic() - started
    return total / len(examples)


def optimizer_step(state: State, examples: Examples, batch: np.ndarray) -> float:
    """Do one step on a global batch; returns the loss summed over its rows.

    Each process takes every P-th row and cuts its share into micro batches. Summed losses divided
    by the global batch's rows make the gradient that of the mean loss, however it was cut; DDP
    averages over processes, so the sum is multiplied by P first. A process with no row (a short
    last batch) runs one row at weight 0, because all must take part in the reduction.
    """
    accelerator, spec = state.accelerator, state.spec
    share = batch[accelerator.process_index :: accelerator.num_processes]
    weight = accelerator.num_processes / len(batch) if len(share) else 0.0
    share = share if len(share) else batch[:1]
    cuts = [share[i : i + spec.micro_batch] for i in range(0, len(share), spec.micro_batch)]
    total = torch.zeros((), device=accelerator.device)
    for number, index in enumerate(cuts, 1):
        last = number == len(cuts)
        with nullcontext() if last else accelerator.no_sync(state.model):
            loss = summed_loss(state, examples, index)
            accelerator.backward(loss * weight)
        total += loss.detach() * (weight > 0)
    if spec.max_grad_norm is not None:
        accelerator.clip_grad_norm_(state.model.parameters(), spec.max_grad_norm)
    state.optimizer.step()
    state.scheduler.step()
    state.optimizer.zero_grad()
    state.step += 1
    return accelerator.reduce(total, "sum").item()


def summed_loss(state: State, examples: Examples, index: np.ndarray) -> torch.Tensor:
    """Return cross-entropy (or squared error, for regression) summed over the rows."""
    logits = forward(state, examples, index).float()
    labels = torch.as_tensor(examples.labels[index], device=logits.device)
    if state.spec.task.regression:
        return ((logits[:, 0] - labels.to(logits.dtype)) ** 2).sum()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def forward(state: State, examples: Examples, index: np.ndarray) -> torch.Tensor:
    """Return the logits (len(index), classes), counting tokens on the way."""
    batch = collate(examples, index, state.spec, state.pad)
    if state.model.training:
        state.tokens["real"] += int(examples.lengths[index].sum())
        state.tokens["padded"] += batch["input_ids"].numel()
    device = state.accelerator.device
    if device.type == "cuda":  # pinned memory is copied while the GPU computes
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return state.model(**batch).logits


@torch.inference_mode()
def evaluate(state: State, examples: Examples, label: str) -> np.ndarray:
    """Return the logits (n, classes) of all rows, in order; batches are dealt to the processes.

    Raises:
        UserError: logits that are not finite.
    """
    started, accelerator = time.monotonic(), state.accelerator
    state.model.eval()
    batches = sorted_batches(examples.lengths, EVALUATED * state.spec.micro_batch)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    found = []
    for index in progress(mine, len(mine), label, not accelerator.is_main_process):
        found.append((index, forward(state, examples, index).float().cpu().numpy()))
    out = np.full((len(examples), max(1, len(state.spec.task.classes))), np.nan, dtype=np.float32)
    for index, logits in gather_object(found):
        out[index] = logits
    if not np.isfinite(out).all():
        raise UserError(f"the model's outputs are not finite after step {state.step}; no result")
    state.seconds["evaluate"] += time.monotonic() - started
    return out


def report(accelerator: Accelerator, what: str, values: dict[str, float]) -> None:
    """Print one line on the main process."""
    if accelerator.is_main_process:
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{what}: {text}", file=sys.stderr, flush=True)


def _scores(history: list[dict], epoch: int) -> dict[str, float]:
    row = history[epoch - 1]
    return {k: v for k, v in row.items() if k not in ("epoch", "step", "train_loss")}
