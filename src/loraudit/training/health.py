"""Whether a run is sick: it predicts one class only, or a part of its adapter never moved."""

import math

import numpy as np
import torch

from loraudit.studies.entries import TaskEntry
from loraudit.training.measures import MEASURES
from loraudit.training.metrics import predictions

ALMOST_ALL = 0.99
"""A run whose predictions are of one class by at least this share has collapsed."""

CONSTANT = 1e-3
"""A regression whose outputs spread less than this share of the labels' spread has collapsed."""


def collapsed(logits: np.ndarray, labels: np.ndarray, task: TaskEntry) -> bool:
    """Tell whether a model has learnt no more than a constant answer.

    That is: at least 99 % of its predictions are of one class, or its headline score is not above
    that of the most frequent class given to every row. Of a regression: its outputs are constant,
    up to a thousandth of the labels' standard deviation. Where text is predicted there is no
    constant answer, and the result is False.

    Args:
        logits: (n, classes), or (n, 1) of a regression or of text.
        labels: (n,) classes or numbers.
        task: says what the labels are, and the headline metric.
    """
    if task.causal_lm:
        return False
    found = predictions(logits, task)
    if task.regression:
        return bool(found.std() <= CONSTANT * labels.std())
    counts = np.bincount(found.astype(int))
    if counts.max() >= ALMOST_ALL * len(found):
        return True
    most = np.full(len(labels), np.bincount(labels.astype(int)).argmax())
    measure = MEASURES[task.headline]
    score, constant = float(measure(labels, found)), float(measure(labels, most))
    return math.isnan(score) or score <= constant  # never true where the constant's is undefined


def unmoved(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the matrices B (of B A) that are all zeros; rank 0 does not count."""
    named = ((name, p) for name, p in model.named_parameters() if "lora_B" in name and p.numel())
    return tuple(name for name, p in named if not p.any())
