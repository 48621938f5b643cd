"""Learning curves."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from loraudit.report import curve_figures
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figures import undrawn
from tiny_tables import epochs


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_learning_curves_show_a_mean_line_per_cell_and_seed_and_twins_share_a_colour():
    loss, score = curve_figures.learning_curves(epochs()).axes
    lines = {line.get_label(): line for line in loss.lines}
    assert list(lines["LoRA (ours) r1 q+v"].get_ydata()[:2]) == pytest.approx([1.05, 0.55])
    assert lines["LoRA (ours) r1 q+v"].get_color() == lines["LoRA (PEFT) r1 q+v"].get_color()
    assert lines["LoRA (ours) r1 q+v"].get_color() != lines["LoRA (ours) r8 q+v"].get_color()
    assert lines["LoRA (PEFT) r1 q+v"].get_linestyle() == "--"
    assert list(score.lines[0].get_ydata()) == pytest.approx([0.6, 0.7, 0.8, 0.9])
    seeds = [line for line in loss.lines if line.get_label()[0] == "_"]
    assert len(seeds) == len(epochs()) / 4


@pytest.mark.parametrize(
    ("most", "why"), [(1, "one scored epoch is"), (3, "3 scored epochs make"), (4, "")]
)
def test_fewer_than_four_epochs_are_no_curve(most, why):
    rows = epochs()[lambda table: table.epoch <= most]
    assert undrawn(FIGURES["learning_curves"], rows) == (f"{why} no curve" if why else "")


def test_many_epochs_of_which_one_is_scored_are_no_curve():
    rows = epochs()
    rows.loc[rows.epoch < rows.epoch.max(), "score"] = math.nan
    assert undrawn(FIGURES["learning_curves"], rows) == "one scored epoch is no curve"


def test_curves_of_scores_at_chosen_epochs_are_those_of_the_selection_rows():
    split = epochs().assign(split="selection")
    _, score = curve_figures.learning_curves(split).axes
    assert score.get_ylabel() == "selection score, %"
    assert curve_figures.describe_learning_curves(split).startswith("Score on selection rows")
    both = epochs()
    both = both.assign(split=["selection" if m == "lora" else "validation" for m in both.method])
    _, score = curve_figures.learning_curves(both).axes
    assert score.get_ylabel() == "score, %"
    names = {line.get_label() for line in score.lines}
    assert {"LoRA (ours) r1 q+v (selection rows)", "LoRA (PEFT) r1 q+v (validation rows)"} <= names


def test_scores_of_the_last_epoch_alone_are_points_beside_the_curves_of_the_loss():
    rows = epochs()
    rows.loc[rows.epoch < 4, "score"] = float("nan")
    figure = curve_figures.learning_curves(rows)
    loss, score = (
        next(line for line in axes.lines if line.get_label() == "LoRA (ours) r1 q+v")
        for axes in figure.axes
    )
    assert list(loss.get_ydata()[:2]) == pytest.approx([1.05, 0.55])
    *others, last = score.get_ydata()
    assert pd.isna(others).all() and last == pytest.approx(0.9) and score.get_marker() != "None"
    dots = [drawn for axes in figure.axes for drawn in axes.collections]
    assert len(dots) == len(rows) / 4  # one per run
    said = curve_figures.describe_learning_curves(rows)
    assert "LoRA (ours) r1 q+v 90.0" in said and "nan" not in said
    assert "LoRA (ours) r1 q+v 60.0 to 90.0" in curve_figures.describe_learning_curves(epochs())


def test_a_run_that_collapsed_is_marked_where_it_is_known():
    rows = epochs()
    rows["collapsed"] = (rows.epoch == 4) & (rows.method == "head")
    loss, score = curve_figures.learning_curves(rows).axes
    (mark,) = [c for c in score.collections if c.get_label() == "collapsed run"]
    assert mark.get_offsets().tolist() == [[4, pytest.approx(0.9)]]
    assert not [c for c in loss.collections if c.get_label() == "collapsed run"]
    assert "t head only, 1 of 1 runs" in curve_figures.describe_learning_curves(rows)
