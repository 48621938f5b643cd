"""The loss of a batch, by what the task predicts: classes, a number, or the tokens of a text."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraudit.data.batches import NO_LOSS
from loraudit.studies.entries import TaskEntry


def summed_loss(task: TaskEntry, logits: Tensor, labels: Tensor) -> Float[Tensor, ""]:
    """Return cross-entropy (or squared error, for regression) summed over rows, or over tokens.

    Args:
        task: says what is predicted.
        logits: (rows, classes), (rows, 1) of a regression, (rows, tokens, vocabulary) of text.
        labels: (rows,), or (rows, tokens) of text, `NO_LOSS` for tokens that carry no loss
            (`batches.labels_tensor`).
    """
    if task.causal_lm:
        scores, tokens = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return cross_entropy(scores, tokens, ignore_index=NO_LOSS, reduction="sum")
    if task.regression:
        return ((logits[:, 0] - labels.to(logits.dtype)) ** 2).sum()
    return cross_entropy(logits, labels, reduction="sum")


def row_losses(task: TaskEntry, logits: Tensor, labels: Tensor) -> Float[Tensor, "rows"]:
    """Return each row's loss; where text is predicted, the sum over its tokens in `wide`."""
    if task.causal_lm:
        return token_losses(logits, labels).sum(1, dtype=wide(logits.device))
    if task.regression:
        return (logits[:, 0] - labels.to(logits.dtype)) ** 2
    return cross_entropy(logits, labels, reduction="none")


def wide(device: torch.device) -> torch.dtype:
    """Return float64 or, on Apple's GPUs, which lack it, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def token_losses(logits: Tensor, labels: Tensor) -> Float[Tensor, "rows tokens"]:
    """Return the loss of each token but the first, 0 for one that carries none; in nats."""
    scores, tokens = logits[:, :-1], labels[:, 1:]
    found = cross_entropy(
        scores.flatten(0, 1), tokens.flatten(), ignore_index=NO_LOSS, reduction="none"
    )  # of two dimensions: of three, CUDA has no deterministic kernel
    return found.view(tokens.shape)
