"""Statistics against scipy, hand-computed cases and symmetries."""

import math
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind

from loraudit.analysis.statistics import (
    READINGS,
    Mean,
    aggregate,
    agreement,
    exact,
    exceeds,
    expected_range,
    holm,
    holm_factors,
    mcnemar,
    mean_of,
    median_widening,
    paired,
    same_rows,
    spread_to_sd,
    summarise,
    tost,
    welch,
)
from loraudit.studies.study_file import Reading

pytestmark = pytest.mark.numerics

scores = st.lists(st.floats(0, 1), min_size=2, max_size=9)


def test_a_case_by_hand():
    """The poster's five MRPC runs (of 408 rows), best epoch: 87.75, 87.50 ± 0.71 with n - 1."""
    found = summarise([100 * right / 408 for right in (359, 355, 358, 360, 353)])
    assert found["n"] == 5
    assert found["median"] == pytest.approx(87.75, abs=0.01)
    assert found["mean"] == pytest.approx(87.50, abs=0.01)
    assert round(found["sd"], 2) == 0.71


@given(scores)
def test_interval_is_scipys(values):
    found = summarise(values)
    if found["sd"] > 1e-12:
        low, high = scipy.stats.t.interval(
            0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
        )
        assert found["low"] == pytest.approx(low, abs=1e-9)
        assert found["high"] == pytest.approx(high, abs=1e-9)


@given(scores, st.randoms())
def test_the_order_of_seeds_changes_nothing(values, random):
    shuffled = random.sample(values, len(values))
    assert summarise(values) == summarise(shuffled)


def test_one_seed_has_no_spread():
    found = summarise([0.8])
    assert (found["n"], found["mean"]) == (1, 0.8)
    assert all(math.isnan(found[name]) for name in ("sd", "low", "high"))
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def tidy_rows() -> pd.DataFrame:
    common = {"task": "t", "model": "m", "label": "", "metric": "accuracy"}
    rows = [
        {**common, "method": "lora", "rank": 8, "targets": "q+v", "best": best, "last": last}
        for best, last in ((0.8, 0.7), (0.9, 0.9))
    ]
    rows.append(
        {**common, "method": "head", "rank": None, "targets": None, "best": 0.6, "last": 0.5}
    )
    return pd.DataFrame(rows).assign(parameters_trainable=[5, 5, 1])


def test_aggregate_keeps_cells_without_a_rank():
    found = aggregate(tidy_rows()).set_index("method")
    assert list(found.n) == [2, 1]
    assert found.loc["lora", "best_mean"] == pytest.approx(0.85)
    assert found.loc["lora", "last_sd"] == pytest.approx(math.sqrt(0.02))
    assert found.loc["head", "last_median"] == 0.5


def predictions(rows, values) -> pd.DataFrame:
    table = pd.DataFrame({"split": "validation", "epoch": 2, "row": rows, "logit_0": values})
    return table.assign(prediction=(table.logit_0 > 0).astype(int))


def test_agreement_pairs_by_row_and_uses_the_last_epoch():
    left = predictions([0, 1, 2], [1.0, -1.0, 2.0])
    earlier = left.assign(epoch=1, prediction=9)
    right = predictions([2, 1, 0], [2.5, -1.0, -1.0])
    found = agreement(*same_rows(pd.concat([earlier, left]), right))
    assert found == {
        "rows": 3,
        "equal_share": pytest.approx(2 / 3),
        "largest_logit_difference": pytest.approx(2.0),
    }
    with pytest.raises(ValueError, match="different rows"):
        same_rows(left, predictions([0, 1, 3], [1.0, 1.0, 1.0]))


samples = st.lists(st.floats(0.1, 0.9), min_size=3, max_size=8).filter(lambda x: np.std(x) > 1e-3)


@given(samples, samples)
def test_welch_is_scipys(left, right):
    found = welch(mean_of(left), mean_of(right))
    reference = scipy.stats.ttest_ind(left, right, equal_var=False)
    assert found["p"] == pytest.approx(reference.pvalue, rel=1e-9)
    interval = reference.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


@given(samples)
def test_an_exact_second_number_is_the_one_sample_test(values):
    reference = scipy.stats.ttest_1samp(values, 0.5)
    assert welch(mean_of(values), exact(0.5))["p"] == pytest.approx(reference.pvalue, rel=1e-9)


def test_one_published_run_is_one_draw_and_not_the_truth():
    """The interval for a further draw: s sqrt(1 + 1/n), n - 1 degrees of freedom."""
    ours = Mean(0.881, 0.002, 5)
    found = welch(ours, Mean(0.887, 0.002, 1))
    half = scipy.stats.t.ppf(0.975, 4) * 0.002 * math.sqrt(1 + 1 / 5)
    assert found["high"] - found["difference"] == pytest.approx(half)
    assert found["p"] > welch(ours, exact(0.887))["p"]


@given(samples, samples, st.floats(0.001, 0.2))
def test_tost_is_statsmodels(left, right, margin):
    reference = ttost_ind(np.array(left), np.array(right), -margin, margin, usevar="unequal")[0]
    assert tost(mean_of(left), mean_of(right), margin) == pytest.approx(reference, rel=1e-6)


@given(samples, samples, st.randoms())
def test_no_test_depends_on_the_order_of_seeds(left, right, random):
    n = min(len(left), len(right))
    left, right = left[:n], right[:n]
    order = random.sample(range(n), n)
    moved = [left[i] for i in order], [right[i] for i in order]
    again = welch(*map(mean_of, moved))
    assert again == pytest.approx(welch(mean_of(left), mean_of(right)))
    assert paired(*moved) == pytest.approx(paired(left, right), nan_ok=True)


def test_tests_without_spread_or_with_one_seed():
    one = mean_of([0.8])
    assert (one.mean, one.n) == (0.8, 1) and math.isnan(one.sd)
    assert math.isnan(welch(one, exact(0.9))["p"])
    assert math.isnan(tost(one, exact(0.9), 0.01))
    assert welch(Mean(0.9, 0.0, 3), Mean(0.9, 0.0, 5))["p"] == 1.0
    assert math.isnan(welch(Mean(0.8, 1e-17, 3), Mean(0.9, 0.0, 5))["p"])
    assert math.isnan(welch(Mean(0.8, 1e-17, 3), Mean(0.9, 1e-17, 1))["p"])
    assert math.isnan(tost(Mean(0.9, 0.0, 3), exact(0.905), margin=0.01))
    assert math.isnan(paired([0.81, 0.82], [0.80, 0.81])["p"])  # both by one row: no spread
    with pytest.raises(ValueError, match="margin must be positive"):
        tost(Mean(0.9, 0.1, 3), exact(0.9), margin=0.0)


def test_holm_is_statsmodels():
    p_values = [*np.random.default_rng(0).beta(0.3, 3, 12), 0.01, 0.01, 1.0, 0.0]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_by_hand():
    """0.01 x 3, then max(0.02 x 2, before), then 0.04; the unknown one does not count."""
    assert holm([0.04, math.nan, 0.01, 0.02]) == pytest.approx(
        [0.04, math.nan, 0.03, 0.04], nan_ok=True
    )


@given(st.lists(st.one_of(st.floats(1e-12, 1), st.just(math.nan)), min_size=1, max_size=9))
def test_holms_factors_are_what_his_correction_multiplies_by(values):
    factors = holm_factors(values)
    capped = np.minimum(np.multiply(values, factors), 1)
    assert list(capped) == pytest.approx(holm(values), nan_ok=True)
    assert all(1 <= factor <= len(values) + 1e-9 for factor in factors if not math.isnan(factor))


def test_readings_of_a_published_spread():
    """Five draws of known spread, printed in each way, give their sd back."""
    draws = np.array([0.1, 0.4, 0.5, 0.9, 1.3])
    sd = draws.std(ddof=1)
    printed = {
        "sd": sd,
        "population sd": draws.std(),
        "standard error": scipy.stats.sem(draws),
        "95% interval": scipy.stats.t.ppf(0.975, 4) * scipy.stats.sem(draws),
    }
    for reading, pm in printed.items():
        assert spread_to_sd(pm, 5, reading) == pytest.approx(sd)
    assert spread_to_sd(0.5, 5, "half range") == pytest.approx(1 / 2.326, rel=1e-3)
    assert {*printed, "half range"} == set(READINGS) == set(get_args(Reading))
    with pytest.raises(ValueError, match="unknown reading"):
        spread_to_sd(0.5, 5, "variance")
    with pytest.raises(ValueError, match="n >= 2"):
        spread_to_sd(0.5, 1, "sd")


def test_expected_range_is_the_tables_of_quality_control():
    """d2 for n = 2, 3, 5; for n = 2 it is 2 / sqrt(pi)."""
    assert expected_range(2) == pytest.approx(2 / math.sqrt(math.pi))
    assert [expected_range(n) for n in (3, 5)] == pytest.approx([1.693, 2.326], abs=5e-4)


@given(samples)
def test_paired_is_scipys(left):
    right = [value + 0.01 * i for i, value in enumerate(left)]
    reference = scipy.stats.ttest_rel(left, right)
    found = paired(left, right)
    assert found["p"] == pytest.approx(reference.pvalue, rel=1e-6)
    assert found["difference"] == pytest.approx(np.mean(left) - np.mean(right))
    with pytest.raises(ValueError, match="no pairs"):
        paired(left, right[1:])


def test_mcnemar_is_the_exact_binomial_test():
    left = np.array([1] * 10 + [0] * 3 + [1] * 20 + [0] * 5, dtype=bool)
    right = np.array([0] * 10 + [1] * 3 + [1] * 20 + [0] * 5, dtype=bool)
    found = mcnemar(left, right)
    assert (found["only_left"], found["only_right"]) == (10, 3)
    assert found["p"] == pytest.approx(scipy.stats.binomtest(3, 13).pvalue)
    assert mcnemar(left, left) == {"only_left": 0, "only_right": 0, "p": 1.0}
    with pytest.raises(ValueError, match="no pairs"):
        mcnemar(left, right[1:])


@given(scores)
def test_the_bootstrap_interval_holds_the_mean_and_stays_in_range(values):
    found = summarise(values)
    assert min(values) - 1e-9 <= found["boot_low"] <= found["mean"] + 1e-9
    assert found["mean"] - 1e-9 <= found["boot_high"] <= max(values) + 1e-9


@pytest.mark.parametrize("n", [3, 4, 5, 10])
def test_the_variance_of_a_median_is_that_of_drawn_ones(n):
    medians = np.median(np.random.default_rng(0).standard_normal((200_000, n)), axis=1)
    assert median_widening(n) / n == pytest.approx(medians.var(), rel=0.015)


def test_the_median_of_two_is_their_mean_and_that_of_many_nears_half_pi():
    assert median_widening(1) == median_widening(2) == 1
    assert median_widening(5) / 5 == pytest.approx(0.287, abs=5e-4)
    assert median_widening(301) == pytest.approx(math.pi / 2, rel=0.01)


@given(st.floats(-0.05, 0.05), st.floats(0.001, 0.02), st.floats(0.001, 0.02))
def test_the_minimum_effect_test_nears_welchs_without_a_margin(gap, sd_1, sd_2):
    left, right = Mean(0.9 + gap, sd_1, 5), Mean(0.9, sd_2, 4)
    assert exceeds(left, right, 1e-12) == pytest.approx(welch(left, right)["p"], abs=1e-6)


@given(st.floats(0, 0.05), st.floats(0.001, 0.02))
def test_equivalent_and_exceeding_are_never_both_shown(gap, sd):
    left, right = Mean(0.9 + gap, sd, 5), Mean(0.9, sd, 5)
    assert tost(left, right, 0.01) + exceeds(left, right, 0.01) >= 1 - 1e-9


@given(st.floats(-0.05, 0.05), st.floats(0.001, 0.02))
def test_the_90_percent_interval_decides_equivalence(gap, sd):
    left, right = Mean(0.9 + gap, sd, 5), Mean(0.9, sd, 5)
    found = welch(left, right, confidence=0.9)
    inside = max(abs(found["low"]), abs(found["high"]))
    if abs(inside - 0.01) > 1e-6:
        assert (inside < 0.01) == (tost(left, right, 0.01) < 0.05)


def test_without_a_spread_no_margin_is_tested():
    one, other = mean_of([0.9]), Mean(0.9, 0.01, 5)
    assert math.isnan(exceeds(one, other, 0.01)) and math.isnan(tost(one, other, 0.01))
    with pytest.raises(ValueError, match="margin must be positive"):
        exceeds(other, other, 0)


def test_sick_runs_are_counted_beside_the_mean_that_includes_them():
    rows = tidy_rows().assign(best_collapsed=False, last_collapsed=True, unmoved=0)
    rows.loc[rows.index[0], ["best_collapsed", "unmoved"]] = [True, 3]
    table = aggregate(rows)
    assert table.best_collapsed.sum() == table.unmoved.sum() == 1
    assert list(table.last_collapsed) == list(table.n)
    assert list(table.best_mean) == list(aggregate(tidy_rows()).best_mean)


def test_a_choice_that_only_some_tasks_made_is_summarised_for_these():
    rows = tidy_rows().assign(best_epoch=1, last_epoch=1)
    other = rows.assign(task="other", best=math.nan, best_epoch=math.nan)
    table = aggregate(pd.concat([rows, other])).set_index("task")
    assert table.best_mean["other"].isna().all() and table.best_collapsed["other"].isna().all()
    assert table.last_mean.notna().all()
    assert list(table.best_mean.dropna()) == list(aggregate(rows).best_mean)
