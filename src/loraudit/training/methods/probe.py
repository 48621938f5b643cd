"""The logistic probe: a logistic regression on the frozen model's mean-pooled features.

It says how much of a task can be read off the encoder as it is. Beside it, `head` trains the
model's own classification head by gradient steps, on the first token.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from loraudit.adapters.base_layers import freeze
from loraudit.base.errors import UserError
from loraudit.data.batches import Examples
from loraudit.studies.method_settings import ProbeSettings
from loraudit.studies.spec import RunSpec, derive_seed
from loraudit.training import metrics
from loraudit.training.loop import outputs
from loraudit.training.method import ClosedFit

if TYPE_CHECKING:
    from loraudit.training.state import State

ITERATIONS = 1000
"""The most iterations of scikit-learn's solver (L-BFGS); a fit that needs more warns of it."""


class Probe(ClosedFit):
    """scikit-learn's logistic regression in place of the model's head.

    The features are the mean over a row's tokens of the last hidden states. C, the inverse strength
    of the L2 penalty, is chosen on rows held out of the training split; the regression that is
    scored and saved is then fitted to all training rows with that C.
    """

    def apply(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        """Freeze the model, and let a linear layer on its mean-pooled features give the scores."""
        freeze(model, spec.model.head, train_head=False)
        layer = nn.Linear(model.config.hidden_size, len(spec.task.classes))
        nn.init.zeros_(layer.weight)
        model.set_submodule(spec.model.output_layer, layer)
        model.forward = functools.partial(_scores, model, spec.model.output_layer)
        return model

    def fit(self, state: "State", train: Examples) -> float:
        """Choose C, fit to all training rows, and return the mean loss (cross-entropy)."""
        spec, journal = state.spec, state.journal
        if journal.batch:  # a resumed run, which had been fitted
            return journal.loss
        with journal.timed("train"):
            features = _features(state, train)
            chosen = choose_strength(features, train.labels, spec)
            weight, bias, loss = regression(features, train.labels, chosen, spec)
            with torch.no_grad():
                layer = state.bare.get_submodule(spec.model.output_layer)
                layer.weight.copy_(torch.from_numpy(weight))
                layer.bias.copy_(torch.from_numpy(bias))
        journal.counts["C"] = chosen
        journal.step += 1
        journal.batch, journal.loss = 1, loss
        return loss

    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save the fitted layer as probe.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        name = spec.model.output_layer
        layer = model.get_submodule(name)
        state = {f"{name}.{k}": v.detach().cpu().contiguous() for k, v in layer.named_parameters()}
        save_file(state, folder / f"{spec.method}.safetensors", metadata={"format": "pt"})


def _scores(model: nn.Module, output: str, **batch: Tensor) -> SequenceClassifierOutput:
    """Return the scores that the module called `output` gives on the mean-pooled features."""
    hidden = model.base_model(**batch).last_hidden_state
    return SequenceClassifierOutput(
        logits=model.get_submodule(output)(mean_pooled(hidden, batch.get("attention_mask")))
    )


def mean_pooled(
    hidden: Float[Tensor, "rows tokens d"], mask: Tensor | None
) -> Float[Tensor, "rows d"]:
    """Average over the tokens that the mask (rows, tokens) marks with 1; None marks all."""
    if mask is None:
        return hidden.mean(1)
    real = mask[..., None].to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1)


def _features(state: "State", train: Examples) -> Float[np.ndarray, "n d"]:
    """Return the features of all training rows."""
    name = state.spec.model.output_layer
    layer = state.bare.get_submodule(name)
    tokens = int(train.lengths.sum())
    state.journal.tokens = {"real": tokens, "padded": tokens}  # rows of like length are together
    state.bare.set_submodule(name, nn.Identity())
    try:
        return outputs(state, train, "features of the training rows")
    finally:
        state.bare.set_submodule(name, layer)


def choose_strength(features: Float[np.ndarray, "n d"], labels: np.ndarray, spec: RunSpec) -> float:
    """Return the C with the best headline score on held-out rows; of equal ones the smallest.

    The run's seed draws the held-out rows, the same share of each class.
    """
    settings = spec.settings
    assert isinstance(settings, ProbeSettings)  # the spec sees to it
    generator = np.random.default_rng(derive_seed(spec.seed, "probe"))
    held = np.zeros(len(labels), dtype=bool)
    for number in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == number))
        held[rows[: int(settings.held_out * len(rows))]] = True
    if not held.any():
        raise UserError(
            f"probe.held_out = {settings.held_out:g}: no row of {len(labels)} training rows is "
            "held out (legal: a share that leaves at least one row of a class)"
        )

    def score(strength: float) -> float:
        weight, bias, _ = regression(features[~held], labels[~held], strength, spec)
        logits = features[held] @ weight.T + bias
        value = metrics.compute(logits, labels[held], spec.task)[spec.task.headline]
        return -np.inf if np.isnan(value) else value

    return max(sorted(settings.C), key=score)


def regression(
    features: Float[np.ndarray, "n d"], labels: np.ndarray, strength: float, spec: RunSpec
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit a logistic regression.

    Returns:
        Weight (classes, d) and bias (classes,), whose softmax gives the probabilities, and the mean
        cross-entropy on these rows.

    Raises:
        UserError: a class has no row.
    """
    classes = range(len(spec.task.classes))
    for number in classes:
        if number not in labels:
            name = spec.task.classes[number]
            raise UserError(f"method 'probe': no training row of class {number} ({name!r})")
    fitted = LogisticRegression(C=strength, max_iter=ITERATIONS).fit(features, labels)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # two classes: scikit-learn gives the log odds of the second
        weight, bias = (np.concatenate([-part, part]) / 2 for part in (weight, bias))
    loss = log_loss(labels, fitted.predict_proba(features), labels=list(classes))
    return weight.astype(np.float32), bias.astype(np.float32), float(loss)
