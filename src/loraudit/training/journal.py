"""What the training loop has done so far: kept in checkpoints, and written out at the end."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from loraudit.base.files import write_atomic
from loraudit.data.batches import Examples
from loraudit.studies.spec import RunSpec
from loraudit.training import metrics
from loraudit.training.predictions import prediction_table


@dataclass
class Best:
    """The best epoch so far on the validation split (ties: the earlier), and its weights."""

    epoch: int = 0
    value: float = -math.inf
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    def offer(
        self, epoch: int, value: float, model: torch.nn.Module, ranks: dict[str, int] | None = None
    ) -> None:
        """Keep this epoch if it is better; `ranks` where the method moves them."""
        if value > self.value:
            self.epoch, self.value, self.ranks = epoch, value, ranks or {}
            self.weights = trained_weights(model)

    def restore(self, model: torch.nn.Module) -> None:
        """Put the best epoch's weights back into the model."""
        put_weights(model, self.weights)


@dataclass
class Journal:
    """Where the loop is and what it has found: plain values and tensors, kept in checkpoints."""

    epoch: int = 1
    """in work"""
    batch: int = 0
    """batches of this epoch that are done"""
    loss: float = 0.0
    """summed over their rows"""
    step: int = 0
    pending: bool = False
    """the method has not yet acted on this step"""
    tokens: dict[str, int] = field(default_factory=lambda: {"real": 0, "padded": 0})
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})
    history: list[dict] = field(default_factory=list)
    logits: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """of the best and of the last epoch, by split"""
    best: Best = field(default_factory=Best)
    ranks: list[dict] = field(default_factory=list)
    """step, layer and rank: a row per layer at the start and whenever the method moved ranks"""
    resumed: list[dict] = field(default_factory=list)
    """per checkpoint taken up: its step, and the processor (name and kind) that had come so far"""


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the trainable parameters."""
    named = model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


@torch.no_grad()
def put_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put `trained_weights` back."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


def write_journal(
    out: Path, journal: Journal, examples: dict[str, Examples], spec: RunSpec
) -> None:
    """Write history.csv, predictions.parquet and, where ranks move, ranks.csv."""

    def csv(rows: list[dict], path: Path) -> None:
        write_atomic(path, lambda new: pd.DataFrame(rows).to_csv(new, index=False))

    logits = {
        epoch: {split: values.numpy() for split, values in splits.items()}
        for epoch, splits in journal.logits.items()
    }
    predictions = prediction_table(
        logits, examples, predict=lambda values: metrics.predictions(values, spec.task)
    )
    csv(journal.history, out / "history.csv")
    if journal.ranks:
        csv(journal.ranks, out / "ranks.csv")
    write_atomic(
        out / "predictions.parquet", lambda path: predictions.to_parquet(path, index=False)
    )
