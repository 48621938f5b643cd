"""What the training loop has done so far; checkpoints hold it, and it is written at the end."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from loraudit.base.files import write_atomic
from loraudit.data.batches import Examples
from loraudit.studies.spec import EpochChoice, RunSpec
from loraudit.training import metrics
from loraudit.training.predictions import prediction_table


@dataclass
class Best:
    """The first epoch with the best score so far on some rows, and its weights if they are kept."""

    epoch: int = 0
    value: float = -math.inf
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    def offer(
        self,
        epoch: int,
        value: float,
        model: torch.nn.Module | None,
        ranks: dict[str, int] | None = None,
    ) -> None:
        """Keep this epoch if it is better, and the weights of `model` if one is given.

        `value` is the higher, the better the epoch is (`scores.goodness`). `ranks` are the layers'
        ranks, if the method moves them. An undefined value (NaN) is worse than any other, and as
        the first it is kept.
        """
        value = -math.inf if math.isnan(value) else value
        if value > self.value or not self.epoch:
            self.epoch, self.value, self.ranks = epoch, value, ranks or {}
            self.weights = trained_weights(model) if model else {}


@dataclass
class Journal:
    """How far the loop is and what it has measured, as plain values and tensors for checkpoints."""

    epoch: int = 1
    """the epoch that is being trained, from 1"""
    batch: int = 0
    """number of this epoch's batches that are trained"""
    loss: float = 0.0
    """the loss summed over the rows of these batches"""
    step: int = 0
    """optimizer steps done in all epochs"""
    pending: bool = False
    """whether the method's controller still has to act on the last step"""
    tokens: dict[str, int] = field(default_factory=lambda: {"real": 0, "padded": 0})
    """tokens trained on, without padding and with it"""
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})
    """wall time spent training and evaluating"""
    cpu_seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})
    """processor time of this process, all its threads together, spent on the same"""
    history: list[dict] = field(default_factory=list)
    """epoch, step, training loss and scores: a row for each epoch that is done"""
    logits: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """logits (rows, classes) by epoch and split, of chosen epochs and the last one only"""
    choices: dict[EpochChoice, Best] = field(default_factory=dict)
    """the best epoch so far by each choice that the run makes: "selected", "best" """
    counts: dict[str, float] = field(default_factory=dict)
    """what a closed fit has chosen, for the run's record"""
    ranks: list[dict] = field(default_factory=list)
    """step, layer and rank: a row for each layer at the start and whenever ranks have moved"""
    diverged: int | None = None
    """the step after which the loss or an output was not finite, of a run that only tunes"""
    resumed: list[dict] = field(default_factory=list)
    """step of each checkpoint from which the run was resumed, and the machine that saved it"""

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time of a block to what was spent training ("train") or evaluating."""
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.seconds[what] += time.monotonic() - wall
        self.cpu_seconds[what] += time.process_time() - cpu

    def chosen(self, last: int) -> dict[EpochChoice, int]:
        """Return the epoch that each choice came to; `last` is the run's last epoch.

        A run that diverged has none.
        """
        if self.diverged is not None:
            return {}
        return {choice: best.epoch for choice, best in self.choices.items()} | {"last": last}


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the trainable parameters."""
    named = model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


@torch.no_grad()
def put_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy what `trained_weights` returned back into the model."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


def write_journal(
    out: Path, journal: Journal, examples: dict[str, Examples], spec: RunSpec
) -> None:
    """Write history.csv and predictions.parquet, and ranks.csv if layers' ranks may differ.

    Of a run that diverged these have the epochs that were done, and no predictions.
    """

    def csv(rows: list[dict], path: Path, *columns: str) -> None:
        table = pd.DataFrame(rows, columns=None if rows else list(columns))
        write_atomic(path, lambda new: table.to_csv(new, index=False, na_rep="nan"))

    logits = {
        epoch: {split: values.numpy() for split, values in splits.items()}
        for epoch, splits in journal.logits.items()
        if journal.diverged is None
    }
    predictions = prediction_table(
        logits, examples, predict=lambda values: metrics.predictions(values, spec.task)
    )
    csv(journal.history, out / "history.csv", "epoch", "step", "train_loss")
    if journal.ranks:
        csv(journal.ranks, out / "ranks.csv")
    write_atomic(
        out / "predictions.parquet", lambda path: predictions.to_parquet(path, index=False)
    )
