"""The forest of claims: each quantity has an axis on which its distances are what they seem."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from loraudit.report.claim_figures import claim_rows, claims
from tiny_claims import verdict_table


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_an_axis_has_0_so_that_what_is_near_a_bound_looks_near():
    """A share of 0.979 percent stood at the far end of an axis from 0.978 to 1."""
    table = claim_rows(verdict_table())
    row = table[~table.log.astype(bool)][:1]
    same = dict.fromkeys(("effect", "low", "high", "low90", "high90"), 0.00979)
    near = row.assign(**same, region_low=float("-inf"), region_high=0.01, unit="points")
    (axes,) = claims(near).axes
    low, high = axes.get_xlim()
    assert low < 0
    assert (1 - 0.979) / (high - low) < 0.05


def test_a_long_name_does_not_reach_into_the_next_row():
    """Heights were those of all names together, while the rows of a panel are all alike."""
    table = claim_rows(verdict_table())
    row = table[~table.log.astype(bool)][:1]
    long = row.assign(claim="a-claim-whose-name-needs.more-than-one-line-of-a-panel")
    figure = claims(pd.concat([row, long, long, row, row, row]))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert all(below.y1 <= above.y0 for above, below in pairwise(boxes))


def test_a_row_that_reaches_far_does_not_hide_the_others():
    """Two wide intervals of nine made points of all others."""
    table = claim_rows(verdict_table())
    row = table[~table.log.astype(bool)][:1]
    near = {"effect": 0.01, "low": 0.0, "high": 0.02, "low90": 0.005, "high90": 0.015}
    near |= {"region_low": 0.0, "region_high": float("inf"), "unit": "points"}
    wide = {**near, "effect": 0.4, "low": -0.3, "high": 1.1, "low90": -0.2, "high90": 1.0}
    many = pd.concat([row.assign(**near)] * 4 + [row.assign(**wide)])
    figure = claims(many)
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert -1 < low < 0 and 2 < high < 4
    arrows = [c for c in axes.collections if c.get_label() == "goes on beyond the axis"]
    assert [c.get_offsets()[0].tolist() for c in arrows] == [[low, 4], [high, 4]]
    (legend,) = figure.legends
    assert "goes on beyond the axis" in [text.get_text() for text in legend.get_texts()]
    (whole,) = claims(pd.concat([row.assign(**near), row.assign(**wide)])).axes
    assert whole.get_xlim()[1] > 100 or whole.get_xlim()[0] < -20


@pytest.mark.parametrize(("high", "ticks"), [(8.0, {1, 2, 5}), (800.0, {1, 10, 100})])
def test_an_axis_of_ratios_has_ticks_however_many_decades_it_spans(high, ticks):
    """From three decades on it had none."""
    table = claim_rows(verdict_table())
    row = table[table.log.astype(bool)][:1]
    ends = {"effect": 2.0, "low": 0.5, "high": high, "low90": 0.6, "high90": high / 2}
    logs = {name: np.log(value) for name, value in ends.items()}
    bounds = {"region_low": np.log(0.5), "region_high": np.log(2.0)}
    (axes,) = claims(row.assign(**logs, **bounds)).axes
    low, high = axes.get_xlim()
    shown = {round(float(tick), 6) for tick in axes.get_xticks() if low <= tick <= high}
    assert ticks <= shown
