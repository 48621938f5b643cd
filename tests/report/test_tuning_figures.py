"""The figure of tuning draws each cell once, and marks what was chosen."""

import pandas as pd
import pytest

import tiny_tables
from loraudit.report.tuning_figures import describe_tuning, tuning, tuning_rows


@pytest.fixture
def rows():
    return tuning_rows(tiny_tables.tried())


def test_twins_are_drawn_once(rows):
    assert set(rows.method) == {"lora"} and len(rows) == 2 * 3 * 2
    (axes,) = tuning(rows).axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(curves) == 2
    assert list(curves[0].get_xdata()) == [1e-4, 1e-3, 1e-2]
    assert curves[0].get_ydata() == pytest.approx([0.60005, 0.80005, 0.70005])


def test_the_chosen_rates_are_marked_and_the_one_at_the_edge_twice(rows):
    (axes,) = tuning(rows).axes
    single = [c.get_offsets().tolist() for c in axes.collections if len(c.get_offsets()) == 1]
    marked = sorted(point for (point,) in single)
    assert marked == [
        pytest.approx([1e-4, 0.90005]),
        pytest.approx([1e-4, 0.90005]),
        pytest.approx([1e-3, 0.80005]),
    ]


def test_a_csv_of_the_rows_is_described_alike(rows, tmp_path):
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert describe_tuning(pd.read_csv(tmp_path / "rows.csv")) == describe_tuning(rows)


def test_the_alt_text_says_what_was_chosen(rows):
    text = describe_tuning(rows)
    assert "LoRA (ours) r1 q+v 0.001 (80.0 %)" in text
    assert "LoRA (ours) r8 q+v 0.0001 (90.0 %, at the edge of what was tried)" in text


def test_rates_that_diverged_have_a_mark_and_no_mean(rows):
    lost = rows.learning_rate == 1e-2
    rows = rows.assign(diverged=lost & (rows.seed == 1), collapsed=False)
    rows.loc[rows.diverged, "score"] = float("nan")
    (axes,) = tuning(rows).axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [pd.isna(curve.get_ydata()).tolist() for curve in curves] == [[False, False, True]] * 2
    (legend,) = axes.figure.legends
    assert "diverged (counts as worst)" in [text.get_text() for text in legend.get_texts()]
    said = describe_tuning(rows)
    assert said.endswith(
        "Diverged, which counts as the worst: LoRA (ours) r1 q+v at 0.01; "
        "LoRA (ours) r8 q+v at 0.01."
    )


def test_many_cells_have_a_panel_for_each_method_and_target_set(rows):
    """Twelve of 39 cells were drawn, in one panel, and taken evenly at that."""
    lora = rows[(rows.method == "lora") & (rows["rank"] == 1)]
    cells = [
        lora.assign(rank=rank, targets=targets)
        for targets in ("q", "q+v")
        for rank in range(8, 0, -1)
    ]
    none = {"method": "full", "rank": float("nan"), "targets": None}
    figure = tuning(pd.concat([*cells, lora.assign(**none)], ignore_index=True))
    first, second, third = (axes for axes in figure.axes if axes.axison)
    titles = [axes.get_title(loc="left") for axes in (first, second, third)]
    assert titles == ["t, m: LoRA (ours) q", "t, m: LoRA (ours) q+v", "t, m: no adapter"]
    for axes in (first, second):
        shown = [text.get_text() for text in axes.get_legend().get_texts()]
        assert shown == [f"r{rank}" for rank in range(1, 9)]
        assert len([line for line in axes.lines if len(line.get_xdata()) == 3]) == 8
    assert [text.get_text() for text in third.get_legend().get_texts()] == ["full fine-tuning"]
    (legend,) = figure.legends
    assert not any("r8" in text.get_text() for text in legend.get_texts())


def test_names_that_a_panel_has_no_room_for_stand_below_the_figure(rows):
    """Nine labels of one rank covered their panel."""
    lora = rows[(rows.method == "lora") & (rows["rank"] == 1)]
    labels = [lora.assign(label=f"a-long-label-{n}", targets=t) for n in range(7) for t in "qv"]
    figure = tuning(pd.concat(labels, ignore_index=True))
    assert len(figure.axes) == 2 and not any(axes.get_legend() for axes in figure.axes)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sum("a-long-label" in name for name in names) == 14


def test_cells_that_choose_no_rate_are_left_to_the_table():
    """Eight values of alpha at one rate were eight curves of one point, on top of each other."""
    table = tiny_tables.tried()
    alphas = table[(table["rank"] == 8) & (table.learning_rate == 1e-3)].assign(rank=64)
    both = tuning_rows(pd.concat([table, alphas], ignore_index=True))
    assert set(both["rank"]) == {1, 8}
    assert set(tuning_rows(alphas)["rank"]) == {64}
