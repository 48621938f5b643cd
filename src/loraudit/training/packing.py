"""Packing: several runs of one task and model trained at once, the rows of all in one batch.

Read from `train_pack` downwards, beside run.py and loop.py: it does for K runs what these do for
one. Frozen weights are held once, each layer is started once for all rows (adapters/pack.py), and
every run keeps what is its own: seed, adapter, head, optimizer, schedule, clipping, order of rows,
journal, checkpoint and folder. Which runs can be together is said in studies/packs.py.

A run comes out as it does alone, up to rounding, if there is no dropout. With dropout its draws are
others of the same distribution, since one generator draws the masks of all rows.

What differs in a run's record: `environment` has `packed`, the digests of the pack's specs; the
times are the K-th part of the pack's and the peak of memory is the pack's; and `tokens` counts the
padding of the whole batch, which is as long as its longest row of any run. `code_sha256` is of
scripts/train_packed.py.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from loraudit.adapters.base_model import load_base, reset_head
from loraudit.adapters.fast_base import fast_base
from loraudit.adapters.pack import Pack, copy_sharing
from loraudit.base.errors import UserError
from loraudit.base.progress import progress
from loraudit.data.batches import (
    Examples,
    collate,
    labels_tensor,
    load_examples,
    load_run,
    pad_id,
    sorted_batches,
)
from loraudit.studies.packs import require_pack
from loraudit.studies.spec import RunSpec, derive_seed, digest
from loraudit.training import loop, losses, run
from loraudit.training.accounting import (
    count_parameters,
    model_parameters,
    out_of_memory,
)
from loraudit.training.checkpoint import Checkpoints
from loraudit.training.device import same_bits
from loraudit.training.method import method_of
from loraudit.training.state import Diverged, State, look, restore, save_checkpoint, take_up
from loraudit.training.tuning import choose


@dataclass
class Packed:
    """What the loop works on.

    `states` are the runs' own: their models, which are not called, optimizers and journals. `pack`
    computes for all of them, and `model` is its model, wrapped by Accelerate. `examples` are each
    run's; all but "train" are the same for all. `kept` are the runs' checkpoints.
    """

    states: list[State]
    pack: Pack
    model: torch.nn.Module
    examples: list[dict[str, Examples]]
    kept: list[Checkpoints] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = self.states[0].spec  # of what all have in common
        self.accelerator = self.states[0].accelerator
        self.train = joined([examples["train"] for examples in self.examples])
        self.starts = np.cumsum([0, *(len(examples["train"]) for examples in self.examples)])

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add a run's share of a block's time to each journal, as `Journal.timed` does for one."""
        wall, cpu, runs = time.monotonic(), time.process_time(), len(self.states)
        yield
        for state in self.states:
            state.journal.seconds[what] += (time.monotonic() - wall) / runs
            state.journal.cpu_seconds[what] += (time.process_time() - cpu) / runs


def train_pack(
    specs: Sequence[RunSpec],
    tokens: Path,
    model_folder: Path,
    outs: Sequence[Path],
    code: str | None = None,
    checkpoint_minutes: float = 10.0,
    trials: Path | None = None,
) -> None:
    """Train a pack of runs and write the folder of each, as `run.train` does for one.

    The folders are written when all runs are done. A pack that was stopped goes on from the
    checkpoints of its runs if they are of one step, and otherwise starts again.

    Args:
        specs: the runs.
        tokens: folder of the task's tokens.
        model_folder: folder of the fetched model.
        outs: the runs' folders, in the order of `specs`.
        code: digest of the code that trains, for the records and the checkpoints.
        checkpoint_minutes: time between checkpoints; 0 is one after every step.
        trials: folder below which the runs are that try values for the specs' tuned fields. None
            takes the specs' own values.

    Raises:
        UserError: the runs can't be trained together (`require_pack`), a layer is not one of single
            rows, several processes are started, a run that is reported diverges, or what
            `run.train` raises.
        SystemExit: SIGTERM or SIGINT, after a checkpoint.
    """
    started = time.monotonic()
    tunings = [choose(spec, trials) if spec.tuned and trials else None for spec in specs]
    specs = [
        spec.with_values(tuning.chosen) if tuning else spec
        for spec, tuning in zip(specs, tunings, strict=True)
    ]
    require_pack(specs)
    run.check_made(tokens, model_folder)
    packed = make_packed(specs, tokens, model_folder)
    accelerator, together = packed.accelerator, [digest(spec) for spec in specs]
    for state in packed.states:
        state.started = started
    weights = run.file_bytes(model_folder)
    provenance = run.provenance_of(accelerator, tokens, model_folder)
    provenance |= {"started_from": None, "packed": together}
    shared = {key: provenance[key] for key in (*run.SAME, "packed")} | {"code": code}
    with same_bits(packed.spec.precision, accelerator.device), ExitStack() as stack:
        for out, spec in zip(outs, together, strict=True):
            belongs = shared | {"spec": spec}
            own = Checkpoints(out / "checkpoint", accelerator, belongs, checkpoint_minutes)
            packed.kept.append(stack.enter_context(own))
        if all([
            run.finished_meanwhile(out, accelerator, own)
            for out, own in zip(outs, packed.kept, strict=True)
        ]):  # fmt: skip
            return
        for out, own in zip(outs, packed.kept, strict=True):
            run.tidy(out, own)
        take_up_all(packed)
        run_epochs(packed)
        for state, examples, out, tuning in zip(
            packed.states, packed.examples, outs, tunings, strict=True
        ):
            made = {"environment": provenance, "tuning": tuning, "code_sha256": code}
            write_run(state, examples, out, weights, len(specs), made)
        for own in packed.kept:
            own.remove()


def make_packed(specs: Sequence[RunSpec], tokens: Path, model_folder: Path) -> Packed:
    """Load the model once, and make of it each run's own model and the one for all.

    Raises:
        UserError: the launcher starts several processes, or what `run.train` raises.
    """
    accelerator = run.make_accelerator(specs[0])
    if accelerator.num_processes > 1:
        raise UserError(
            f"pack: the launcher starts {accelerator.num_processes} processes, and one process "
            "trains a pack (legal: 1)"
        )
    pad, first = pad_id(tokens), specs[0]
    base = fast_base(load_base(first, model_folder, pad), first)
    scored = load_run(first, tokens)
    examples = [{**scored, "train": load_examples(spec, tokens, "train")} for spec in specs]
    return assemble(specs, accelerator, base, examples, pad)


def assemble(
    specs: Sequence[RunSpec],
    accelerator: Accelerator,
    base: torch.nn.Module,
    examples: list[dict[str, Examples]],
    pad: int,
) -> Packed:
    """Make of a frozen model, which is changed, the runs' own models and the one for all.

    Args:
        specs: the runs.
        accelerator: of one process.
        base: the model as `fast_base` leaves it.
        examples: each run's splits.
        pad: id of the token that fills short rows.
    """
    models: list[torch.nn.Module] = []
    head = specs[0].model.head
    for spec in specs:
        own = copy_sharing(base, head)
        reset_head(own, spec)
        models.append(method_of(spec).apply(own, spec))
    pack = Pack(base, models, head)
    states = [
        run.prepare(spec, accelerator, model, len(own["train"]), pad)
        for spec, model, own in zip(specs, models, examples, strict=True)
    ]
    return Packed(states, pack, accelerator.prepare(pack.model), examples)


def joined(parts: Sequence[Examples]) -> Examples:
    """Return the examples of one split that several runs use, one run after another."""

    def end_to_end(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    names = "rows", "labels", "starts", "lengths"
    return Examples(**{n: end_to_end(n) for n in names}, ids=parts[0].ids, types=parts[0].types)


def take_up_all(packed: Packed) -> None:
    """Go on from the runs' newest checkpoints, if there are some and all are of one batch."""
    contents = [own.load() for own in packed.kept]
    journals = [content["journal"] for content in contents if content]
    places = {(journal["epoch"], journal["batch"]) for journal in journals}
    if len(journals) == len(contents) and len(places) == 1:
        for state, own in zip(packed.states, packed.kept, strict=True):
            take_up(state, own)
        return
    if journals:
        packed.kept[0].say("the checkpoints of a pack are not of one step; it starts again")
    seeds = [digest(state.spec) for state in packed.states]
    torch.manual_seed(derive_seed(packed.spec.seed, "packed dropout", *seeds))


def run_epochs(packed: Packed) -> None:
    """Train and score all epochs of all runs; resumed ones those that are left."""
    spec, each = packed.spec, loop.each_epoch(packed.spec, packed.examples[0])
    for epoch in range(packed.states[0].journal.epoch, spec.epochs + 1):
        for state in packed.states:
            state.journal.epoch = epoch
        train_epoch(packed, epoch)
        outputs = {split: evaluate(packed, split, epoch) for split in each}
        for number in range(len(packed.states)):
            end_epoch(packed, number, {split: values[number] for split, values in outputs.items()})
    for state in packed.states:
        state.journal.epoch = spec.epochs + 1
    score_chosen(packed)


def end_epoch(packed: Packed, number: int, outputs: dict[str, np.ndarray]) -> None:
    """Note an epoch's loss and scores of a run, and offer the epoch to the run's choices."""
    state, examples = packed.states[number], packed.examples[number]
    loss = state.journal.loss / examples["train"].weight()
    scores: dict[str, float] = {}
    for split, values in outputs.items():
        scores |= note_scores(packed, number, split, values, state.journal.epoch)
    if state.journal.diverged is None:
        loop.end_epoch(state, loss, scores, f"run {number + 1} of {len(packed.states)}, ")
    else:
        state.journal.batch, state.journal.loss = 0, 0.0


def note_scores(
    packed: Packed, number: int, split: str, outputs: np.ndarray, epoch: int
) -> dict[str, float]:
    """Return a run's scores on a split by `score_name`, and keep its logits in the journal."""
    state = packed.states[number]
    if state.journal.diverged is None and not np.isfinite(outputs).all():
        step = state.journal.step
        diverge(state, number, f"the model's outputs are not finite after step {step}")
    if state.journal.diverged is not None:
        return {}
    return loop.note_scores(state, packed.examples[number][split], split, outputs, epoch)


def score_chosen(packed: Packed) -> None:
    """Score each run's last and then its selected epoch where that is to be done yet."""
    last = packed.spec.epochs
    for chosen in ("last", "selected"):
        missing: dict[int, tuple[int, list[str]]] = {}
        for number, state in enumerate(packed.states):
            best = state.journal.choices.get("selected") if chosen == "selected" else None
            epoch = best.epoch if best else last
            lacks = loop.unscored(state, packed.examples[number], epoch)
            if lacks and state.journal.diverged is None:
                missing[number] = epoch, lacks
                if best and epoch != last:
                    restore(state, best)
        for split in loop.scored(packed.examples[0]):
            wanted = [number for number, (_, lacks) in missing.items() if split in lacks]
            if not wanted:
                continue
            outputs = evaluate(packed, split, last)
            for number in wanted:
                epoch, journal = missing[number][0], packed.states[number].journal
                scores = note_scores(packed, number, split, outputs[number], epoch)
                journal.history[epoch - 1] |= scores


def train_epoch(packed: Packed, epoch: int) -> None:
    """Train the epoch, or what is left of it.

    Raises:
        Diverged: the loss of a run that is reported is not finite.
        SystemExit: a signal came; checkpoints were saved.
    """
    orders = [loop.order_of(state.spec, own["train"], epoch)
              for state, own in zip(packed.states, packed.examples, strict=True)]  # fmt: skip
    steps = list(zip(*orders, strict=True))
    left = range(packed.states[0].journal.batch, len(steps))
    packed.model.train()
    for number in progress(left, len(left), f"train epoch {epoch}/{packed.spec.epochs}"):
        with packed.timed("train"):
            optimizer_step(packed, steps[number])
            for state in packed.states:
                state.journal.batch = number + 1
            if (number + 1) % packed.states[0].looks == 0 or number + 1 == len(steps):
                look_all(packed)
        keep(packed)


def optimizer_step(packed: Packed, batches: Sequence[np.ndarray]) -> None:
    """Do one optimizer step of every run, on its own global batch.

    Args:
        packed: the runs.
        batches: each run's rows, as places in its own training rows; of equal numbers.

    Raises:
        UserError: there is too little memory.
    """
    spec, accelerator = packed.spec, packed.accelerator
    rows = np.stack(batches) + packed.starts[:-1, None]  # (K, rows)
    total = torch.zeros(len(rows), device=accelerator.device)
    packed.pack.pull()
    for start in range(0, rows.shape[1], spec.micro_batch):
        index = rows[:, start : start + spec.micro_batch].ravel()
        longest = packed.train.lengths[index].max()
        with out_of_memory("training", len(index), longest, spec.micro_batch):
            found = summed_losses(packed, packed.train, index)
            accelerator.backward(found.sum() / rows.shape[1])
        total += found.detach()
    packed.pack.push()
    for state, loss in zip(packed.states, total.unbind(), strict=True):
        if state.journal.diverged is None:
            loop.follow_gradients(state)
            state.losses.append(loss)
        state.optimizer.zero_grad()


def summed_losses(packed: Packed, examples: Examples, index: np.ndarray) -> Tensor:
    """Return each run's loss (K,), summed over its rows; `index` has as many of each run."""
    runs = len(packed.states)
    (labels,) = loop.to_device(packed.states[0], labels_tensor(examples, index, packed.spec))
    logits = forward(packed, examples, index)
    return losses.row_losses(packed.spec.task, logits, labels).view(runs, -1).sum(1)


def forward(packed: Packed, examples: Examples, index: np.ndarray) -> Tensor:
    """Return the logits (len(index), classes), in float32 or float64; in training, count tokens."""
    runs = len(packed.states)
    batch = collate(examples, index, packed.spec, packed.states[0].pad)
    if packed.model.training:
        real = examples.lengths[index].reshape(runs, -1).sum(1)
        for state, own in zip(packed.states, real, strict=True):
            state.journal.tokens["real"] += int(own)
            state.journal.tokens["padded"] += batch["input_ids"].numel() // runs
    tensors = loop.to_device(packed.states[0], *batch.values())
    logits = packed.model(**dict(zip(batch, tensors, strict=True))).logits
    return logits if logits.dtype == torch.float64 else logits.float()


def evaluate(packed: Packed, split: str, epoch: int) -> np.ndarray:
    """Return the outputs (K, n, classes) of all runs on a split, whose rows all runs share.

    Raises:
        UserError: there is too little memory.
        SystemExit: a signal came; checkpoints were saved.
    """
    runs, examples = len(packed.states), packed.examples[0][split]
    batches = sorted_batches(examples.lengths, packed.spec.micro_batch * loop.EVALUATED)
    found = []
    with packed.timed("evaluate"):
        packed.pack.pull()
        packed.model.eval()
        for index in progress(batches, len(batches), f"evaluate {split} {epoch}"):
            heed(packed)
            longest = examples.lengths[index].max()
            with (
                torch.inference_mode(),
                out_of_memory("evaluation", runs * len(index), longest, packed.spec.micro_batch),
            ):
                logits = forward(packed, examples, np.tile(index, runs))
            found.append(logits.unflatten(0, (runs, -1)))
        ordered = torch.cat(found, 1).cpu().numpy()
    whole = np.empty_like(ordered)
    whole[:, np.concatenate(batches)] = ordered
    return whole


def look_all(packed: Packed) -> None:
    """Look at the losses of the last steps of each run (`state.look`)."""
    for number, state in enumerate(packed.states):
        if state.journal.diverged is None:
            try:
                look(state)
            except Diverged as error:
                diverge(state, number, str(error).partition("; no result")[0])


def diverge(state: State, number: int, what: str) -> None:
    """Note that a run that only tunes has diverged; the others go on.

    Raises:
        Diverged: the run is reported. The whole pack then ends without a result.
    """
    name = f"run {number + 1} of the pack (seed {state.spec.seed})"
    if state.spec.saves:
        raise Diverged(
            f"{name}: {what}; no result was written of any run of the pack. Try a learning_rate "
            f"below {state.spec.learning_rate:g} for this run, or runs_per_batch: 1"
        )
    state.journal.diverged, state.losses = state.journal.step, []
    print(f"{name}: {what}: it diverged and counts as the worst", file=sys.stderr, flush=True)


def keep(packed: Packed) -> None:
    """Save checkpoints when it is time for them, and stop if a signal came."""
    heed(packed)
    if packed.kept and packed.kept[0].due():
        save_all(packed)


def heed(packed: Packed) -> None:
    """Save checkpoints and stop if a signal came; it is the last entered that notes one."""
    if packed.kept and packed.kept[-1].signal:
        stop(packed, packed.kept[-1].signal)


def save_all(packed: Packed) -> bool:
    """Save a checkpoint of each run; return whether all were written."""
    look_all(packed)
    pairs = zip(packed.states, packed.kept, strict=True)
    return all([save_checkpoint(state, own) for state, own in pairs])


def stop(packed: Packed, number: int) -> NoReturn:
    """Save checkpoints and end this process as the signal would have."""
    kept = "the next start goes on from here" if save_all(packed) else "the work is lost"
    said = f"stopped by {Signals(number).name} after {packed.states[0].journal.batch} batches of "
    packed.kept[0].say(f"{said}epoch {packed.states[0].journal.epoch}; {kept}")
    raise SystemExit(128 + number)


def write_run(
    state: State,
    examples: dict[str, Examples],
    out: Path,
    weights: int,
    runs: int,
    made: dict[str, Any],
) -> None:
    """Write the folder of one of the pack's runs, whose time is a share of the pack's.

    `weights` is the size of the fetched model's file in bytes.
    """
    now = time.monotonic()
    state.started = now - (now - state.started) / runs
    adapter = count_parameters(state.bare, state.spec.model.head)["adapter"]
    size = {"parameters": model_parameters(state.bare) - adapter, "bytes": weights}
    run.write_run(state, examples, out, size, (), made)
