"""Figures of cost and of scores against their price."""

import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from loraudit.report import cost_figures
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figure_style import epoch_name
from loraudit.report.figures import undrawn
from loraudit.report.looks import look_of
from tiny_tables import costs, priced


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_cost_figure_has_a_bar_per_cell_in_three_units():
    panels = cost_figures.cost(costs()).axes
    widths = [[bar.get_width() for bar in panel.patches] for panel in panels]
    assert widths == [[500, 5000], [900, 1800], [pytest.approx(200), pytest.approx(400)]]
    spreads = [high - low for ((low, _), (high, _)) in panels[2].collections[0].get_segments()]
    assert spreads == [pytest.approx(20), 0]  # the second has four runs, which have no bar


def test_times_within_their_spread_are_said_to_be():
    (_, _, apart), (_, _, alike) = (
        cost_figures.cost(table).axes for table in (costs(), costs().assign(steps_differ=False))
    )
    assert apart.get_xlabel() == "CPU time per step, ms"
    assert alike.get_xlabel() == "CPU time per step, ms\n(differences within noise)"
    assert "within the spread" not in cost_figures.describe_cost(costs())
    assert "within the spread" in cost_figures.describe_cost(costs().assign(steps_differ=False))


def test_a_cost_that_all_cells_have_in_common_has_no_panel():
    alike = costs().assign(bytes_tasks=5e8)
    assert [axes.get_xlabel() for axes in cost_figures.cost(alike).axes] == [
        "peak memory, MiB",
        "CPU time per step, ms",
    ]
    assert "disk" not in cost_figures.describe_cost(alike)
    alike = alike.assign(peak_mib=900, step=0.2)
    assert undrawn(FIGURES["cost"], alike) == "of what it shows, nothing differs by more than 2 %"
    assert undrawn(FIGURES["cost"], costs()) == ""


def test_the_walls_time_is_drawn_of_gpus_alone():
    """On CPUs runs share the machine, and the wall's clock counts what else it does."""
    wall = costs().assign(clock="wall")
    assert len(cost_figures.cost(wall).axes) == 2
    assert len(cost_figures.cost(wall.assign(device_mib=100.0)).axes) == 3
    named = [axes.get_xlabel() for axes in cost_figures.pareto(priced().assign(clock="wall")).axes]
    assert named == ["trainable parameters", "peak memory, MiB"]
    assert len(cost_figures.pareto(priced().assign(clock="wall", on_gpu=True)).axes) == 3


def test_a_fit_without_steps_has_no_time_of_one():
    fit = costs()[:1].assign(method="probe", step=float("nan"), step_sd=float("nan"))
    table = pd.concat([costs(), fit], ignore_index=True)
    said = cost_figures.describe_cost(table)
    assert "CPU time per step, ms 200 (LoRA (ours) r8 q+v) to 400 (full fine-tuning)" in said
    labels = [text.get_text() for text in cost_figures.cost(table).axes[2].texts]
    assert labels == ["200", "400", "no steps"]


def test_two_sizes_of_which_nearly_all_cells_have_one_are_no_axis():
    cells = pd.concat([priced().assign(label=label) for label in ("", "x", "y")])
    cells = cells.assign(parameters_trainable=1000)
    cells.loc[(cells.method == "full") & (cells.label == "x"), "parameters_trainable"] = 9000
    shown = [axes.get_xlabel() for axes in cost_figures.pareto(cells).axes]
    assert "trainable parameters" not in shown
    cells.loc[cells.method == "full", "parameters_trainable"] = 9000
    shown = [axes.get_xlabel() for axes in cost_figures.pareto(cells).axes]
    assert shown[0] == "trainable parameters"


def test_sizes_within_a_factor_of_two_are_no_axis():
    alike = priced().assign(parameters_trainable=[1000, 1500, 1900] * 2)
    named = [axes.get_xlabel() for axes in cost_figures.pareto(alike).axes]
    assert named == ["CPU time per step, ms", "peak memory, MiB"]


@pytest.mark.parametrize("methods", [("lora", "full"), ("bitfit", "head")])
def test_each_run_stands_with_its_own_cells_means(methods):
    """Where no cell has a rank, the column of ranks holds no numbers to match by."""
    runs = [
        {"method": method, "rank": 8.0 if method == "lora" else None, "last": score, "seed": seed}
        for seed in (0, 1)
        for method, score in zip(methods, (0.8 + seed / 10, 0.6), strict=True)
    ]
    cell = {"task": "t", "model": "m", "targets": None, "label": "", "metric": "accuracy"}
    costs = {"parameters_trainable": 10, "steps": 5, "seconds_train": 1.0, "last_epoch": 1}
    memory = {"peak_memory_mib": 100.0, "peak_device_memory_mib": None}
    rows = cost_figures.pareto_rows(pd.DataFrame(runs).assign(**cell, **costs, **memory))
    assert rows.run_last.tolist() == pytest.approx([0.8, 0.6, 0.9, 0.6])
    assert rows.last_mean.tolist() == pytest.approx([0.85, 0.6] * 2)
    assert rows.method.tolist() == [*methods] * 2 and rows.seed.tolist() == [0, 0, 1, 1]


def test_every_seed_is_a_dot_of_its_cells_colour():
    axes = cost_figures.pareto(priced()).axes[0]
    dots = [c for c in axes.collections if len(c.get_offsets()) == 2]
    assert len(dots) == 3
    full = dots[2]
    assert to_hex(full.get_facecolors()[0]) == look_of("full").colour.lower()


def test_a_front_that_may_be_chance_is_not_drawn_but_said():
    table = priced().assign(clear_milliseconds_step=False, last_collapsed=[0, 1, 0] * 2)
    table["run_last_collapsed"] = (table["rank"] == 8) & (table.seed == 1)
    counted, timed, _ = cost_figures.pareto(table).axes
    joined = [
        [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
        for axes in (counted, timed)
    ]
    assert [len(lines) for lines in joined] == [1, 0]
    assert timed.get_xlabel() == "CPU time per step, ms\n(no clear front)"
    said = cost_figures.describe_pareto(table)
    assert (
        "by CPU time per step, ms LoRA (ours) r1 q+v (80.0 %), full fine-tuning (90.0 %) "
        "(within noise: no clear" in said
    )
    assert "Means with collapsed runs, which are marked: t LoRA (ours) r8 q+v, 1 of 3 runs." in said
    (legend,) = timed.figure.legends
    assert "collapsed run" in [text.get_text() for text in legend.get_texts()]
    (mark,) = [c for c in timed.collections if c.get_label() == "collapsed run"]
    assert mark.get_offsets().tolist() == [[2000, pytest.approx(0.7)]]  # the run, not the mean


def test_the_front_has_a_black_edge_and_is_joined():
    axes = cost_figures.pareto(priced()).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2] == [
        [1000, 3000]
    ]
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    edges = [to_hex(line.get_markeredgecolor()) for line in marks]
    assert [edge == "#000000" for edge in edges] == [True, False, True]


def test_the_epoch_of_a_score_is_called_as_in_the_figure_of_scores():
    table = priced()
    for last, name in ((1, "one epoch"), (3, "last epoch")):
        axes = cost_figures.pareto(table.assign(last_epoch=last)).axes[0]
        assert axes.get_ylabel() == f"accuracy, {name}, %"
        assert name == epoch_name(table.assign(last_epoch=last), "last")


def test_ticks_are_written_as_the_numbers_beside_bars():
    axes = cost_figures.cost(costs().assign(peak_mib=[900, 12_000])).axes
    ticks = [text.get_text() for panel in axes for text in panel.get_xticklabels()]
    assert any("," in text for text in ticks)
    assert not any(re.search(r"\d{4}", text) for text in ticks)


def test_of_many_cells_the_legend_names_sets_of_ranks_by_their_full_colour():
    """The legend of 39 cells was longer than their figure."""
    own = priced()
    lora = own[(own.method == "lora") & (own["rank"] == 1)]
    cells = [lora.assign(rank=float(rank)) for rank in range(1, 23)]
    figure = cost_figures.pareto(pd.concat([*cells, own[own.method == "full"]]))
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["LoRA (ours) q+v", "full fine-tuning"]
    assert "from the lowest to the highest rank" in legend.get_title().get_text()
    assert to_hex(legend.legend_handles[0].get_color()) == look_of("lora").colour.lower()
