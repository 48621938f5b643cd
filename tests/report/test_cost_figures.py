"""Figures of cost and of scores against their price."""

import matplotlib.pyplot as plt
import pytest

from loraudit.report import cost_figures
from tiny_tables import costs, priced


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_cost_figure_has_a_bar_per_cell_in_three_units():
    panels = cost_figures.cost(costs()).axes
    widths = [[bar.get_width() for bar in panel.patches] for panel in panels]
    assert widths == [[500, 5000], [900, 1800], [pytest.approx(200), pytest.approx(400)]]


def test_the_front_is_filled_and_joined():
    axes = cost_figures.pareto(priced()).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-"] == [
        [1000, 3000]
    ]
    fills = [box.lines[0].get_markerfacecolor() for box in axes.containers]
    assert [fill == "white" for fill in fills] == [False, True, False]
