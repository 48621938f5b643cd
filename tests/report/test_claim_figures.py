"""The forest of claims: each quantity has an axis on which its distances are what they seem."""

from itertools import pairwise

import matplotlib.pyplot as plt
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
