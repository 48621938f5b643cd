"""The life of a run: one RunSpec in, one folder with a record out.

Read from `train` downwards: it is in the order in which things happen. The loop itself is in
loop.py.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from loraudit.adapters.base_layers import hold_frozen
from loraudit.adapters.base_model import load_base
from loraudit.adapters.fast_base import fast_base
from loraudit.adapters.recompute import recompute_blocks
from loraudit.base.errors import UserError
from loraudit.base.files import folder_atomic, folder_fingerprint, read_json, sweep, write_json
from loraudit.base.provenance import environment
from loraudit.data.batches import Examples, data_fingerprint, load_run, pad_id
from loraudit.studies.record import Chosen, RunRecord, Train, read_record, run_files, write_record
from loraudit.studies.spec import RunSpec, derive_seed, digest
from loraudit.training.accounting import (
    base_bytes,
    count_parameters,
    folder_bytes,
    model_parameters,
    peak_device_memory_mib,
    peak_memory_mib,
)
from loraudit.training.checkpoint import Checkpoints
from loraudit.training.device import check_precision, same_bits
from loraudit.training.health import collapsed, unmoved
from loraudit.training.journal import Best, write_journal
from loraudit.training.loop import Diverged, run_epochs
from loraudit.training.method import ClosedFit, Method, method_of
from loraudit.training.schedule import learning_rate, make_schedule
from loraudit.training.state import State, restore, take_up
from loraudit.training.tuning import choose

DDP = {"broadcast_buffers": False}
"""How several processes share a model. Buffers, such as position numbers, are equal from the start
and never change. To send them at each forward pass would make a process that evaluates wait for one
that has nothing to evaluate. (torch 2.13 has a new name for it, which Accelerate 1.15 lacks.)"""

warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)

SAME = (
    *("python", "packages", "threads", "processes", "device", "data", "tokens", "weights"),
    "started_from",
)
"""What a checkpoint must have been made with, beside the same spec and code, to be used."""


def train(
    spec: RunSpec,
    tokens: Path,
    model_folder: Path,
    out: Path,
    start: Path | None = None,
    code: str | None = None,
    checkpoint_minutes: float = 10.0,
    trials: Path | None = None,
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
        checkpoint_minutes: time between checkpoints; 0 is one after every step, or after every
            tenth where several GPUs train.
        trials: folder below which the runs are that try values for the spec's tuned fields. None
            takes the spec's own values, as where a finished run's spec is trained again.

    Raises:
        UserError: a file of the tokens or the model is missing; settings that do not fit the data,
            model, launcher or start; a non-finite loss (of a run that only tunes it is a result);
            too little memory.
        SystemExit: SIGTERM or SIGINT, after a checkpoint.
    """
    started = time.monotonic()
    tuning = choose(spec, trials) if spec.tuned and trials else None
    spec = spec.with_values(tuning.chosen) if tuning else spec
    check_made(tokens, model_folder)
    accelerator = make_accelerator(spec)
    pad = pad_id(tokens)
    base = load_base(spec, model_folder, pad)
    examples = load_run(spec, tokens)
    size = {"parameters": model_parameters(base), "bytes": file_bytes(model_folder)}
    method = method_of(spec)
    model = method.apply(fast_base(base, spec), spec)
    started_from = check_start(spec, start)
    copied = method.start_from(model, spec, start / "adapter") if start else []
    state = prepare(spec, accelerator, model, len(examples["train"]), pad)
    state.started = started
    state.controller = method.controller(state, examples)
    provenance = provenance_of(accelerator, tokens, model_folder) | {"started_from": started_from}
    belongs = {key: provenance[key] for key in SAME} | {"spec": digest(spec), "code": code}
    kept = Checkpoints(out / "checkpoint", accelerator, belongs, checkpoint_minutes)
    with same_bits(spec.precision, accelerator.device), kept as checkpoints:
        state.checkpoints = checkpoints
        if finished_meanwhile(out, accelerator, checkpoints):
            return
        tidy(out, checkpoints)
        take_up(state, checkpoints)
        epochs_or_divergence(state, examples, method)
        if accelerator.is_main_process:
            made = {"environment": provenance, "tuning": tuning, "code_sha256": code}
            write_run(state, examples, out, size, copied, made)
            checkpoints.remove()


def epochs_or_divergence(state: State, examples: dict[str, Examples], method: Method) -> None:
    """Train all epochs; note if the loss of a run that only tunes stops being finite.

    That the values can't be trained with is what was to be found out, and what waits for the run
    goes on.

    Raises:
        Diverged: of a run that is reported.
    """
    try:
        run_epochs(state, examples, method.fit if isinstance(method, ClosedFit) else None)
    except Diverged as error:
        if state.spec.saves:
            raise
        state.journal.diverged = state.journal.step
        text = str(error).partition("; no result")[0]
        if state.accelerator.is_main_process:
            print(f"{text}: it diverged and counts as the worst", file=sys.stderr, flush=True)


def check_made(*folders: Path) -> None:
    """Check that no file of folders below resources/ is missing: all are read before training.

    Raises:
        UserError: a folder's manifest is missing, or a file that it names.
    """
    for folder in folders:
        manifest = folder / "manifest.json"
        names = read_json(manifest)["files"] if manifest.is_file() else [manifest.name]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder}: {', '.join(missing)}: missing, so removed since the folder was made; "
                "delete what is left of it and start snakemake again, which makes it anew"
            )


def provenance_of(accelerator: Accelerator, tokens: Path, model_folder: Path) -> dict[str, Any]:
    """Return the record's part on the machine, the packages, the data and the weights."""
    return {
        **environment(),
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,  # its number differs from process to process
        "data": data_fingerprint(tokens),
        "tokens": read_json(tokens / "manifest.json")["files"],
        "weights": read_json(model_folder / "manifest.json")["files"]["model.safetensors"],
    }


def tidy(out: Path, checkpoints: Checkpoints) -> None:
    """Delete what killed processes left in a run's folder; the main process holds its lock."""
    if not checkpoints.accelerator.is_main_process:
        return
    if swept := [*sweep(out), *sweep(checkpoints.folder)]:
        names = ", ".join(path.name for path in swept)
        checkpoints.say(f"deleted what a killed process had left: {names}")


def finished_meanwhile(out: Path, accelerator: Accelerator, checkpoints: Checkpoints) -> bool:
    """Tell whether this very run was completed by another process while this one waited for it.

    That happens when a Snakemake is killed, its job lives on, and the next Snakemake starts the
    same run.
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


def file_bytes(model_folder: Path) -> int:
    """Return the size of a fetched model's file of weights in bytes."""
    return (model_folder / "model.safetensors").stat().st_size


def write_run(
    state: State,
    examples: dict[str, Examples],
    out: Path,
    size: dict[str, int],
    copied: Sequence[str],
    made: dict[str, Any],
) -> None:
    """Write the folder of a run that has trained: all that `train` names; record.json last.

    Args:
        state: the run.
        examples: its splits.
        out: its folder.
        size: `parameters` and `bytes` of the model as it was fetched, whose folder may be gone.
        copied: names of the tensors that a warm start copied.
        made: the record's `environment`, `tuning` and `code_sha256`.
    """
    spec, journal, head = state.spec, state.journal, state.spec.model.head
    if journal.diverged is None and spec.choices[0] != "last":
        restore(state, journal.choices[spec.choices[0]])
    if spec.saves:
        export(state, out / "adapter")
    write_journal(out, journal, examples, spec)
    write_json(out / "spec.json", spec.model_dump(mode="json"))
    result = Train(
        steps=journal.step,
        epochs={
            choice: Chosen(epoch=epoch, scores=_scores(journal.history, epoch))
            for choice, epoch in journal.chosen(spec.epochs).items()
        },
        collapsed=collapsed_choices(state, examples),
        unmoved=unmoved(state.bare),
        parameters=count_parameters(state.bare, head) | {"model": size["parameters"]},
        bytes={
            "adapter": folder_bytes(out / "adapter"),
            "checkpoint": size["bytes"],
            **base_bytes(state.bare, head),
        },
        rows={split: len(split_examples) for split, split_examples in examples.items()},
        tokens=journal.tokens,
        diverged=journal.diverged,
        seconds={**journal.seconds, "total": time.monotonic() - state.started},
        cpu_seconds=journal.cpu_seconds,
        peak_memory_mib=peak_memory_mib(),
        peak_device_memory_mib=peak_device_memory_mib(),
        counts=state.controller.counts if state.controller else journal.counts,
        copied=copied,
    )
    environment = made["environment"] | {"resumed": journal.resumed}
    facts = made | {"environment": environment, "spec_sha256": digest(spec)}
    write_record(out, RunRecord(spec=spec, train=result, **facts))


def export(state: State, folder: Path) -> None:
    """Write the adapter that the model holds."""
    with folder_atomic(folder) as new:
        method_of(state.spec).export(state.bare, state.spec, new)


def collapsed_choices(state: State, examples: dict[str, Examples]) -> list[str]:
    """Return the choices at whose epoch the model has collapsed, on the rows that are reported."""
    journal, task = state.journal, state.spec.task
    split = state.spec.reported_split
    return [
        choice
        for choice, epoch in journal.chosen(state.spec.epochs).items()
        if collapsed(journal.logits[epoch][split].numpy(), examples[split].labels, task)
    ]


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
    found = digest(read_record(start / "record.json").spec.planned())
    if found != spec.warm_start.spec_sha256:
        raise UserError(f"start: {start} is not run {spec.warm_start.run!r} (its spec differs)")
    return folder_fingerprint(start / "adapter")


def make_accelerator(spec: RunSpec) -> Accelerator:
    """Start Accelerate in the spec's precision.

    Raises:
        UserError: the launcher asks for another precision, the device does not compute in it, or
            the batch does not divide.
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
    AcceleratorState._reset_state()  # an earlier run of this process may have another precision
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # gloo, when several processes find no GPU
        mixed_precision="bf16" if spec.precision == "bf16" else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(**DDP)],
    )
    check_precision(spec.precision, accelerator.device)
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

    The model's blocks recompute if the spec says so. Weight decay spares biases and LayerNorm, as
    HF Trainer does. For a run in bf16 the frozen linear layers are held in bf16 from here on; what
    is trained stays in float32.
    """
    if spec.precision == "bf16":
        hold_frozen(model, spec.model.head, torch.bfloat16)
    recompute_blocks(model, spec)
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
    state = State(spec, accelerator, model, prepared, optimizer, scheduler, pad)
    state.journal.choices = {choice: Best() for choice in spec.choices if choice != "last"}
    return state


def _scores(history: list[dict], epoch: int) -> dict[str, float | None]:
    """Return an epoch's scores; None stands for an undefined one, since JSON has no NaN."""
    row = history[epoch - 1]
    scores = {k: v for k, v in row.items() if k not in ("epoch", "step", "train_loss")}
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
