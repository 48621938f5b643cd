"""Figures of section 7: which cells they show, and that their lines are the table's."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from loraudit.report import section7_figures
from tiny_tables import intruded, projections, similarities, spectrum


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_spectra_show_the_widest_cell_at_its_largest_rank():
    panels = section7_figures.spectra(spectrum()).axes[:2]
    assert [panel.get_title(loc="left") for panel in panels] == ["t, m, r=2 q+v\nq", "v"]
    for panel in panels:
        assert [list(line.get_ydata()) for line in panel.lines] == [[19.5, 19.0], [20.5, 20.0]]
        assert panel.get_yscale() == "log"


def test_the_stable_rank_has_a_line_of_means_per_cell_and_a_dot_per_seed():
    figure = section7_figures.stable_rank(projections())
    q, v = figure.axes
    assert [line.get_label() for line in q.lines] == ["r=2 q", "r=2 q+v"]  # rank 1 says nothing
    assert list(q.lines[0].get_ydata()) == pytest.approx([1.75, 1.75])
    assert [len(dots.get_offsets()) for dots in q.collections] == [4, 4]
    assert [len(dots.get_offsets()) for dots in v.collections] == [0, 4]


def test_cells_beyond_what_can_be_told_apart_are_counted():
    cells = [projections().assign(label=str(number)) for number in range(5)]
    (legend,) = section7_figures.stable_rank(pd.concat(cells)).legends
    assert len(legend.get_texts()) == section7_figures.MOST_CELLS
    assert legend.get_title().get_text() == "3 further cells are in the CSV"


def test_of_many_cells_those_of_one_rank_are_drawn_for_all_target_sets():
    """The panels of matrices that only the last cells adapt were empty."""
    own = projections()
    q = own[(own["rank"] == 2) & (own.targets == "q")]
    cells = [q.assign(rank=float(rank)) for rank in range(3, 12)]
    (legend,) = section7_figures.stable_rank(pd.concat([*cells, own])).legends
    assert [text.get_text() for text in legend.get_texts()] == ["r=2 q", "r=2 q+v"]
    assert legend.get_title().get_text() == "9 further cells are in the CSV"


def test_table_7_is_four_lines_on_a_log_axis():
    q, v = section7_figures.amplification(projections()).axes
    for panel in (q, v):
        assert panel.get_yscale() == "log"
        assert [list(line.get_ydata()) for line in panel.lines] == [[4, 4], [9, 9], [2, 2], [1, 1]]


def test_phi_is_a_line_per_matrix_above_what_random_directions_give():
    """The random pair has phi 0.1 at j = 2: 0.05 a direction."""
    rows = section7_figures.pair_rows(similarities(), "ranks")
    assert set(rows.targets) == {"q+v"} and set(rows.layer) == {0, 1, 2, 3}
    assert "control" not in rows
    over_j, over_layers = section7_figures.subspaces(rows).axes
    for axes in (over_j, over_layers):
        assert [line.get_label() for line in axes.lines][:2] == ["q", "v"]
    title = over_j.get_title(loc="left")
    assert title == "t, m, q+v: rank 1 (seed 0) and rank 2 (seed 0)"
    assert over_j.get_xlabel() == "j, first directions of rank 2 (seed 0)"
    q, v = over_j.lines[:2]
    assert list(q.get_xdata()) == [1, 2]
    assert list(q.get_ydata()) == pytest.approx([0.25 - 0.05, 0.35 - 0.1])
    assert list(over_layers.lines[0].get_ydata()) == pytest.approx([0.05, 0.15, 0.25, 0.35])
    assert q.get_color() != v.get_color()
    assert "at j = 1, q 0.25 (random 0.05)" in section7_figures.describe_subspaces(rows)
    assert section7_figures.pair_rows(similarities(), "seeds").empty


def test_several_pairs_are_dots_beside_their_mean():
    one = similarities()
    two = one.assign(first="r1 s1", second="r2 s1", phi=one.phi.where(one.control, one.phi + 0.2))
    rows = section7_figures.pair_rows(pd.concat([one, two]), "ranks")
    over_j, over_layers = section7_figures.subspaces(rows).axes
    title = over_j.get_title(loc="left")
    assert title == "t, m, q+v: rank 1 and rank 2, 2 pairs of seeds and their mean"
    assert over_j.get_xlabel() == "j, first directions of rank 2"
    assert list(over_j.lines[0].get_ydata()) == pytest.approx([0.35 - 0.05, 0.45 - 0.1])
    dots = over_j.collections[0].get_offsets()[:, 1].tolist()
    assert dots == pytest.approx([0.2, 0.25, 0.4, 0.45])
    assert len(over_layers.collections[0].get_offsets()) == 2 * 4
    said = section7_figures.describe_subspaces(rows)
    assert "q 0.35, 0.25 to 0.45 over 2 pairs (random 0.05); v 0.35" in said


def test_i_grows_with_j_as_far_as_the_adapter_goes():
    one = similarities().assign(pair="seeds")
    table = pd.concat([one.assign(i=i) for i in (1, 2)])
    rows = section7_figures.pair_rows(table, "seeds")
    assert (rows.i == rows.j).all()


def test_without_a_pair_the_figure_says_so():
    (text,) = section7_figures.subspaces(pd.DataFrame()).axes[0].texts
    assert "no two adapters of this study" in text.get_text()


def test_intruders_have_a_tick_per_cell_with_full_fine_tuning_last():
    rows = section7_figures.intruder_rows(intruded())
    q, v = section7_figures.intruders(rows).axes
    assert [label.get_text() for label in q.get_yticklabels()] == ["r=1 q+v", "r=8 q+v", "full"]
    for panel in (q, v):
        dots = panel.collections[0].get_offsets().tolist()
        assert dots == [[3, 0], [3.5, 0], [1, 1], [1.5, 1], [0, 2], [0.5, 2]]
    said = section7_figures.describe_intruders(rows)
    assert "t, m: r=1 q+v 3.25, r=8 q+v 1.25, full 0.25" in said


def test_a_later_panel_with_more_intruders_shows_all_of_them():
    """The panels share x: the limits of the first one's rows would hide the others'."""
    table = intruded()
    rows = section7_figures.intruder_rows(
        table.assign(intruders=table.intruders * table.matrix.map({"q": 1, "v": 2}))
    )
    _, v = section7_figures.intruders(rows).axes
    low, high = v.get_xlim()
    at = [x for marks in v.collections for x, _ in marks.get_offsets()]
    assert max(at) == 7
    assert low < min(at) and max(at) < high


def test_target_sets_of_one_rank_have_lines_of_their_own():
    """Both were one blue, and the markers lay on each other."""
    lines = section7_figures.stable_rank(projections()).axes[0].lines
    assert [line.get_label() for line in lines] == ["r=2 q", "r=2 q+v"]
    assert lines[0].get_linestyle() == "-" != lines[1].get_linestyle()
    assert lines[0].get_marker() != lines[1].get_marker()


def test_a_stable_rank_is_told_of_a_table_that_was_read_from_a_csv():
    """Cells without a label have NaN there, which equals nothing."""
    rows = projections()
    told = section7_figures.describe_stable_rank(rows.assign(label=math.nan))
    assert "lowest" in told and told == section7_figures.describe_stable_rank(rows.assign(label=""))
