"""GLUE's metrics through `evaluate`, with no network."""

import numpy as np
import pytest
import sklearn.metrics

from loraudit.training import metrics
from loraudit.training.measures import MEASURES
from tiny import make_task

pytestmark = pytest.mark.numerics


def test_classification_by_hand():
    """2 true positives, 1 false positive, 1 false negative, 2 true negatives."""
    task = make_task(metrics=["accuracy", "f1", "matthews"])
    labels = np.array([1, 1, 1, 0, 0, 0])
    predicted = np.array([1, 1, 0, 1, 0, 0])
    found = metrics.compute(np.eye(2)[predicted], labels, task)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["matthews"] == pytest.approx((2 * 2 - 1 * 1) / 9)


def test_correlations_by_definition():
    task = make_task(classes=[], metrics=["pearson", "spearman"], headline="pearson")
    labels, values = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.1, 0.2, 0.9, 0.4])
    found = metrics.compute(values[:, None], labels, task)
    assert found["pearson"] == pytest.approx(np.corrcoef(labels, values)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef([0, 1, 2, 3], [0, 1, 3, 2])[0, 1])


@pytest.mark.parametrize(("values", "labels"), [([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [1, 1, 1])])
def test_a_correlation_of_a_constant_is_undefined(values, labels):
    task = make_task(classes=[], metrics=["pearson", "spearman"], headline="pearson")
    found = metrics.compute(np.array(values, dtype=float)[:, None], np.array(labels, float), task)
    assert np.isnan([found["pearson"], found["spearman"]]).all()


@pytest.mark.parametrize(
    ("predicted", "labels", "f1", "matthews"),
    [
        ([0, 0], [0, 0], np.nan, np.nan),  # no positive, none predicted: 0 / 0
        ([0, 0], [0, 1], 0.0, 0.0),  # F1 is 2 tp / (2 tp + fp + fn); Matthews is 0 in the limit
        ([0, 1], [0, 0], 0.0, np.nan),
        ([1, 1], [1, 1], 1.0, np.nan),
    ],
)
def test_f1_and_matthews_of_constants(predicted, labels, f1, matthews):
    task = make_task(metrics=["f1", "matthews"], headline="f1")
    found = metrics.compute(np.eye(2)[predicted], np.array(labels), task)
    assert found == pytest.approx({"f1": f1, "matthews": matthews}, nan_ok=True)


@pytest.mark.parametrize("rows", [1, 7, 408])
def test_accuracy_is_scikit_learns_to_the_last_bit(rows):
    random = np.random.default_rng(rows)
    labels, predicted = random.integers(0, 3, (2, rows))
    wanted = sklearn.metrics.accuracy_score(labels, predicted)
    assert float(MEASURES["accuracy"](labels, predicted)) == wanted
