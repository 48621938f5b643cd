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


def test_times_within_their_spread_are_said_to_be():
    (_, _, apart), (_, _, alike) = (
        cost_figures.cost(table).axes for table in (costs(), costs().assign(steps_differ=False))
    )
    assert apart.get_xlabel() == "CPU time per step, ms"
    assert alike.get_xlabel() == "CPU time per step, ms\n(differences within noise)"
    assert "within the spread" not in cost_figures.describe_cost(costs())
    assert "within the spread" in cost_figures.describe_cost(costs().assign(steps_differ=False))


def test_a_front_that_may_be_chance_is_not_drawn_but_said():
    table = priced().assign(clear_milliseconds_step=False, last_collapsed=[0, 1, 0])
    table.loc[1, "front_milliseconds_step"] = "within noise"
    counted, timed, _ = cost_figures.pareto(table).axes
    joined = [
        [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
        for axes in (counted, timed)
    ]
    assert [len(lines) for lines in joined] == [1, 0]
    assert timed.get_xlabel() == "CPU time per step, ms\n(no clear front)"
    pale = timed.containers[1].lines[0].get_markerfacecolor()
    assert pale != counted.containers[1].lines[0].get_markerfacecolor()
    said = cost_figures.describe_pareto(table)
    assert (
        "by CPU time per step, ms lora r1 q+v (80.0 %), full (90.0 %) (within noise: no clear"
        in said
    )
    assert "Means with collapsed runs, which are marked: t lora r8 q+v, 1 of 3 runs." in said
    (legend,) = timed.figure.legends
    assert "mean with collapsed runs" in [text.get_text() for text in legend.get_texts()]


def test_the_front_is_filled_and_joined():
    axes = cost_figures.pareto(priced()).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-"] == [
        [1000, 3000]
    ]
    fills = [box.lines[0].get_markerfacecolor() for box in axes.containers]
    assert [list(fill) == [1, 1, 1] for fill in fills] == [False, True, False]
