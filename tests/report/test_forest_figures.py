"""Forests: a row per difference, with its word, its interval, and the ± of the published number."""

import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from loraudit.report import forest_figures
from tiny_tables import compared, effects


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_forest_shows_comparable_rows_with_their_words():
    axes = forest_figures.verdicts(compared()).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.split(" | ")[0] for name in names] == [
        "t lora r1 q+v, n=5",
        "t lora r2 q+v, n=5",
        "t lora r4 q+v, n=5",
    ]
    assert "another protocol" in names[1] and "another" not in names[0]
    bars = [bar for bar in axes.patches if bar.get_height() == 0.5]  # the ± of published numbers
    assert [bar.get_width() for bar in bars] == [pytest.approx(0.4), pytest.approx(0.8)]
    places = [
        dots.get_offsets()[0].tolist() for dots in axes.collections if len(dots.get_offsets())
    ]
    assert places == [[pytest.approx(100 * gap), i] for i, gap in enumerate((0.001, -0.02, -0.01))]
    assert [text.get_text() for text in axes.texts][1] == "-2.00 [-2.50, -1.50]"


def test_both_intervals_are_drawn_and_a_single_seed_has_none():
    """The 90 % one, which is judged against the margin, is thick; n = 1 has a marker alone."""
    table = compared()
    table.loc[2, ["low", "high", "low90", "high90"]] = float("nan")
    axes = forest_figures.verdicts(table).axes[0]
    lines = {
        (line.get_ydata()[0], line.get_linewidth()): line.get_xdata().tolist()
        for line in axes.lines
        if line.get_color() != "0.2"
    }
    assert {place for place, _ in lines} == {0, 1}
    assert lines[0, 2.8] == [pytest.approx(-0.3), pytest.approx(0.5)]
    assert lines[0, 1.0] == [pytest.approx(-0.4), pytest.approx(0.6)]


def test_each_row_has_its_own_margin():
    table = compared().assign(margin=[0.01, 0.02, 0.01, 0.01])
    axes = forest_figures.verdicts(table).axes[0]
    bands = [bar.get_width() for bar in axes.patches if bar.get_height() == 1.0]
    assert bands == [pytest.approx(2), pytest.approx(4), pytest.approx(2)]
    labels = forest_figures.verdicts(table).legends[0].get_texts()
    assert "margin of the task" in [text.get_text() for text in labels]


def test_the_switch_figure_has_a_panel_per_task_of_the_epoch_that_counts():
    table = effects()
    rows = forest_figures.switch_rows(table)
    assert set(rows.epoch) == {"best"} and len(rows) == len(table) - 2
    panels = forest_figures.switches(rows).axes
    titles = [f"{t}, m: base 80.0 % (best epoch), n=5" for t in "ab"]
    assert [panel.get_title() for panel in panels] == titles
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == ["head trained", "last epoch, not the best"]


def test_a_switch_is_filled_where_it_survives_the_correction():
    rows = forest_figures.switch_rows(effects())
    panel = forest_figures.switches(rows).axes[1]  # the first has the legend's marks too
    marks = [c for c in panel.collections if len(c.get_offsets())]
    faces = [to_hex(mark.get_facecolors()[0]) for mark in marks]
    assert [face == "#ffffff" for face in faces] == [False, True]
    (band,) = panel.patches  # of the switch that is asked to be equal within two points
    assert (band.get_x(), band.get_width()) == (-2, 4)
    assert (
        "head trained +5.0 [+4.0, +6.0] (adjusted p < 0.05);"
        in forest_figures.describe_switches(rows)
    )
    assert not re.search(r" [.;]", forest_figures.describe_switches(rows))
    (legend,) = panel.figure.legends
    assert forest_figures.EQUAL_BAND in [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        (lambda: forest_figures.verdicts(compared()[3:]), "no cell of this study can be compared"),
        (lambda: forest_figures.verdicts(pd.DataFrame()), "no cell of this study can be compared"),
        (lambda: forest_figures.switches(pd.DataFrame()), "no switch and base share two seeds"),
    ],
)
def test_a_figure_without_rows_says_why(figure, reason):
    (text,) = figure().axes[0].texts
    assert reason in text.get_text()
