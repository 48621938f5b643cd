"""Score figures: series, bars, baselines and published numbers are the table's."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from loraudit.report import score_figures
from loraudit.report.figure_style import line_of
from loraudit.studies.methods import METHODS, MethodEntry
from tiny_tables import runs_and_verdicts, scored, tidy


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_rank_figure_shows_every_series_mean():
    axes = score_figures.score_vs_rank(tidy()).axes[0]
    shown = {box.get_label(): box.lines[0].get_ydata() for box in axes.containers}
    assert set(shown) == {f"LoRA ({who}), {t}" for who in ("ours", "PEFT") for t in ("q+v", "all")}
    assert list(shown["LoRA (ours), q+v"]) == pytest.approx([0.72, 0.79])
    assert {line.get_label() for line in axes.lines} >= {"head only", "full fine-tuning"}


def test_parameter_figure_has_every_method_on_a_log_axis():
    axes = score_figures.score_vs_parameters(tidy()).axes[0]
    assert axes.get_xscale() == "log"
    labels = {box.get_label(): box.lines[0].get_xdata() for box in axes.containers}
    assert list(labels["head only"]) == [770]
    assert list(labels["full fine-tuning"]) == [10**7]
    assert len(labels) == 6
    low, high = axes.get_xlim()
    assert low < 770 and high > 10**7


def test_equal_counts_still_get_a_decade():
    low, high = score_figures.score_vs_parameters(tidy()[:1]).axes[0].get_xlim()
    assert high / low > 10


def test_the_rows_figure_has_a_point_per_size():
    axes = score_figures.score_vs_rows(tidy().assign(rows_train=[100, 1000] * 9)).axes[0]
    lines = {box.get_label(): list(box.lines[0].get_xdata()) for box in axes.containers}
    assert lines["LoRA (ours), r1 q+v"] == [100, 1000]
    assert lines["full fine-tuning"] == [1000]


def test_baselines_of_different_labels_are_not_pooled():
    few_rows = tidy()[-1:].assign(label="few", best=0.5)
    axes = score_figures.score_vs_rank(pd.concat([tidy(), few_rows])).axes[0]
    heights = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    assert heights["full fine-tuning"] == 0.8
    assert heights["full fine-tuning few"] == 0.5


def test_every_baseline_is_a_line_of_the_rank_figure():
    bitfit = tidy()[-1:].assign(method="bitfit", best=0.75)
    axes = score_figures.score_vs_rank(pd.concat([tidy(), bitfit])).axes[0]
    assert {line.get_label() for line in axes.lines} >= {"head only", "BitFit", "full fine-tuning"}


def test_published_numbers_are_lines_with_their_spread_as_a_band():
    rows = score_figures.score_rows(*runs_and_verdicts())
    assert (
        len(rows[rows.method == "published"]) == 3
    )  # the twins' once, none that is not comparable
    best, last = score_figures.score_vs_rank(rows).axes
    lines = {line.get_label(): line for line in best.lines}
    assert list(lines["paper.ranks, LoRA q+v, published"].get_ydata()) == [0.72, 0.74]
    (band,) = [x for x in best.collections if type(x).__name__ == "FillBetweenPolyCollection"]
    reach = band.get_paths()[0].vertices[:, 1]
    assert (reach.min(), reach.max()) == (pytest.approx(0.71), pytest.approx(0.75))
    names = {line.get_label() for line in last.lines}
    assert "paper.main, full fine-tuning, published" in names
    assert "paper.ranks, LoRA q+v, published" not in names


def test_without_comparable_numbers_only_runs_are_drawn():
    runs, table = runs_and_verdicts()
    for verdicts in (table[4:], pd.DataFrame()):
        assert set(score_figures.score_rows(runs, verdicts).method) == {
            "lora",
            "peft",
            "head",
            "full",
        }


def test_a_series_looks_the_same_in_every_panel_and_the_legend_has_all():
    other = tidy()[tidy().targets.isna() | (tidy().targets == "all")].assign(task="u")
    figure = score_figures.score_vs_rank(pd.concat([tidy(), other]))
    one, two = figure.axes[0], figure.axes[2]
    looks = [
        {box.get_label(): box.lines[0].get_color() for box in axes.containers}
        for axes in (one, two)
    ]
    assert looks[1].items() < looks[0].items()
    rows = score_figures.score_rows(*runs_and_verdicts())
    (legend,) = score_figures.score_vs_rank(rows).legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(shown) == len(set(shown)) == 8  # four lines of runs, two baselines, two published


def scored_rows() -> pd.DataFrame:
    return score_figures.bits_rows(scored())


def test_a_line_is_a_cell_without_its_bits():
    assert scored_rows().line.unique().tolist() == ["lora r2 q+v", "lora r2 q+v loftq"]


def test_bits_are_in_order_and_means_at_their_place():
    figure = score_figures.score_vs_bits(scored_rows())
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "32"]
    plain = axes.containers[0].lines[0]
    assert np.round(np.asarray(plain.get_xdata(), float)).tolist() == [0, 1, 2]
    assert plain.get_ydata() == pytest.approx([0.715, 0.725, 0.865])
    loftq = axes.containers[1].lines[0]
    assert loftq.get_ydata() == pytest.approx([0.715, 0.725])


def test_methods_that_the_figures_have_not_heard_of_are_drawn(monkeypatch):
    """A new entry of methods.yaml is all that a method needs; twelve have lines of their own."""
    for method, trains in (("norms", "weights"), ("mine", "adapter")):
        entry = MethodEntry(name=method, label=method.upper(), code="a:B", trains=trains)
        monkeypatch.setitem(METHODS, method, entry)
    assert len({line_of(method) for method in METHODS}) == len(METHODS)
    norms = tidy()[-1:].assign(method="norms", best=0.75)
    mine = tidy()[tidy().method == "lora"].assign(method="mine")
    runs = pd.concat([tidy(), norms, mine])
    drawn = score_figures.score_vs_rank(runs).axes[0]
    labels = {line.get_label() for line in drawn.lines}
    assert labels >= {"NORMS"}
    assert "MINE, q+v" in {box.get_label() for box in drawn.containers}
    both = score_figures.score_vs_parameters(runs).axes[0]
    assert {box.get_label() for box in both.containers} >= {"NORMS", "MINE, q+v"}


@pytest.mark.parametrize(
    "draw", ["score_vs_rank", "score_vs_parameters", "score_vs_rows", "score_vs_bits"]
)
def test_one_seed_has_no_bar_of_length_zero(draw):
    table = score_figures.bits_rows(scored()) if draw == "score_vs_bits" else tidy()
    table = table[table.seed == 0].assign(rows_train=100)
    figure = getattr(score_figures, draw)(table)
    bars = [bars for axes in figure.axes for box in axes.containers for bars in box.lines[2]]
    assert bars
    assert not any(np.isfinite(part).any() for bar in bars for part in bar.get_segments())


def sick() -> pd.DataFrame:
    """Return the small study with one run of rank 8 on all matrices, and the head, collapsed."""
    runs = tidy().assign(rows_train=100, best_collapsed=False)
    place = (runs["rank"] == 8) & (runs.targets == "all") & (runs.method == "lora")
    return runs.assign(last_collapsed=place & (runs.seed == 1) | (runs.method == "head"))


@pytest.mark.parametrize("draw", ["score_vs_rank", "score_vs_parameters", "score_vs_rows"])
def test_collapsed_runs_are_marked_at_their_score_and_named(draw):
    best, last = getattr(score_figures, draw)(sick()).axes
    marked = [c for c in last.collections if c.get_label() == "collapsed run"]
    assert sorted(y for mark in marked for _, y in mark.get_offsets()) == pytest.approx([0.6, 0.78])
    assert not [c for c in best.collections if c.get_label() == "collapsed run"]
    (legend,) = last.figure.legends
    assert [text.get_text() for text in legend.get_texts()].count("collapsed run") == 1
    said = getattr(score_figures, f"describe_{draw}")(sick())
    assert "t lora r8 all, 1 of 2 runs; t head, 1 of 1 runs" in said
    assert "ollapsed" not in getattr(score_figures, f"describe_{draw}")(tidy().assign(rows_train=1))


def test_only_panels_of_tasks_with_selection_rows_show_the_selected_epoch():
    chosen = tidy().assign(selected=tidy().best)
    runs = pd.concat([chosen, tidy().assign(task="u")], ignore_index=True)
    titles = [axes.get_title() for axes in score_figures.score_vs_rank(runs).axes]
    assert titles == [
        "t, m: selected epoch",
        "t, m: last epoch",
        "u, m: best epoch",
        "u, m: last epoch",
    ]
