"""The training loop: one RunSpec in, one folder with a record out.

Read from `train` downwards: it is in the order in which things happen. Accelerate carries the
processes, devices and precision. Which rows make up an optimizer step is decided here, so that the
global batch is what the spec says, whatever the number of processes.
"""

import importlib
import math
import os
import signal
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from loraudit import metrics
from loraudit.accounting import (
    adapter_ranks,
    base_bytes,
    count_parameters,
    folder_bytes,
    model_parameters,
    out_of_memory,
    peak_device_memory_mib,
    peak_memory_mib,
)
from loraudit.checkpoint import Checkpoints
from loraudit.errors import UserError
from loraudit.files import folder_atomic, folder_fingerprint, read_json, write_json
from loraudit.first_token import shorten
from loraudit.journal import Best, Journal, put_weights, trained_weights, write_journal
from loraudit.models import load_base
from loraudit.progress import progress
from loraudit.provenance import environment, machine
from loraudit.record import RunRecord, Train, read_record, run_files, write_record
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


class Controller(Protocol):
    """What a method does between steps: moves ranks, adds a penalty (alora.py, adalora.py).

    The method's module makes it by `controller(state, examples)`, model and optimizer being ready.
    """

    counts: dict[str, float]
    """what it cost, for the record"""
    with_gradients: bool
    """whether it needs the step's gradients; if not, it acts once they and the step are dealt with,
    and may be stopped half-way and begun anew"""

    def penalty(self) -> torch.Tensor | None:
        """Return a regulariser to add, once a step, to the mean loss."""

    def after_step(self, step: int) -> None:
        """Act after step `step` (from 1) of optimizer and schedule."""

    def ranks(self) -> dict[str, int]:
        """Return the rank in use of each adapted layer, by full name."""

    def restore(self, ranks: dict[str, int]) -> None:
        """Bring the layers to these ranks, before weights of that shape are put in."""

    def state_dict(self) -> dict:
        """Return plain values and tensors."""

    def load_state_dict(self, content: dict) -> None:
        """Take over `state_dict`'s, and bring layers and optimizer to the shapes they had then."""


@dataclass
class State:
    """What the loop works on: `bare` is the model as the method left it, `model` as prepared."""

    spec: RunSpec
    accelerator: Accelerator
    bare: torch.nn.Module
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    pad: int
    started: float = field(default_factory=time.monotonic)
    journal: Journal = field(default_factory=Journal)
    controller: Controller | None = None
    checkpoints: Checkpoints | None = None

    def heed(self) -> None:
        """Stop here if a signal came; several processes, which wait for each other, go on.

        Raises:
            SystemExit: after a checkpoint.
        """
        if self.accelerator.num_processes == 1 and self.checkpoints and self.checkpoints.signal:
            stop(self)


def train(
    spec: RunSpec,
    tokens: Path,
    model_folder: Path,
    out: Path,
    start: Path | None = None,
    code: str | None = None,
    checkpoint_minutes: float = 10.0,
) -> None:
    """Train one run and write its folder: spec, record, history, predictions, adapter.

    A run that was stopped goes on from its checkpoint (checkpoint.py), to the same bits if it is on
    the same kind of CPU; the record names the CPUs that came before.

    Args:
        spec: the run.
        tokens: folder of the task's tokens (tokenise.py).
        model_folder: folder of the fetched model.
        out: the run's folder; record.json is written last, so a folder with one is complete.
        start: folder of the run whose adapter this one starts from, if its spec says so.
        code: digest of the code that trains, for the record and the checkpoints.
        checkpoint_minutes: time between checkpoints; 0 is one after every step.

    Raises:
        UserError: settings that do not fit the data, model, launcher or start; a non-finite loss;
            too little memory.
        SystemExit: SIGTERM or SIGINT, after a checkpoint.
    """
    started = time.monotonic()
    accelerator = make_accelerator(spec)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high" if spec.precision == "tf32" else "highest")
    base = load_base(spec, model_folder)
    splits = ("train", *scored_splits(spec, tokens))
    examples = {split: load_examples(spec, tokens, split) for split in splits}
    whole = model_parameters(base)
    method = importlib.import_module(METHOD_MODULES[spec.method])
    model = method.apply(shorten(base, spec), spec)
    started_from = check_start(spec, start)
    copied = method.start_from(model, spec, start / "adapter") if spec.warm_start else []
    held = base_bytes(model, spec.model.head)
    state = prepare(spec, accelerator, model, len(examples["train"]), pad_id(tokens))
    state.started = started
    if hasattr(method, "controller"):
        state.controller = method.controller(state, examples)
    provenance = {
        **environment(),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "data": data_fingerprint(tokens),
        "weights": read_json(model_folder / "manifest.json")["files"]["model.safetensors"],
        "started_from": started_from,
    }
    same = ("python", "packages", "threads", "processes", "device", "data", "weights")
    belongs = {key: provenance[key] for key in (*same, "started_from")}
    belongs |= {"spec": digest(spec), "code": code}
    with Checkpoints(out / "checkpoint", accelerator, belongs, checkpoint_minutes) as checkpoints:
        state.checkpoints = checkpoints
        if finished_meanwhile(out, accelerator, checkpoints):
            return
        take_up(state)
        run_epochs(state, examples)
        if accelerator.is_main_process:
            export_best(state, out / "adapter")
            write_journal(out, state.journal, examples, spec)
            write_json(out / "spec.json", spec.model_dump(mode="json"))
            result = train_result(
                state,
                parameters={**count_parameters(state.bare, spec.model.head), "model": whole},
                bytes={
                    "adapter": folder_bytes(out / "adapter"),
                    "checkpoint": (model_folder / "model.safetensors").stat().st_size,
                    **held,
                },
                rows={split: len(split_examples) for split, split_examples in examples.items()},
                copied=copied,
            )
            provenance["resumed"] = state.journal.resumed
            digests = {"spec_sha256": digest(spec), "code_sha256": code}
            write_record(out, RunRecord(spec=spec, train=result, environment=provenance, **digests))
            checkpoints.remove()


def finished_meanwhile(out: Path, accelerator: Accelerator, checkpoints: Checkpoints) -> bool:
    """Tell whether another process, which was waited for, has completed this very run.

    That is so when a Snakemake was killed and its job lived on while the next Snakemake came to it.
    """
    found = 0.0
    if checkpoints.waited and (out / "record.json").is_file():
        with suppress(UserError):  # a damaged record
            record = read_record(out / "record.json")
            own = {**record.environment, "spec": record.spec_sha256, "code": record.code_sha256}
            found = float(checkpoints.differs(own) is None and record.files == run_files(out))
    if not accelerator.reduce(torch.tensor(found, device=accelerator.device), "sum").item():
        return False
    checkpoints.say("the other process has completed the run; its result is kept")
    return True


def export_best(state: State, folder: Path) -> None:
    """Write the adapter of the best epoch."""
    spec, best = state.spec, state.journal.best
    if state.controller:
        state.controller.restore(best.ranks)
    best.restore(state.bare)
    with folder_atomic(folder) as new:
        importlib.import_module(METHOD_MODULES[spec.method]).export(state.bare, spec, new)


def train_result(state: State, **facts: Any) -> Train:
    """Make the record's part on training from the journal and further facts."""
    journal = state.journal
    return Train(
        steps=journal.step,
        best_epoch=journal.best.epoch,
        last_epoch=state.spec.epochs,
        best=_scores(journal.history, journal.best.epoch),
        last=_scores(journal.history, state.spec.epochs),
        tokens=journal.tokens,
        seconds={**journal.seconds, "total": time.monotonic() - state.started},
        peak_memory_mib=peak_memory_mib(),
        peak_device_memory_mib=peak_device_memory_mib(),
        counts=state.controller.counts if state.controller else {},
        **facts,
    )


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
    if (
        os.environ.get("ACCELERATE_USE_CPU", "").lower() == "false"
        and not torch.accelerator.is_available()
    ):
        print(
            "warning: the launcher asks for a GPU and there is none: the CPU trains",
            file=sys.stderr,
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
    prepared, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(derive_seed(spec.seed, "dropout", accelerator.process_index))
    return State(spec, accelerator, model, prepared, optimizer, scheduler, pad)


def take_up(state: State) -> None:
    """Go on from the run's newest whole checkpoint, if there is one."""
    content = state.checkpoints.load()
    if content is None:
        note_ranks(state)
        return
    journal = content["journal"]
    state.journal = Journal(**{**journal, "best": Best(**journal["best"])})
    if state.controller:
        state.controller.load_state_dict(content["controller"])
    put_weights(state.bare, content["weights"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    state.started -= content["seconds"]
    step = state.journal.step
    state.journal.resumed.append({"step": step, **content["machine"]})
    state.checkpoints.say(f"going on after step {step} (epoch {state.journal.epoch})")


def save_checkpoint(state: State) -> bool:
    """Save all that `take_up` needs; returns whether it was written."""
    content = {
        "journal": {**vars(state.journal), "best": vars(state.journal.best)},
        "weights": trained_weights(state.bare),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "controller": state.controller.state_dict() if state.controller else None,
        "seconds": time.monotonic() - state.started,
        "machine": machine(),
    }
    return state.checkpoints.save(state.journal.step, content)


def stop(state: State) -> NoReturn:
    """Save a checkpoint and end this process as the signal would have."""
    step, number = state.journal.step, state.checkpoints.signal or signal.SIGTERM
    saved = save_checkpoint(state)
    kept = "the next start goes on from here" if saved else "the work since the last one is lost"
    state.checkpoints.say(f"stopped by {signal.Signals(number).name} at step {step}; {kept}")
    raise SystemExit(128 + number)


def note_ranks(state: State) -> None:
    """Write down the ranks in use, where they may differ by layer and have moved."""
    if not state.spec.uneven_ranks:
        return
    ranks = state.controller.ranks() if state.controller else adapter_ranks(state.bare)
    rows = state.journal.ranks
    if ranks != {row["layer"]: row["rank"] for row in rows[len(rows) - len(ranks) :]}:
        rows += [{"step": state.journal.step, "layer": n, "rank": r} for n, r in ranks.items()]


def run_epochs(state: State, examples: dict[str, Examples]) -> None:
    """Train and score all epochs, or those that are left."""
    spec, journal = state.spec, state.journal
    for epoch in range(journal.epoch, spec.epochs + 1):
        journal.epoch = epoch
        loss = train_epoch(state, examples["train"])
        journal.logits[epoch] = {}
        scores: dict[str, float] = {}
        for split in (name for name in examples if name != "train"):
            found = evaluate(state, examples[split], f"evaluate {split} {epoch}")
            values = metrics.compute(found, examples[split].labels, spec.task)
            suffix = "" if split == "validation" else f"_{split}"
            scores |= {f"{name}{suffix}": float(value) for name, value in values.items()}
            journal.logits[epoch][split] = torch.from_numpy(found)
        journal.history.append({"epoch": epoch, "step": journal.step, "train_loss": loss, **scores})
        ranks = state.controller.ranks() if state.controller else None
        journal.best.offer(epoch, scores[spec.task.headline], state.bare, ranks)
        kept = (journal.best.epoch, epoch)
        journal.logits = {e: value for e, value in journal.logits.items() if e in kept}
        report(state.accelerator, f"epoch {epoch}/{spec.epochs}", {"train_loss": loss, **scores})
        journal.batch, journal.loss = 0, 0.0


def train_epoch(state: State, examples: Examples) -> float:
    """Train the journal's epoch, or what is left of it; returns the mean loss over its rows.

    Raises:
        UserError: a loss that is not finite, with the step.
        SystemExit: a signal, after a checkpoint.
    """
    spec, journal = state.spec, state.journal
    generator = np.random.default_rng(derive_seed(spec.seed, "order", journal.epoch))
    batches = global_batches(examples.lengths, spec.global_batch, spec.batching, generator)
    left = batches[journal.batch :]
    quiet = not state.accelerator.is_main_process
    state.model.train()
    if journal.pending and state.controller:
        act(state, state.controller)
    for batch in progress(left, len(left), f"train epoch {journal.epoch}/{spec.epochs}", quiet):
        started = time.monotonic()
        loss = optimizer_step(state, examples, batch)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {journal.step} (epoch {journal.epoch}); no result was "
                f"written. Try a learning_rate below {spec.learning_rate:g}"
            )
        journal.loss += loss
        journal.batch += 1
        if state.controller and not state.controller.with_gradients:
            act(state, state.controller)
        journal.seconds["train"] += time.monotonic() - started
        keep(state)
    return journal.loss / len(examples)


def act(state: State, controller: Controller) -> None:
    """Let the controller act on the step just done; if it is stopped, the next start repeats it."""
    state.journal.pending = True
    controller.after_step(state.journal.step)
    state.journal.pending = False
    note_ranks(state)


def keep(state: State) -> None:
    """Save a checkpoint if it is time for one, on any process; stop if a signal came."""
    if state.checkpoints is None:
        return
    asked = torch.tensor([state.checkpoints.signal is not None, state.checkpoints.due()])
    asked = state.accelerator.reduce(asked.float().to(state.accelerator.device), "sum")
    if asked[0]:
        stop(state)
    if asked[1]:
        save_checkpoint(state)


def optimizer_step(state: State, examples: Examples, batch: np.ndarray) -> float:
    """Do one step on a global batch; returns the loss summed over its rows.

    Each process takes every P-th row and cuts its share into micro batches. Summed losses divided
    by the global batch's rows make the gradient that of the mean loss, however it was cut; DDP
    averages over processes, so the sum is multiplied by P first. A process with no row (a short
    last batch) runs one row at weight 0, because all must take part in the reduction.

    Raises:
        UserError: too little memory.
    """
    accelerator, spec = state.accelerator, state.spec
    share = batch[accelerator.process_index :: accelerator.num_processes]
    weight = accelerator.num_processes / len(batch) if len(share) else 0.0
    share = share if len(share) else batch[:1]
    cuts = [share[i : i + spec.micro_batch] for i in range(0, len(share), spec.micro_batch)]
    total = torch.zeros((), device=accelerator.device)
    for number, index in enumerate(cuts, 1):
        last = number == len(cuts)
        with (
            nullcontext() if last else accelerator.no_sync(state.model),
            out_of_memory("training", len(index), examples.lengths[index].max(), spec.micro_batch),
        ):
            loss = summed_loss(state, examples, index)
            penalty = state.controller.penalty() if last and state.controller else None
            accelerator.backward(loss * weight if penalty is None else loss * weight + penalty)
        total += loss.detach() * (weight > 0)
    if spec.max_grad_norm is not None:
        accelerator.clip_grad_norm_(state.model.parameters(), spec.max_grad_norm)
    state.optimizer.step()
    state.scheduler.step()
    state.journal.step += 1
    if state.controller and state.controller.with_gradients:
        act(state, state.controller)
    state.optimizer.zero_grad()
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
        state.journal.tokens["real"] += int(examples.lengths[index].sum())
        state.journal.tokens["padded"] += batch["input_ids"].numel()
    device = state.accelerator.device
    if device.type == "cuda":  # pinned memory is copied while the GPU computes
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return state.model(**batch).logits


@torch.inference_mode()
def evaluate(state: State, examples: Examples, label: str) -> np.ndarray:
    """Return the logits (n, classes) of all rows, in order; batches are dealt to the processes.

    Raises:
        UserError: logits that are not finite, or too little memory.
        SystemExit: a signal, after a checkpoint.
    """
    started, accelerator = time.monotonic(), state.accelerator
    state.model.eval()
    batches = sorted_batches(examples.lengths, EVALUATED * state.spec.micro_batch)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    found = []
    for index in progress(mine, len(mine), label, not accelerator.is_main_process):
        state.heed()
        longest = examples.lengths[index].max()
        with out_of_memory("evaluation", len(index), longest, state.spec.micro_batch):
            found.append((index, forward(state, examples, index).float().cpu().numpy()))
    out = np.full((len(examples), max(1, len(state.spec.task.classes))), np.nan, dtype=np.float32)
    for index, logits in gather_object(found):
        out[index] = logits
    if not np.isfinite(out).all():
        raise UserError(
            f"the model's outputs are not finite after step {state.journal.step}; no result"
        )
    state.journal.seconds["evaluate"] += time.monotonic() - started
    return out


def report(accelerator: Accelerator, what: str, values: dict[str, float]) -> None:
    """Print one line on the main process."""
    if accelerator.is_main_process:
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{what}: {text}", file=sys.stderr, flush=True)


def _scores(history: list[dict], epoch: int) -> dict[str, float]:
    row = history[epoch - 1]
    return {k: v for k, v in row.items() if k not in ("epoch", "step", "train_loss")}
