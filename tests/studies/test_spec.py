"""Runs as values: everything that can change a number, checked when read."""

from typing import get_args

import pytest

from loraudit.base.errors import UserError
from loraudit.studies.entries import FITTING, Metric
from loraudit.studies.spec import RunSpec, derive_seed, digest
from loraudit.studies.values import validated
from loraudit.training.measures import MEASURES
from tiny import make_spec, make_task


def test_a_spec_survives_json_and_its_digest_sees_every_field():
    spec = make_spec()
    assert validated(RunSpec, spec.model_dump(mode="json"), "x") == spec
    assert digest(spec) != digest(make_spec(adam_beta2=0.98))


def test_derived_seeds_differ_by_purpose():
    seeds = {derive_seed(0, "head"), derive_seed(0, "order", 1), derive_seed(1, "head")}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_std": 0.02}, "init_std 0.02 goes with init 'gaussian' only"),
        ({"init": "gaussian", "init_std": 0.0}, "init_std = 0.0: .*greater than 0"),
        ({"validate_epochs": "chosen"}, "set selection_rows .or validate_epochs: all or last"),
        (
            {"validate_epochs": "last", "selection_rows": 9},
            "'last' reports the last epoch, so that selection_rows 9 would choose none: leave them",
        ),
        ({"warm_start": {"run": "x", "tensors": "all"}}, "'all' is not known|spec_sha256"),
    ],
)
def test_inconsistent_runs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        make_spec(**change)


def test_published_sizes_are_of_every_split():
    with pytest.raises(ValueError, match="rows: name each of train, validation"):
        make_task(rows={"train": 5})


def test_a_further_split_may_not_take_a_splits_name():
    with pytest.raises(ValueError, match="'train' and 'validation' are taken"):
        make_task(also_validate={"validation": "other"})


@pytest.mark.parametrize(
    ("classes", "metric", "reason"),
    [
        (
            ["a", "b", "c"],
            "f1",
            r"'f1' is of two classes, and the task has 3 classes \(legal: a",
        ),
        (["a", "b"], "pearson", "'pearson' is of a number to predict, and the task has 2 classes"),
        (
            [],
            "accuracy",
            r"is of classes, and the task has a number to predict \(legal: pear",
        ),
    ],
)
def test_a_metric_that_does_not_fit_its_task_is_refused(classes, metric, reason):
    with pytest.raises(ValueError, match=reason):
        make_task(classes=classes, metrics=[metric], headline=metric)


def test_every_metric_fits_some_task():
    assert set(FITTING) == set(MEASURES) == set(get_args(Metric))
