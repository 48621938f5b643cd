"""The spread that cells share: against statsmodels, scipy and simulations of true size."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import polygamma
from statsmodels.formula.api import ols
from statsmodels.stats.weightstats import DescrStatsW

from loraudit.analysis import pooling
from loraudit.analysis.pooling import (
    Cell,
    Difference,
    Spread,
    by_seed,
    own_spread,
    pooled,
    summed,
    unpaired,
)
from loraudit.analysis.statistics import mean_of, tost, welch

pytestmark = pytest.mark.numerics


def spreads_of(scores: np.ndarray) -> list[Spread]:
    """Return the own spread of each cell of (cells, seeds) scores."""
    return [Spread(float(cell.var(ddof=1)), len(cell) - 1) for cell in scores]


def test_the_difference_between_alike_cells_is_that_of_a_linear_model():
    """Equal spreads: the variance is the table's, with n - k degrees of freedom."""
    scores = np.array([[1.0, 2, 3], [4, 5, 6], [2, 3, 4], [7, 8, 9]])
    shared = pooled(spreads_of(scores))
    found = unpaired(*(Cell(scores[i].mean(), 3, shared[i]) for i in (0, 3)), most=8)
    table = pd.DataFrame({"y": scores.ravel(), "cell": np.repeat(list("abcd"), 3)})
    contrast = ols("y ~ C(cell)", table).fit().t_test("C(cell)[T.d] = 0")
    assert found.value == pytest.approx(-contrast.effect[0])
    assert found.error == pytest.approx(contrast.sd[0, 0])
    assert (found.freedom, found.p()) == (8, pytest.approx(float(contrast.pvalue)))
    low, high = contrast.conf_int(0.02)[0]
    assert found.interval(0.98) == pytest.approx((-high, -low))


def test_two_cells_that_share_nothing_are_compared_by_welchs_test():
    left, right = [0.81, 0.85, 0.80], [0.90, 0.91, 0.97, 0.93]
    cells = [
        Cell(np.mean(one), len(one), Spread(np.var(one, ddof=1), len(one) - 1))
        for one in (left, right)
    ]
    found = unpaired(*cells, most=math.inf)
    reference = welch(mean_of(left), mean_of(right))
    assert found.p() == pytest.approx(reference["p"])
    assert found.interval(0.95) == pytest.approx((reference["low"], reference["high"]))
    equal = tost(mean_of(left), mean_of(right), 0.2)
    assert found.p_equivalent(0.2) == pytest.approx(equal)


def compared(cells: list[pd.Series]) -> Difference:
    """Compare the first two cells by the spread that all share without what their seeds share."""
    own = by_seed(cells)
    found = [Cell(float(c.mean()), len(c), s) for c, s in zip(cells, pooled(own), strict=True)]
    return unpaired(found[0], found[1], sum(one.freedom for one in own))


def test_without_what_seeds_share_two_cells_are_compared_by_the_paired_t_test():
    left, right = (pd.Series(one) for one in ([1.0, 2, 4, 3, 6], [2.0, 2.5, 4, 5, 6.5]))
    reference = scipy.stats.ttest_rel(left, right)
    found = compared([left, right])
    assert (found.p(), found.freedom) == (pytest.approx(reference.pvalue), pytest.approx(4))


def test_what_the_seeds_share_stays_where_too_little_would_be_left():
    two = [pd.Series([1.0, 2, 4, 3]), pd.Series([2.0, 2.5, 4, 5])]
    assert by_seed(two) == list(map(own_spread, two))
    apart = [pd.Series(one.to_numpy(), [10 * i + j for j in range(4)]) for i, one in enumerate(two)]
    random = np.random.default_rng(0)
    others = [pd.Series(random.standard_normal(4)) for _ in range(4)]
    mixed = by_seed([*others, apart[1]])
    assert mixed[-1] == own_spread(apart[1]) and mixed[0] != own_spread(others[0])


def test_a_collapsed_run_does_not_blur_what_the_seeds_share():
    random = np.random.default_rng(0)
    luck = 3 * random.standard_normal(5)
    well = [pd.Series(random.standard_normal(5) + luck) for _ in range(5)]
    sick = pd.Series([0.0, 1.0, 400.0, 0.5, 0.2])
    found = by_seed([*well, sick])
    assert found[:-1] == by_seed(well) and found[-1] == own_spread(sick)
    assert max(one.variance for one in found[:-1]) < 4


variances = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=12)


@given(variances, st.integers(1, 9))
def test_no_spread_is_made_smaller_and_no_freedom_exceeds_the_tables(values, freedom):
    own = [Spread(value, freedom) for value in values]
    for before, after in zip(own, pooled(own), strict=True):
        assert after.variance >= before.variance * (1 - 1e-12)
        assert freedom <= after.freedom <= freedom * len(own)


@given(variances, st.floats(1e-3, 1e3))
def test_another_unit_changes_nothing(values, unit):
    own = [Spread(value, 2) for value in values]
    scaled = pooled([Spread(value * unit, 2) for value in values])
    for one, two in zip(pooled(own), scaled, strict=True):
        assert two.variance == pytest.approx(one.variance * unit, rel=1e-6)
        assert two.freedom == pytest.approx(one.freedom, rel=1e-4)


def test_a_cell_whose_runs_collapsed_does_not_spoil_the_others():
    """The seven cells of SST-2 in a study of three seeds: one of them has an sd of 16.7 points."""
    own = [Spread(sd**2, 2) for sd in (0.4, 16.7, 0.5, 0.7, 0.6, 0.7, 0.8)]
    found = pooled(own)
    assert found[1] == own[1]
    assert {cell.freedom for place, cell in enumerate(found) if place != 1} == {12}
    assert found[0].variance == pytest.approx(np.mean([s.variance for s in own if s != own[1]]))


def test_tied_scores_borrow_the_others_spread_and_alone_allow_no_test():
    found = pooled([Spread(0.0, 1), Spread(1.0, 1), Spread(1.2, 1)])
    assert found[0].variance == pytest.approx(1.1)
    own = [Spread(0.0, 1), Spread(1.0, 1)]
    assert pooled(own) == own
    tied = unpaired(Cell(0.8, 2, Spread(1e-34, 1)), Cell(0.9, 2, Spread(0.0, 1)), 2)
    assert tied.error == 0
    assert all(math.isnan(p) for p in (tied.p(), tied.p_equivalent(0.1), *tied.interval(0.9)))
    assert Difference(0.0, 0.0, 1).p() == 1.0


def test_the_moments_are_those_of_the_model():
    """Variances drawn by a shared one of 2 with freedom 6: both come back from 20,000 cells."""
    random = np.random.default_rng(0)
    true = 2 * 6 / random.chisquare(6, 20_000)
    values = true * random.chisquare(3, 20_000) / 3
    found = pooling._prior(values, np.full(20_000, 3.0))
    assert found.freedom == pytest.approx(6, rel=0.1)
    assert found.variance == pytest.approx(2, rel=0.05)
    for value in (1e-3, 0.5, 40.0):
        assert polygamma(1, pooling._inverse_trigamma(value)) == pytest.approx(value)


def test_independent_errors_add_as_in_welchs_test():
    left, right = DescrStatsW([1.0, 2, 4]), DescrStatsW([3.0, 5, 9, 4])
    error, freedom = summed((left.std_mean, 2), (right.std_mean, 3))
    reference = scipy.stats.ttest_ind([1, 2, 4], [3, 5, 9, 4], equal_var=False)
    assert freedom == pytest.approx(reference.df)
    assert error == pytest.approx((left.mean - right.mean) / reference.statistic)
    exact = Difference(1.0, 3.0, 5).beyond(4.0, math.inf)
    assert (exact.error, exact.freedom) == (5.0, pytest.approx(5**4 / (3**4 / 5)))


def simulated(spreads: np.ndarray, n: int, shift: float, level: float, studies: int = 500) -> float:
    """Return how often the first two cells differ at a level, over simulated studies.

    `shift` is the true difference in standard errors of it.
    """
    random = np.random.default_rng(n + len(spreads))
    true = shift * math.hypot(*spreads[:2]) / math.sqrt(n)
    found = 0
    for _ in range(studies):
        scores = random.normal(0, spreads[:, None], (len(spreads), n))
        shared = pooled(spreads_of(scores))
        cells = [Cell(scores[i].mean(), n, shared[i]) for i in (0, 1)]
        difference = unpaired(*cells, most=len(spreads) * (n - 1))
        found += (
            Difference(difference.value + true, difference.error, difference.freedom).p() < level
        )
    return found / studies


ALIKE = np.ones(7)
ONE_WIDE = np.array([4.0, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("spreads", "n", "most"),
    [(ALIKE, 3, 0.07), (ALIKE, 5, 0.07), (ONE_WIDE, 3, 0.13), (ONE_WIDE, 5, 0.09)],
    ids=["alike-3", "alike-5", "wide-3", "wide-5"],
)
def test_the_true_size_is_as_said(spreads, n, most):
    """What the module's docstring says, and what chance adds to 500 simulated studies."""
    assert simulated(spreads, n, 0.0, 0.05) <= most


def test_with_few_seeds_a_corrected_test_finds_more_than_welchs():
    """Three seeds, one of ten tests, a difference of 4.5 standard errors: Welch finds 22 %."""
    assert simulated(ALIKE, 3, 4.5, 0.005) > 0.45


def test_cells_without_a_defined_score_share_no_spread_with_others():
    undefined = pd.Series([math.nan] * 5)
    sound = [pd.Series(np.random.default_rng(seed).normal(size=5)) for seed in (0, 1)]
    with_it, without = by_seed([undefined, *sound]), by_seed(sound)
    assert with_it[1:] == without
    assert all(math.isnan(spread.variance) for spread in by_seed([undefined, undefined]))
