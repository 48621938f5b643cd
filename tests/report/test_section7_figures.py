"""Figures of section 7: which cells they show, and that their lines are the table's."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from loraudit.report import section7_figures
from loraudit.report.figure_style import COLOURS
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


def test_cells_beyond_the_colours_are_counted():
    cells = [projections().assign(label=str(number)) for number in range(5)]
    (legend,) = section7_figures.stable_rank(pd.concat(cells)).legends
    assert len(legend.get_texts()) == len(COLOURS)
    assert legend.get_title().get_text() == "3 further cells are in the table"


def test_table_7_is_four_lines_on_a_log_axis():
    q, v = section7_figures.amplification(projections()).axes
    for panel in (q, v):
        assert panel.get_yscale() == "log"
        assert [list(line.get_ydata()) for line in panel.lines] == [[4, 4], [9, 9], [2, 2], [1, 1]]


def test_phi_has_a_row_per_matrix_three_layers_and_the_control():
    shown = section7_figures.pair_rows(similarities(), "ranks")
    assert set(shown.layer) == {0, 2, 3}
    assert set(shown.targets) == {"q+v"}
    panels = section7_figures.subspaces(shown).axes[:8]
    titles = [panel.get_title() for panel in panels]
    assert titles == [
        f"{m}, {x}" for m in "qv" for x in ("layer 0", "layer 2", "layer 3", "random")
    ]
    found = [panel.images[0].get_array().tolist() for panel in panels[:4]]
    assert found == [[[pytest.approx(a), pytest.approx(b)]] for a, b in
                     ((0.1, 0.2), (0.3, 0.4), (0.4, 0.5), (0.1, 0.1))]  # fmt: skip
    assert section7_figures.pair_rows(similarities(), "seeds").empty


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
