"""Bootstraps of rows and tasks: against the metrics' own code, closed forms, and simulations."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from loraudit.analysis import resampling
from loraudit.analysis.pooling import Cell, Spread, unpaired
from loraudit.analysis.resampling import (
    interquartile_difference,
    interquartile_mean,
    paired_bootstrap,
    resampled_scores,
    row_weights,
)
from loraudit.training.measures import MEASURES

pytestmark = pytest.mark.numerics

REFERENCES = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda y, p: scipy.stats.pearsonr(y, p).statistic,
    "spearman": lambda y, p: scipy.stats.spearmanr(y, p).statistic,
}


def classified(random, rows: int, right: float, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels, and predictions of which a share is right."""
    labels = random.integers(0, classes, rows)
    wrong = (labels + random.integers(1, classes, rows)) % classes
    return labels, np.where(random.random(rows) < right, labels, wrong)


@pytest.mark.parametrize("metric", REFERENCES)
def test_a_resamples_score_is_that_of_its_rows(metric, monkeypatch):
    monkeypatch.setattr(resampling, "AT_ONCE", 200)  # several parts
    random = np.random.default_rng(1)
    labels, predictions = classified(random, 60, 0.7)
    if metric in ("pearson", "spearman"):  # with ties
        labels = random.integers(0, 9, 60) / 2
        predictions = np.round(labels + random.normal(0, 1, 60), 1)
    weights = row_weights(60, 20)
    assert (weights.sum(1) == 60).all()
    drawn = [np.repeat(np.arange(60), row) for row in weights]
    expected = [REFERENCES[metric](labels[rows], predictions[rows]) for rows in drawn]
    found = resampled_scores(labels, predictions, weights, metric)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_paired_bootstrap_covers_the_known_interval():
    """Accuracy difference of 400 rows: near the normal interval of paired proportions."""
    random = np.random.default_rng(1)
    labels, left = classified(random, 400, 0.85)
    right = np.where(random.random(400) < 0.75, labels, 1 - labels)
    found = paired_bootstrap(labels, left, right, "accuracy")
    gaps = (left == labels).astype(float) - (right == labels)
    half = 1.96 * gaps.std() / 20
    assert found["difference"] == pytest.approx(gaps.mean())
    assert found["low"] == pytest.approx(gaps.mean() - half, abs=0.01)
    assert found["high"] == pytest.approx(gaps.mean() + half, abs=0.01)
    assert paired_bootstrap(labels, left, right, "accuracy") == found


@pytest.mark.parametrize("metric", REFERENCES)
def test_paired_bootstrap_is_scipys(metric):
    """Up to the draws: each side's end is known to a tenth of the interval."""
    random = np.random.default_rng(3)
    labels, left = classified(random, 120, 0.9)
    right = np.where(random.random(120) < 0.8, labels, 1 - labels)
    score = REFERENCES[metric]
    found = paired_bootstrap(labels, left, right, metric)
    assert found["difference"] == pytest.approx(score(labels, left) - score(labels, right))
    interval = scipy.stats.bootstrap(
        (np.arange(120),),
        lambda rows: score(labels[rows], left[rows]) - score(labels[rows], right[rows]),
        **{"n_resamples": 500, "vectorized": False, "method": "percentile", "rng": random},
    ).confidence_interval
    width = interval.high - interval.low
    assert [found["low"], found["high"]] == pytest.approx(list(interval), abs=0.1 * width)


def test_matthews_of_three_classes_and_constant_predictions():
    labels, predictions = classified(np.random.default_rng(2), 90, 0.6, classes=3)
    once = np.ones((1, 90), dtype=np.uint8)
    found = resampled_scores(labels, predictions, once, "matthews")
    assert found == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions))


@pytest.mark.parametrize("metric", REFERENCES)
@pytest.mark.parametrize("class_one", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_a_score_is_undefined_where_the_runs_own_metric_says_so(metric, class_one, constant):
    """Constant predictions, and labels of one class: NaN or 0, as measures.py has it."""
    labels, other = classified(np.random.default_rng(2), 90, 0.6)
    labels = labels if class_one else np.zeros(90)
    predictions = np.zeros(90) if constant else other
    once = np.ones((1, 90), dtype=np.uint8)
    (found,) = resampled_scores(labels, predictions, once, metric)
    assert found == pytest.approx(MEASURES[metric](labels, predictions), nan_ok=True)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 2.7123456])
def test_a_correlation_of_constant_values_is_undefined_whatever_their_mean_is_rounded_to(
    metric, value
):
    labels = np.random.default_rng(4).uniform(0, 5, 101)
    for one, two in ((labels, np.full(101, value)), (np.full(101, value), labels)):
        found = resampled_scores(one, two, row_weights(101, 50), metric)
        assert np.isnan(found).all()


def test_a_resample_that_drew_one_value_alone_has_no_correlation():
    values = np.array([2.7123456] * 3 + [1.0])
    weights = np.array([[1, 1, 2, 0], [1, 1, 1, 1]], dtype=np.uint8)
    found = resampled_scores(np.arange(4.0), values, weights, "pearson")
    assert np.isnan(found).tolist() == [True, False]


def test_a_bootstrap_of_an_undefined_score_has_no_number():
    labels, left = classified(np.random.default_rng(2), 40, 0.9)
    found = paired_bootstrap(labels, left, np.ones(40), "pearson", 50)
    assert all(found[name] != found[name] for name in ("difference", "low", "high"))
    assert found["undefined"] == 50


def test_a_resample_without_a_score_is_left_out_and_counted():
    """One row of 12 is of class 1 for one side: a third of the resamples lack it."""
    labels, right = np.zeros(12), np.zeros(12)
    labels[0] = right[0] = 1
    left = np.where(np.arange(12) < 2, 1 - labels, labels)  # row 0 wrong, row 1 wrong
    found = paired_bootstrap(labels, right, left, "f1", 2000)
    assert found["difference"] == pytest.approx(1.0)  # F1 of 1 and of 0
    assert found["undefined"] == pytest.approx(2000 * (11 / 12) ** 12, rel=0.1)
    assert (found["low"], found["high"]) == (1.0, 1.0)


def test_the_rows_error_of_a_difference_keeps_what_two_methods_share():
    """McNemar's: only the rows on which one alone is right count."""
    random = np.random.default_rng(3)
    labels, left = classified(random, 400, 0.8)
    right = np.where(random.random(400) < 0.05, 1 - left, left)
    weights = row_weights(400)
    one, two = (resampled_scores(labels, side, weights, "accuracy") for side in (left, right))
    gaps = (left == labels).astype(float) - (right == labels)
    assert (one - two).std() == pytest.approx(gaps.std() / 20, rel=0.1)
    assert (one - two).std() < 0.5 * math.hypot(one.std(), two.std())


def test_seeds_and_rows_together_are_a_crossed_bootstrap():
    """Many seeds: the error that is added up is that of drawing seeds and rows at once."""
    random = np.random.default_rng(4)
    seeds, rows = 40, 300
    skill = random.normal(0, 1, rows)  # what is hard for one is hard for all
    right = {
        side: (
            skill + random.normal(level, 0.3, (seeds, 1)) + random.normal(0, 1, (seeds, rows)) > 0
        )
        for side, level in (("a", 1.0), ("b", 0.8))
    }
    means = {side: values.mean(1) for side, values in right.items()}
    spreads = {side: Spread(scores.var(ddof=1), seeds - 1) for side, scores in means.items()}
    cells = [Cell(means[side].mean(), seeds, spreads[side]) for side in "ab"]
    weights = row_weights(rows)
    row_part = np.std(
        np.subtract(*((weights @ right[side].mean(0)) / rows for side in "ab")), ddof=1
    )
    added = unpaired(*cells, most=math.inf).beyond(row_part, rows - 1)
    drawn = []
    for _ in range(2000):
        at = random.integers(0, rows, rows)
        one, two = (right[side][random.integers(0, seeds, seeds)][:, at].mean() for side in "ab")
        drawn.append(one - two)
    assert added.error == pytest.approx(np.std(drawn), rel=0.08)


def test_intervals_for_the_task_cover_what_new_seeds_and_new_rows_have():
    """Three seeds, 200 rows: the true difference is 0; without the rows' part far too few cover."""
    random = np.random.default_rng(5)
    weights = row_weights(200, 200).astype(float) / 200
    covered = {"task": 0, "rows": 0}
    for _ in range(400):
        skill = random.normal(0, 1, 200)
        taste = {side: random.normal(0, 1.2, 200) for side in "ab"}  # a method's own hard rows
        right = {
            side: skill
            + taste[side]
            + random.normal(1, 0.02, (3, 1))
            + random.normal(0, 0.3, (3, 200))
            > 0
            for side in "ab"
        }
        means = {side: values.mean(1) for side, values in right.items()}
        cells = [Cell(means[side].mean(), 3, Spread(means[side].var(ddof=1), 2)) for side in "ab"]
        here = unpaired(*cells, most=4)
        error = np.std(weights @ (right["a"].mean(0) - right["b"].mean(0)), ddof=1)
        for name, found in (("rows", here), ("task", here.beyond(error, 199))):
            low, high = found.interval(0.95)
            covered[name] += low <= 0 <= high
    assert 0.92 <= covered["task"] / 400 <= 0.99
    assert covered["rows"] / 400 < 0.88


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    scores = np.array([[0.1, 0.5, 0.6, 0.9], [0.2, 0.55, 0.65, 5.0]])
    assert interquartile_mean(scores) == pytest.approx(np.mean([0.5, 0.55, 0.6, 0.65]))
    assert interquartile_mean(np.arange(10)) == scipy.stats.trim_mean(np.arange(10), 0.25)


def test_tasks_count_by_gain_and_not_by_level():
    """A task of low scores is not trimmed away for its level; one run that fails is."""
    right = [np.array([0.6, 0.61, 0.59]), np.array([0.9, 0.91, 0.89])]
    left = [scores + 0.05 for scores in right]
    found = interquartile_difference(left, right)
    assert found["difference"] == pytest.approx(0.05)
    lower = interquartile_difference([left[0] - 0.3, left[1]], [right[0] - 0.3, right[1]])
    assert lower == pytest.approx(found)
    assert found["low"] < 0.05 < found["high"]
    failed = [left[0], np.array([0.95, 0.96, 0.5])]
    assert interquartile_difference(failed, right)["difference"] > 0.04


@pytest.mark.parametrize(("tasks", "runs", "least"), [(2, 3, 0.84), (8, 3, 0.88), (8, 10, 0.90)])
def test_the_aggregates_interval_covers_as_said(tasks, runs, least):
    random = np.random.default_rng(tasks + runs)
    covered = 0
    for _ in range(300):
        left, right = (random.normal(0, 1, (tasks, runs)) for _ in range(2))
        found = interquartile_difference(list(left), list(right), resamples=200)
        covered += found["low"] <= 0 <= found["high"]
    assert least <= covered / 300 <= 0.98
