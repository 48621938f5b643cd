"""Planted sick runs are seen, and healthy ones are not called sick."""

import numpy as np
import pytest
import torch

from loraudit.training.health import collapsed, unmoved
from tiny import make_spec, make_task, tiny_model

LABELS = np.array([0] * 60 + [1] * 40)


def logits(predicted: np.ndarray, classes: int = 2) -> np.ndarray:
    return np.eye(classes)[predicted]


def flipped(count: int) -> np.ndarray:
    """Return predictions that are right but for `count` rows, in equal parts of both classes."""
    wrong = np.r_[0 : count // 2, 60 : 60 + count - count // 2]
    return np.where(np.isin(range(100), wrong), 1 - LABELS, LABELS)


@pytest.mark.parametrize(
    ("headline", "predicted", "sick"),
    [
        ("accuracy", LABELS, False),
        ("accuracy", np.zeros(100, int), True),
        ("accuracy", np.ones(100, int), True),
        ("accuracy", np.array([1] + [0] * 99), True),  # 99 % are one class
        ("accuracy", flipped(38), False),
        ("accuracy", flipped(40), True),  # 60 % right, as the larger class would be
        ("matthews", flipped(40), False),  # above 0, which a constant answer has
        ("matthews", 1 - LABELS, True),
        ("f1", flipped(40), False),
        ("f1", np.zeros(100, int), True),
    ],
)
def test_no_more_than_a_constant_answer_is_collapsed(headline, predicted, sick):
    task = make_task(metrics=[headline], headline=headline)
    assert collapsed(logits(predicted), LABELS, task) == sick


def test_where_all_labels_are_one_class_nothing_is_above_a_constant_answer():
    constant = np.zeros(100, int)
    task = make_task(metrics=["accuracy"], headline="accuracy")
    assert collapsed(logits(LABELS), constant, task)
    assert collapsed(logits(constant), constant, task)


@pytest.mark.parametrize(("spread", "sick"), [(1.0, False), (0.01, False), (1e-4, True), (0, True)])
def test_a_regression_with_constant_outputs_is_collapsed(spread, sick):
    task = make_task(classes=[], metrics=["pearson"], headline="pearson")
    labels = np.random.default_rng(0).normal(size=100)
    assert collapsed((3 + spread * labels)[:, None], labels, task) == sick


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_matrices_that_never_left_zero_are_named(method):
    from loraudit.training.method import method_of

    spec = make_spec(method=method)
    model = method_of(spec).apply(tiny_model(), spec)
    every = [name for name, _ in model.named_parameters() if "lora_B" in name]
    assert list(unmoved(model)) == every and len(every) == 4
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in every[1:]:
            parameters[name][0, 0] = 1e-9
    assert unmoved(model) == (every[0],)
