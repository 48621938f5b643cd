"""Exact tests of counts: against Fisher's and the binomial test, and their stated rates."""

import numpy as np
import pytest
from scipy.stats import barnard_exact, binomtest, fisher_exact

from loraudit.analysis.shares import Count, interval, p_above, p_below


@pytest.mark.parametrize("hits, n", [(0, 5), (3, 5), (5, 5)])
def test_one_share_is_tested_as_by_the_binomial_test(hits, n):
    for edge in (0.1, 0.5):
        for p, way in ((p_above, "greater"), (p_below, "less")):
            expected = binomtest(hits, n, edge, alternative=way).pvalue
            assert p([Count(hits, n)], edge) == pytest.approx(expected)


@pytest.mark.parametrize("left, right, n", [(5, 0, 5), (3, 0, 3), (4, 1, 6)])
def test_two_shares_are_tested_as_by_barnards_test_and_find_no_less_than_fishers(left, right, n):
    p = p_above([Count(left, n), Count(right, n)], 0.0)
    table = [[left, right], [n - left, n - right]]
    assert p <= fisher_exact(table, alternative="greater").pvalue + 1e-9
    expected = barnard_exact(table, alternative="greater", pooled=False, n=128).pvalue
    if left - right == n:  # the most extreme table, whatever the statistic
        assert p == pytest.approx(expected, rel=1e-3)
        assert p == pytest.approx(0.25**n)


def test_below_is_above_of_the_runs_without_the_outcome():
    counts = [Count(1, 5), Count(4, 6)]
    assert p_below(counts, -0.1) == pytest.approx(p_above(counts[::-1], 0.1))


def test_at_the_edge_an_effect_is_called_beyond_it_in_five_percent_or_less():
    for edge in (0.0, 0.2):
        p = {(a, b): p_above([Count(a, 5), Count(b, 5)], edge) for a in range(6) for b in range(6)}
        random = np.random.default_rng(0)
        for right in (0.1, 0.4):
            left, right = (random.binomial(5, share, 2000) for share in (right + edge, right))
            pairs = zip(left.tolist(), right.tolist(), strict=True)
            assert np.mean([p[pair] < 0.05 for pair in pairs]) <= 0.065


def test_intervals_hold_what_was_seen_and_stay_possible():
    low, high = interval([Count(5, 5), Count(0, 5)], 0.95)
    assert 0 < low < 1 and high == 1
    assert interval([Count(2, 5)], 0.9) == pytest.approx(
        tuple(binomtest(2, 5).proportion_ci(0.9, method="exact"))
    )
