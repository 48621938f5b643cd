"""Which of two scores is the better one, and in what differences are given."""

import math

import pytest

from loraudit.report import units
from loraudit.studies.scores import goodness, sign, unit_of, worst_score


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson", "f1_selection"])
def test_of_labels_the_highest_is_the_best(metric):
    assert goodness(metric, 0.9) > goodness(metric, 0.8) > goodness(metric, math.nan)
    assert goodness(metric, worst_score(metric)) <= goodness(metric, -1.0)
    assert (unit_of(metric), sign(metric)) == ("points", 1)


@pytest.mark.parametrize("metric", ["log_loss", "perplexity", "log_loss_selection"])
def test_of_text_the_lowest_is_the_best(metric):
    assert goodness(metric, 2.0) > goodness(metric, 3.0) > goodness(metric, math.nan)
    assert goodness(metric, worst_score(metric)) < goodness(metric, 1e9)
    assert sign(metric) == -1


def test_numbers_are_written_in_their_unit():
    assert units.score("accuracy", 0.8125, 0.004) == "81.2 ± 0.4"
    assert units.score("log_loss", 3.21449, 0.01) == "3.214 ± 0.010 nats"
    assert units.score("perplexity", 24.91) == "24.910"
    assert units.score("log_loss", math.nan) == "undefined"
    assert units.difference("accuracy", 0.012) == "+1.2"
    assert units.difference("log_loss", -0.0312) == "-0.031 nats"
    assert units.interval("log_loss", -0.1, 0.02) == "[-0.100, +0.020]"
    assert units.interval("f1", -0.1, 0.02) == "[-10.0, +2.0]"
    assert units.interval("log_loss", math.nan, 1) == ""
    assert units.axis_name("last epoch", "log_loss") == (
        "last epoch (nats per token; lower is better)"
    )
    assert units.axis_name("last epoch", "f1") == "last epoch"
