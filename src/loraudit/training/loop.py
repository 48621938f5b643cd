"""The training loop, top to bottom: epochs, optimizer steps, evaluation.

Accelerate manages processes, devices and precision. Which rows make up an optimizer step is
decided here, so that the global batch is what the spec says, whatever the number of processes.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from loraudit.base.progress import progress
from loraudit.data.batches import (
    Examples,
    collate,
    global_batches,
    labels_tensor,
    sorted_batches,
)
from loraudit.studies.names import score_name
from loraudit.studies.scores import goodness
from loraudit.studies.spec import CHOSEN_ON, RunSpec, derive_seed
from loraudit.training import losses, metrics
from loraudit.training.accounting import out_of_memory
from loraudit.training.method import Controller
from loraudit.training.state import Diverged, State, keep, look, note_ranks, restore

EVALUATED = 4
"""An evaluation batch has the rows of so many micro batches: without a backward pass they take no
more memory than one does in training. Where text is predicted it is one: each row's outputs are as
many as its tokens times the vocabulary, and take more than what a backward pass would keep."""


def run_epochs(
    state: State,
    examples: dict[str, Examples],
    fit: Callable[[State, Examples], float] | None = None,
) -> None:
    """Train and score all epochs; a resumed run those that are left.

    `fit` trains an epoch and returns the mean loss; None does optimizer steps (`train_epoch`).
    """
    spec, journal = state.spec, state.journal
    each = each_epoch(spec, examples)
    for epoch in range(journal.epoch, spec.epochs + 1):
        journal.epoch = epoch
        loss = (fit or train_epoch)(state, examples["train"])
        end_epoch(state, loss, score(state, examples, each, epoch))
    journal.epoch = spec.epochs + 1
    score_chosen(state, examples)


def scored(examples: dict[str, Examples]) -> list[str]:
    """Return the splits that are scored: all but the one that is trained on."""
    return [split for split in examples if split != "train"]


def each_epoch(spec: RunSpec, examples: dict[str, Examples]) -> list[str]:
    """Return the splits that each epoch is scored on (`validate_epochs`)."""
    return {"all": scored(examples), "last": []}.get(spec.validate_epochs, ["selection"])


def end_epoch(state: State, loss: float, scores: dict[str, float], whose: str = "") -> None:
    """Note an epoch's mean loss and its scores, and offer the epoch to the run's choices.

    `whose` begins the line that tells of it, where several runs train together.
    """
    journal, epoch = state.journal, state.journal.epoch
    journal.history.append({"epoch": epoch, "step": journal.step, "train_loss": loss, **scores})
    choose(state, epoch)
    what = f"{whose}epoch {epoch}/{state.spec.epochs}"
    report(state.accelerator, what, journal.history[-1])
    journal.batch, journal.loss = 0, 0.0


def score(
    state: State, examples: dict[str, Examples], splits: Iterable[str], epoch: int
) -> dict[str, float]:
    """Return an epoch's scores on some splits, by `score_name`; keep its logits in the journal."""
    scores: dict[str, float] = {}
    for split in splits:
        logits = evaluate(state, examples[split], f"evaluate {split} {epoch}")
        scores |= note_scores(state, examples[split], split, logits, epoch)
    return scores


def note_scores(
    state: State, examples: Examples, split: str, logits: np.ndarray, epoch: int
) -> dict[str, float]:
    """Return an epoch's scores on a split, by `score_name`, and keep its logits in the journal."""
    values = metrics.compute(logits, examples.labels, state.spec.task)
    state.journal.logits.setdefault(epoch, {})[split] = torch.from_numpy(logits)
    return {score_name(metric, split): float(value) for metric, value in values.items()}


def choose(state: State, epoch: int) -> None:
    """Offer an epoch to each choice of the spec, and forget the logits of epochs not chosen."""
    journal, headline = state.journal, state.spec.task.headline
    ranks = state.controller.ranks() if state.controller else None
    for choice, best in journal.choices.items():
        score = journal.history[epoch - 1][score_name(headline, CHOSEN_ON[choice])]
        saved = choice == state.spec.choices[0]
        best.offer(epoch, goodness(headline, score), state.bare if saved else None, ranks)
    kept = {epoch, *(best.epoch for best in journal.choices.values())}
    journal.logits = {e: value for e, value in journal.logits.items() if e in kept}


def score_chosen(state: State, examples: dict[str, Examples]) -> None:
    """Score the last and then the selected epoch on the splits that they were not scored on yet.

    Nothing is left to score if each epoch was scored on all splits. A stop by a signal may come
    between the two: what is scored already is not scored again, since the model then holds the
    selected epoch's weights.
    """
    journal, last = state.journal, state.spec.epochs
    selected = journal.choices.get("selected")
    for epoch in (last, selected.epoch if selected else last):
        missing = unscored(state, examples, epoch)
        if missing and selected and epoch != last:
            restore(state, selected)
        for name in missing:  # a split's scores stand beside its logits before the next may stop
            journal.history[epoch - 1] |= score(state, examples, [name], epoch)


def unscored(state: State, examples: dict[str, Examples], epoch: int) -> list[str]:
    """Return the splits that an epoch was not scored on yet."""
    done = state.journal.logits.get(epoch, {})
    return [split for split in scored(examples) if split not in done]


def train_epoch(state: State, examples: Examples) -> float:
    """Train the journal's epoch, or what is left of it; return its mean loss.

    The mean is over the rows, or over the tokens that carry loss where text is predicted.

    Raises:
        Diverged: the loss is not finite.
        SystemExit: a signal came; a checkpoint was saved.
    """
    spec, journal = state.spec, state.journal
    batches = order_of(spec, examples, journal.epoch)
    left = batches[journal.batch :]
    quiet = not state.accelerator.is_main_process
    state.model.train()
    if journal.pending and state.controller:  # a signal had stopped it at this step
        act(state, state.controller)
    for batch in progress(left, len(left), f"train epoch {journal.epoch}/{spec.epochs}", quiet):
        with journal.timed("train"):
            state.losses.append(optimizer_step(state, examples, batch))
            journal.batch += 1
            if journal.step % state.looks == 0 or journal.batch == len(batches):
                look(state)
            if state.controller and not state.controller.with_gradients:
                act(state, state.controller)
        keep(state)
    return journal.loss / examples.weight()


def order_of(spec: RunSpec, examples: Examples, epoch: int) -> list[np.ndarray]:
    """Return the global batches of an epoch, in order, as places in the training rows."""
    generator = np.random.default_rng(derive_seed(spec.seed, "order", epoch))
    return global_batches(examples.lengths, spec.global_batch, spec.batching, generator)


def act(state: State, controller: Controller) -> None:
    """Let the controller act on the last step; after a stop in it, the next start repeats it."""
    state.journal.pending = True
    controller.after_step(state.journal.step)
    state.journal.pending = False
    note_ranks(state)


def optimizer_step(state: State, examples: Examples, batch: np.ndarray) -> torch.Tensor:
    """Do one optimizer step on a global batch; return the summed loss of its rows here.

    The host does not wait for the device: what is returned is a scalar there, of the rows that this
    process has.

    Raises:
        UserError: there is too little memory.
    """
    accelerator, spec = state.accelerator, state.spec
    process = accelerator.process_index, accelerator.num_processes
    cuts, weight = share_of(batch, *process, spec.micro_batch, examples.weight(batch))
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
    follow_gradients(state)
    if state.controller and state.controller.with_gradients:
        act(state, state.controller)
    state.optimizer.zero_grad()
    return total


def follow_gradients(state: State) -> None:
    """Clip the gradients and take a step of the optimizer and of the schedule."""
    if state.spec.max_grad_norm is not None:
        state.accelerator.clip_grad_norm_(state.bare.parameters(), state.spec.max_grad_norm)
    state.optimizer.step()
    state.scheduler.step()
    state.journal.step += 1


def share_of(
    batch: np.ndarray, process: int, processes: int, micro: int, counted: int
) -> tuple[list[np.ndarray], float]:
    """Return a process's micro batches of a global batch, and the weight of their summed losses.

    Each process takes every P-th row and cuts its share into micro batches of at most `micro` rows.
    Summed losses divided by `counted`, the global batch's rows (or its tokens that carry loss),
    give the gradient of the mean loss, however the batch is cut; DDP averages over processes, so
    the sum is multiplied by P first. A process that has no row of a short last batch runs one row
    at weight 0, because all must take part in the reduction.
    """
    share = batch[process::processes]
    weight = processes / counted if len(share) else 0.0
    share = share if len(share) else batch[:1]
    return [share[i : i + micro] for i in range(0, len(share), micro)], weight


def summed_loss(state: State, examples: Examples, index: np.ndarray) -> torch.Tensor:
    """Return the loss summed over some rows (`losses.summed_loss`)."""
    labels = labels_of(state, examples, index)  # before the model is busy
    logits = forward(state, examples, index).float()
    return losses.summed_loss(state.spec.task, logits, labels)


def labels_of(state: State, examples: Examples, index: np.ndarray) -> torch.Tensor:
    """Return the labels of some rows on the device."""
    (labels,) = to_device(state, labels_tensor(examples, index, state.spec))
    return labels


def forward(state: State, examples: Examples, index: np.ndarray) -> torch.Tensor:
    """Return the logits (len(index), classes) of some rows; in training, count their tokens.

    Where text is predicted they are (len(index), tokens, vocabulary).
    """
    batch = collate(examples, index, state.spec, state.pad)
    if state.model.training:
        state.journal.tokens["real"] += int(examples.lengths[index].sum())
        state.journal.tokens["padded"] += batch["input_ids"].numel()
    tensors = to_device(state, *batch.values())
    return state.model(**dict(zip(batch, tensors, strict=True))).logits


def to_device(state: State, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copy tensors to the device; on CUDA without waiting for what it computes."""
    device = state.accelerator.device
    if device.type == "cuda":  # only pinned memory is copied while the GPU computes
        tensors = tuple(tensor.pin_memory() for tensor in tensors)
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def evaluate(state: State, examples: Examples, label: str) -> np.ndarray:
    """Return `outputs`, and count the time as evaluation."""
    with state.journal.timed("evaluate"):
        return outputs(state, examples, label)


@torch.inference_mode()
def outputs(state: State, examples: Examples, label: str) -> np.ndarray:
    """Return the model's outputs (n, classes) on all rows in order; each process runs a part.

    Where text is predicted, these are the rows' summed losses (n, 1) in nats.

    Raises:
        Diverged: the logits are not finite.
        UserError: there is too little memory.
        SystemExit: a signal came; a checkpoint was saved.
    """
    accelerator = state.accelerator
    state.model.eval()
    rows = state.spec.micro_batch * (1 if state.spec.task.causal_lm else EVALUATED)
    batches = sorted_batches(examples.lengths, rows)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    own: list[tuple[np.ndarray, torch.Tensor]] = []
    for index in progress(mine, len(mine), label, not accelerator.is_main_process):
        state.heed()
        longest = examples.lengths[index].max()
        with out_of_memory("evaluation", len(index), longest, state.spec.micro_batch):
            own.append((index, row_outputs(state, examples, index)))
    parts = gather_object([(index, values.cpu().numpy()) for index, values in own])
    first = parts[0][1]
    whole = np.full((len(examples), first.shape[1]), np.nan, dtype=first.dtype)
    for index, logits in parts:
        whole[index] = logits
    if not np.isfinite(whole).all():
        raise Diverged(
            f"the model's outputs are not finite after step {state.journal.step}; no result"
        )
    return whole


def row_outputs(state: State, examples: Examples, index: np.ndarray) -> torch.Tensor:
    """Return the outputs (len(index), classes) that are kept of some rows, or their losses."""
    logits = forward(state, examples, index)
    if not state.spec.task.causal_lm:
        return logits.float()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    labels = labels_of(state, examples, index)
    return losses.row_losses(state.spec.task, logits, labels)[:, None]


def report(accelerator: Accelerator, what: str, row: dict[str, float]) -> None:
    """Print one line with an epoch's loss and scores on the main process."""
    if accelerator.is_main_process:
        shown = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        print(f"{what}: {text}", file=sys.stderr, flush=True)
