"""Score figures: series, bars, baselines and published numbers are the table's."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from loraudit.report import score_figures
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figure_style import COLUMN
from loraudit.report.figures import undrawn
from loraudit.report.looks import line_of
from loraudit.studies.methods import METHODS, MethodEntry
from tiny_tables import runs_and_verdicts, scored, scores


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(axes) -> dict:
    """Return a panel's lines of means by their names; baselines' are of the legend alone."""
    return {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}


def test_the_hero_shows_every_series_mean_over_rank_and_over_parameters():
    rank, sizes = score_figures.hero(scores()).axes
    for axes in (rank, sizes):
        assert set(lines(axes)) >= {
            *(f"LoRA ({who}) {t}" for who in ("ours", "PEFT") for t in ("q+v", "all")),
            *("head only", "full fine-tuning", "majority class"),
        }
        shown = lines(axes)["LoRA (ours) q+v"].get_ydata()
        assert list(shown) == pytest.approx([0.72, 0.79])  # of the best epoch alone
    assert list(lines(rank)["LoRA (ours) q+v"].get_xdata()) == [1, 8]
    assert list(lines(sizes)["LoRA (ours) q+v"].get_xdata()) == [233, 7233]  # without the head
    assert [text.get_text() for text in rank.get_xticklabels()] == ["1", "8"]
    assert sizes.get_xscale() == "log"
    assert list(lines(sizes)["full fine-tuning"].get_xdata()) == [10**7 - 770]
    low, high = sizes.get_xlim()
    assert low < 233 and high > 10**7


def test_the_hero_is_a_column_wide_and_shows_baselines_as_bands_of_all_seeds():
    runs = scores()
    other = runs[runs.method == "full"].assign(seed=1, best=0.84)
    figure = score_figures.hero(pd.concat([runs, other]))
    assert figure.get_figwidth() == COLUMN
    rank, sizes = figure.axes
    spans = [(p.get_y(), p.get_y() + p.get_height()) for p in rank.patches]
    assert (pytest.approx(0.8), pytest.approx(0.84)) in spans
    heights = [line.get_ydata()[0] for line in rank.lines if list(line.get_xdata()) == [0, 1]]
    assert heights == pytest.approx([0.82, 0.66, 0.6])  # full, head, majority class
    assert len(sizes.patches) == 1  # the head's: it trains nothing beside itself


def test_the_sampling_error_of_the_rows_is_a_bar_at_the_side():
    assert score_figures.sampling_error(scores(), "last") == pytest.approx(0.02)  # 0.8, 400 rows
    f1 = scores().assign(metric="f1")
    assert np.isnan(score_figures.sampling_error(f1, "last"))
    names = [text.get_text() for text in score_figures.hero(scores()).legends[0].get_texts()]
    assert "±1 SE of the rows" in names
    names = [text.get_text() for text in score_figures.hero(f1).legends[0].get_texts()]
    assert "±1 SE of the rows" not in names


def test_every_seed_is_a_dot_and_bars_start_at_five_seeds():
    few, many = (
        pd.concat([scores()[:1].assign(seed=seed, best=0.7 + seed / 100) for seed in range(n)])
        for n in (4, 5)
    )
    for rows, bars in ((few, 0), (many, 1)):
        panel = score_figures.score_vs_rows(rows).axes[0]
        dots = [c for c in panel.collections if type(c).__name__ == "PathCollection"]
        assert sum(len(c.get_offsets()) for c in dots) == len(rows)
        assert len(panel.containers) == bars
    (bar,) = panel.containers[0].lines[2]
    low, high = bar.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(many.best.std())
    (legend,) = panel.figure.legends
    assert "bars: SD (n - 1) from n = 5 on" in legend.get_title().get_text()


@pytest.mark.parametrize(
    ("rows", "panels"),
    [
        (lambda rows: rows[rows["rank"] != 8], ["parameters without head"]),
        (lambda rows: rows[rows.method == "lora"].assign(parameters=5000), ["rank"]),
        (lambda rows: rows[(rows["rank"] == 1) | (rows.method == "head")], []),
    ],
)
def test_what_does_not_vary_has_no_panel(rows, panels):
    """Numbers of parameters within a factor of two are one place on an axis of decades."""
    table = rows(scores())
    assert [axes.get_xlabel() for axes in score_figures.hero(table).axes[: len(panels)]] == panels
    why = undrawn(FIGURES["hero"], table)
    assert why == ("" if panels else "most cells have one rank and about as many parameters")


def test_the_rows_figure_has_a_point_per_size():
    axes = score_figures.score_vs_rows(scores().assign(rows_train=[100, 1000] * 9)).axes[0]
    assert list(lines(axes)["LoRA (ours) r1 q+v"].get_xdata()) == [100, 1000]
    assert list(lines(axes)["full fine-tuning"].get_xdata()) == [1000]


def test_baselines_of_different_labels_are_not_pooled():
    few_rows = scores()[-1:].assign(label="few", best=0.5)
    _, sizes = score_figures.hero(pd.concat([scores(), few_rows])).axes
    assert list(lines(sizes)["full fine-tuning"].get_ydata()) == [0.8]
    assert list(lines(sizes)["full fine-tuning few"].get_ydata()) == [0.5]


def test_published_numbers_are_lines_with_their_spread_as_a_band():
    rows = score_figures.score_rows(*runs_and_verdicts())
    assert (
        len(rows[rows.method == "published"]) == 3
    )  # the twins' once, none that is not comparable
    best = score_figures.hero(rows).axes[0]
    assert list(lines(best)["paper.ranks, LoRA q+v, published"].get_ydata()) == [0.72, 0.74]
    (band,) = [x for x in best.collections if type(x).__name__ == "FillBetweenPolyCollection"]
    reach = band.get_paths()[0].vertices[:, 1]
    assert (reach.min(), reach.max()) == (pytest.approx(0.71), pytest.approx(0.75))
    assert best.get_ylabel() == "accuracy, best epoch, %"
    last = rows[(rows.method != "published") | rows.best.isna()]
    assert score_figures.hero(last).axes[0].get_ylabel() == "accuracy, last epoch, %"


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
    other = scores()[scores().targets.isna() | (scores().targets == "all")].assign(task="u")
    figure = score_figures.hero(pd.concat([scores(), other]))
    looks = [{name: line.get_color() for name, line in lines(axes).items()} for axes in figure.axes]
    assert looks[2].items() < looks[0].items()
    rows = score_figures.score_rows(*runs_and_verdicts())
    (legend,) = score_figures.hero(rows).legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(shown) == len(set(shown)) == 7  # four lines of runs, two baselines, one published


def scored_rows() -> pd.DataFrame:
    return score_figures.bits_rows(scored())


def test_a_line_is_a_cell_without_its_bits():
    assert scored_rows().line.unique().tolist() == ["lora r2 q+v", "lora r2 q+v loftq"]


def test_bits_are_in_order_with_means_at_their_place_and_no_lines_between():
    figure = score_figures.score_vs_bits(scored_rows())
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "32"]
    names = ("LoRA (ours) r2 q+v", "LoRA (ours) r2 q+v loftq")
    plain, loftq = (lines(axes)[name] for name in names)
    assert np.round(np.asarray(plain.get_xdata(), float)).tolist() == [0, 1, 2]
    assert plain.get_ydata() == pytest.approx([0.715, 0.725, 0.865])
    assert loftq.get_ydata() == pytest.approx([0.715, 0.725])
    assert plain.get_linestyle() == loftq.get_linestyle() == "None"
    one = scored_rows()[lambda rows: rows.base_bits == 4]
    assert undrawn(FIGURES["score_vs_bits"], one) == "all bases have as many bits"


def test_methods_that_the_figures_have_not_heard_of_are_drawn(monkeypatch):
    """A new entry of methods.yaml is all that a method needs; twelve have lines of their own."""
    for method, trains in (("norms", "weights"), ("mine", "adapter")):
        entry = MethodEntry(name=method, label=method.upper(), code="a:B", trains=trains)
        monkeypatch.setitem(METHODS, method, entry)
    assert len({line_of(method) for method in METHODS}) == len(METHODS)
    norms = scores()[-1:].assign(method="norms", best=0.75)
    mine = scores()[scores().method == "lora"].assign(method="mine")
    for axes in score_figures.hero(pd.concat([scores(), norms, mine])).axes:
        assert set(lines(axes)) >= {"NORMS", "MINE q+v"}


def sick() -> pd.DataFrame:
    """Return the small study with one run of rank 8 on all matrices, and the head, collapsed."""
    runs = scores().assign(best_collapsed=False)
    place = (runs["rank"] == 8) & (runs.targets == "all") & (runs.method == "lora")
    return runs.assign(best_collapsed=place & (runs.seed == 1) | (runs.method == "head"))


@pytest.mark.parametrize("draw", ["hero", "score_vs_rows"])
def test_collapsed_runs_are_marked_at_their_score_and_named(draw):
    """The head is a band in the hero, and so has no mark of its own."""
    axes = getattr(score_figures, draw)(sick()).axes[0]
    marked = [c for c in axes.collections if c.get_label() == "collapsed run"]
    places = sorted(y for mark in marked for _, y in mark.get_offsets())
    assert places == pytest.approx([0.8] if draw == "hero" else [0.66, 0.8])
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()].count("collapsed run") == 1
    said = getattr(score_figures, f"describe_{draw}")(sick())
    assert "t LoRA (ours) r8 all, 1 of 2 runs; t head only, 1 of 1 runs" in said
    assert "ollapsed" not in getattr(score_figures, f"describe_{draw}")(scores())


def test_one_panel_shows_the_choice_of_an_epoch_that_counts():
    """The selected one where all runs of a task have it, and none where there is one epoch."""
    several = scores().assign(task="u", best_epoch=2, last_epoch=3)
    chosen = several.assign(task="t", selected=several.best, selected_epoch=2)
    once = scores().assign(task="v", best_epoch=1, last_epoch=1)
    runs = pd.concat([chosen, several, once], ignore_index=True)
    names = [axes.get_ylabel() for axes in score_figures.score_vs_rows(runs).axes[:3]]
    assert [name.replace("\n", " ") for name in names] == [
        "validation accuracy, selected epoch, %",
        "validation accuracy, best epoch, %",
        "validation accuracy, one epoch, %",
    ]


@pytest.mark.parametrize(("majority", "far"), [(0.6, False), (0.4, True)])
def test_a_majority_class_far_below_everything_is_said_and_takes_no_room(majority, far):
    rank, sizes = score_figures.hero(scores().assign(majority=majority)).axes
    assert rank.get_ylim() == sizes.get_ylim()
    assert ("majority class" in lines(rank)) == ("majority class" in lines(sizes)) == (not far)
    assert (rank.get_ylim()[0] > majority) == far
    assert rank.get_ylim()[0] < 0.66  # of the head alone
    assert [text.get_text() for text in rank.texts] == (["majority class: 40.0 %"] if far else [])


def test_a_head_far_below_all_else_is_said_beside_the_majority_class():
    runs = scores().assign(majority=0.4)
    runs.loc[runs.method == "head", ["best", "last"]] = 0.5
    rank, sizes = score_figures.hero(runs).axes
    assert "head only" not in {*lines(rank), *lines(sizes)}
    (said,) = rank.texts
    assert said.get_text() == "head only: 50.0 %\nmajority class: 40.0 %"
    assert 0.5 < rank.get_ylim()[0] < 0.7


def test_many_lines_have_shades_of_their_own_beside_each_other_and_twins_share_them():
    sets = ("q", "v", "q+v", "all")
    runs = scores()
    ours = runs[runs.targets == "q+v"]
    runs = pd.concat([ours.assign(targets=name) for name in sets] + [runs[runs.targets.isna()]])
    rank, _ = score_figures.hero(runs).axes
    drawn = lines(rank)
    shades = [drawn[f"LoRA (ours) {name}"].get_color() for name in sets]
    assert len(set(shades)) == 4
    assert shades == [drawn[f"LoRA (PEFT) {name}"].get_color() for name in sets]
    places = {line.get_xdata()[0] for name, line in drawn.items() if name.startswith("LoRA")}
    assert len(places) == 4 and all(0.8 < place < 1.25 for place in places)


def test_ranks_next_to_each_other_have_one_tick_that_of_the_power_of_two():
    runs = scores()
    ranks = {1.0: 16.0, 8.0: 20.0}
    rank, _ = score_figures.hero(runs.assign(rank=runs["rank"].map(ranks))).axes
    assert [text.get_text() for text in rank.get_xticklabels()] == ["16"]
