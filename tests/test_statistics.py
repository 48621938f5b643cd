"""Statistics against scipy, hand-computed cases and symmetries."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from loraudit.statistics import aggregate, agreement, summarise

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
    found = agreement(pd.concat([earlier, left]), right)
    assert found == {
        "rows": 3,
        "equal_share": pytest.approx(2 / 3),
        "largest_logit_difference": pytest.approx(2.0),
    }
    with pytest.raises(ValueError, match="different rows"):
        agreement(left, predictions([0, 1, 3], [1.0, 1.0, 1.0]))
