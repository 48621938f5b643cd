"""Figures: equal data give equal bytes; series, bars and baselines are the table's."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text

from loraudit.analysis.cost import PRICES
from loraudit.base.files import folder_fingerprint
from loraudit.report import figures, section7_figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def tidy() -> pd.DataFrame:
    rows = [
        {
            "method": method,
            "rank": rank,
            "targets": targets,
            "seed": seed,
            "best": 0.7 + rank / 100 + seed / 50,
            "last": 0.7 + rank / 100,
            "parameters_trainable": 1000 * rank + len(targets),
        }
        for method in ("lora", "peft")
        for rank in (1, 8)
        for targets in ("q+v", "all")
        for seed in (0, 1)
    ]
    rows += [
        {
            "method": method,
            "rank": None,
            "targets": None,
            "seed": 0,
            "best": score,
            "last": score,
            "parameters_trainable": count,
        }
        for method, score, count in (("head", 0.6, 770), ("full", 0.8, 10**7))
    ]
    return pd.DataFrame(rows).assign(task="t", model="m", label="", metric="accuracy")


def checks() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"cell": "c", "check": check, "dtype": dtype, "difference": gap, "tolerance": limit}
            for check, gap, limit in (("same layers", 0.0, 0.0), ("outputs", 1e-12, 1e-8))
            for dtype in ("float64", "float32")
        ]
    )


def compared() -> pd.DataFrame:
    """Make a verdict table with one row per word."""
    words = ["reproduced", "not reproduced", "undecided", "not comparable"]
    gaps = [0.001, -0.02, -0.01, float("nan")]
    return pd.DataFrame(
        {
            "task": "t",
            "method": "lora",
            "rank": [1, 2, 4, 8],
            "targets": "q+v",
            "label": "",
            "published": "paper.table",
            "ours": "poster.seeds",
            "selection": "best epoch",
            "epoch": "best",
            "n": 5,
            "difference": gaps,
            "low": [gap - 0.005 for gap in gaps],
            "high": [gap + 0.005 for gap in gaps],
            "margin": 0.01,
            "published_value": 0.9,
            "published_sd": [0.002, float("nan"), 0.004, 0.001],
            "verdict": words,
        }
    )


def effects() -> pd.DataFrame:
    rows = [("head trained", "best", 0.05), ("head trained", "last", 0.06)]
    rows += [("last epoch, not the best", "best", -0.01)]
    table = pd.DataFrame(rows, columns=["switch", "epoch", "difference"])
    table = table.assign(low=table.difference - 0.01, high=table.difference + 0.01)
    both = [table.assign(task=task, model="m", base=0.8, n=5) for task in ("a", "b")]
    return pd.concat(both, ignore_index=True)


def costs() -> pd.DataFrame:
    cells = {"method": ["lora", "full"], "rank": [8, None], "targets": ["q+v", None], "label": ""}
    numbers = {"bytes_tasks": [5e8, 5e9], "peak_mib": [900, 1800], "seconds_step": [0.2, 0.4]}
    return pd.DataFrame({"task": "t", "model": "m", **cells, **numbers})


def epochs() -> pd.DataFrame:
    runs = tidy()[["task", "model", "method", "rank", "targets", "label", "seed"]]
    tables = [
        runs.assign(epoch=epoch, train_loss=1 / epoch + runs.seed / 10, score=0.5 + epoch / 10)
        for epoch in (1, 2)
    ]
    return pd.concat(tables, ignore_index=True)


def spectrum() -> pd.DataFrame:
    """Make singular values of two layers, ranks 1 and 2, and two target sets: the second wider."""
    rows = [
        {
            "run": f"{targets}-r{rank}-s{seed}",
            "rank": rank,
            "targets": targets,
            "layer": layer,
            "matrix": matrix,
            "index": index,
            "singular_value": 10.0 * rank + layer - index / 2 + seed / 10,
        }
        for targets, matrices in (("q", "q"), ("q+v", "qv"))
        for rank in (1, 2)
        for seed in (0, 1)
        for layer in (0, 1)
        for matrix in matrices
        for index in range(1, rank + 1)
    ]
    return pd.DataFrame(rows).assign(task="t", model="m", label="")


def projections() -> pd.DataFrame:
    rows = spectrum().drop_duplicates(["run", "layer", "matrix"]).reset_index(drop=True)
    norms = {"update_norm": 4, "projected_weight": 9, "projected_update": 2, "projected_random": 1}
    ranks = 1 + rows["rank"] / 10 + rows.singular_value % 1
    return rows.assign(stable_rank=ranks, **norms)


def similarities() -> pd.DataFrame:
    """Make phi of pairs of ranks 1 and 2 in four layers, with a control in the first."""
    rows = [
        {
            "targets": targets,
            "layer": layer,
            "matrix": matrix,
            "control": control,
            "i": 1,
            "j": j,
            "phi": 0.1 if control else (layer + j) / 10,
        }
        for targets, matrices in (("q", "q"), ("q+v", "qv"))
        for matrix in matrices
        for layer, control in ((0, False), (0, True), (1, False), (2, False), (3, False))
        for j in (1, 2)
    ]
    names = {"task": "t", "model": "m", "label": "", "first": "r1 s0", "second": "r2 s0"}
    return pd.DataFrame(rows).assign(pair="ranks", side="right", **names)


def priced() -> pd.DataFrame:
    """Make three cells, of which the second is beaten in everything by the first."""
    prices = {price: [1000, 2000, 3000] for price in PRICES}
    fronts = {f"front_{price}": [True, False, True] for price in PRICES}
    cells = {"method": ["lora", "lora", "full"], "rank": [1, 8, None], "label": ""}
    scores = {"last_mean": [0.8, 0.7, 0.9], "last_sd": [0.01, float("nan"), 0.02]}
    names = {"task": "t", "model": "m", "targets": ["q+v", "q+v", None], "metric": "accuracy"}
    return pd.DataFrame({**names, **cells, **scores, **prices, **fronts})


DRAW = [
    (figures.score_vs_rank, tidy),
    (figures.score_vs_parameters, tidy),
    (figures.score_vs_rows, lambda: tidy().assign(rows_train=[100, 1000] * 9)),
    (figures.learning_curves, epochs),
    (figures.crosscheck, checks),
    (figures.verdicts, compared),
    (figures.published, lambda: compared()[:3]),
    (figures.switches, effects),
    (figures.cost, costs),
    (figures.pareto, priced),
    (section7_figures.spectra, spectrum),
    (section7_figures.stable_rank, projections),
    (section7_figures.amplification, projections),
    (section7_figures.subspaces, lambda: section7_figures.pair_rows(similarities(), "ranks")),
]


NAMES = [draw.__name__ for draw, _ in DRAW]


def save_all(folder: str) -> None:
    for draw, table in DRAW:
        figures.save(draw(table()), table(), Path(folder) / draw.__name__)


def test_equal_data_give_equal_bytes_in_any_process(tmp_path):
    """Whatever the hash seed and a matplotlibrc of the user's."""
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\n")
    program = "import sys, test_figures; test_figures.save_all(sys.argv[1])"
    for name, extra in (("a", {}), ("b", {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")})):
        path = os.pathsep.join(["src", "tests", os.environ.get("PYTHONPATH", "")])
        seed = {"PYTHONHASHSEED": str(ord(name)), "PYTHONPATH": path}
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        subprocess.run(command, env={**os.environ, **seed, **extra}, check=True)
    one, two = (folder_fingerprint(tmp_path / name) for name in "ab")
    assert len(one) == 3 * len(DRAW)
    assert one == two


def renamed(table: pd.DataFrame) -> pd.DataFrame:
    """Give a table's task, model and labels the length that real ones have at most."""
    long = {
        "task": "a-task-of-long-name",
        "model": "some-model-large-v3",
        "label": "global-batch-4",
    }
    return table.assign(**{key: name for key, name in long.items() if key in table})


HARD = [(draw, lambda table=table: renamed(table())) for draw, table in DRAW]


@pytest.mark.parametrize(
    ("draw", "table"), [*DRAW, *HARD], ids=[*NAMES, *(f"{name}-long-names" for name in NAMES)]
)
def test_text_is_legible_inside_the_figure_and_apart(draw, table):
    figure = draw(table())
    figure.canvas.draw()
    assert figure.get_figwidth() == figures.WIDTH
    labels, unseen = tick_labels(figure)
    room = figure.bbox.padded(1)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text not in unseen]
    for text in texts:
        box = text.get_window_extent()
        if text.get_text() and box.width:
            assert text.get_fontsize() >= 7
            assert room.x0 <= box.x0 <= box.x1 <= room.x1, text
            assert room.y0 <= box.y0 <= box.y1 <= room.y1, text
    titles = [axes.title for axes in figure.axes] + [axes._left_title for axes in figure.axes]
    apart = [text for text in [*labels, *titles] if text.get_text() and "\n" not in text.get_text()]
    boxes = [(text, text.get_window_extent().padded(-1)) for text in apart]
    for (one, box), (two, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), (one, two)


def tick_labels(figure) -> tuple[list[Text], list[Text]]:
    """Return the tick labels that are drawn, and those beyond the limits or hidden."""
    drawn, hidden = [], []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                inside = axes.axison and axes.get_visible() and low <= tick.get_loc() <= high
                shown = inside and tick.label1.get_visible()
                (drawn if shown else hidden).append(tick.label1)
                hidden.append(tick.label2)
    return drawn, hidden


def test_rank_figure_shows_every_series_mean():
    axes = figures.score_vs_rank(tidy()).axes[0]
    shown = {box.get_label(): box.lines[0].get_ydata() for box in axes.containers}
    assert set(shown) == {f"LoRA ({who}), {t}" for who in ("ours", "PEFT") for t in ("q+v", "all")}
    assert list(shown["LoRA (ours), q+v"]) == pytest.approx([0.72, 0.79])
    assert {line.get_label() for line in axes.lines} >= {"head only", "full fine-tuning"}


def test_parameter_figure_has_every_method_on_a_log_axis():
    axes = figures.score_vs_parameters(tidy()).axes[0]
    assert axes.get_xscale() == "log"
    labels = {box.get_label(): box.lines[0].get_xdata() for box in axes.containers}
    assert list(labels["head only"]) == [770]
    assert list(labels["full fine-tuning"]) == [10**7]
    assert len(labels) == 6
    low, high = axes.get_xlim()
    assert low < 770 and high > 10**7


def test_equal_counts_still_get_a_decade():
    low, high = figures.score_vs_parameters(tidy()[:1]).axes[0].get_xlim()
    assert high / low > 10


def test_the_forest_shows_comparable_rows_with_their_words():
    axes = figures.verdicts(compared()).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.split(" | ")[0] for name in names] == [
        "t lora r1 q+v, n=5",
        "t lora r2 q+v, n=5",
        "t lora r4 q+v, n=5",
    ]
    bars = [bar for bar in axes.patches if bar.get_height() == 0.5]  # the ± of published numbers
    assert [bar.get_width() for bar in bars] == [pytest.approx(0.4), pytest.approx(0.8)]
    places = [
        dots.get_offsets()[0].tolist() for dots in axes.collections if len(dots.get_offsets())
    ]
    assert places == [[pytest.approx(100 * gap), i] for i, gap in enumerate((0.001, -0.02, -0.01))]
    assert [text.get_text() for text in axes.texts][1] == "-2.0 [-2.5, -1.5]"


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        (lambda: figures.verdicts(compared()[3:]), "no cell of this study can be compared"),
        (lambda: figures.verdicts(pd.DataFrame()), "no cell of this study can be compared"),
        (lambda: figures.switches(pd.DataFrame()), "no switch and base share two seeds"),
        (lambda: section7_figures.subspaces(pd.DataFrame()), "no two adapters of this study"),
    ],
)
def test_a_figure_without_rows_says_why(figure, reason):
    (text,) = figure().axes[0].texts
    assert reason in text.get_text()


def test_the_switch_figure_has_a_panel_per_task_and_both_epochs():
    panels = figures.switches(effects()).axes
    assert [panel.get_title() for panel in panels] == [f"{t}, m: base 80.0 %, n=5" for t in "ab"]
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == ["head trained", "", "last epoch, not the best"]


def test_the_rows_figure_has_a_point_per_size():
    axes = figures.score_vs_rows(tidy().assign(rows_train=[100, 1000] * 9)).axes[0]
    lines = {box.get_label(): list(box.lines[0].get_xdata()) for box in axes.containers}
    assert lines["LoRA (ours), r1 q+v"] == [100, 1000]
    assert lines["full fine-tuning"] == [1000]


def test_learning_curves_show_a_mean_line_per_cell_and_twins_share_a_colour():
    loss, score = figures.learning_curves(epochs()).axes
    lines = {line.get_label(): line for line in loss.lines}
    assert list(lines["lora r1 q+v"].get_ydata()) == pytest.approx([1.05, 0.55])
    assert lines["lora r1 q+v"].get_color() == lines["peft r1 q+v"].get_color()
    assert lines["lora r1 q+v"].get_color() != lines["lora r8 q+v"].get_color()
    assert lines["peft r1 q+v"].get_linestyle() == "--"
    assert list(score.lines[0].get_ydata()) == pytest.approx([0.6, 0.7])


def test_baselines_of_different_labels_are_not_pooled():
    few = tidy()[-1:].assign(label="few", best=0.5)
    axes = figures.score_vs_rank(pd.concat([tidy(), few])).axes[0]
    heights = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    assert heights["full fine-tuning"] == 0.8
    assert heights["full fine-tuning few"] == 0.5


def test_the_cost_figure_has_a_bar_per_cell_in_three_units():
    panels = figures.cost(costs()).axes
    widths = [[bar.get_width() for bar in panel.patches] for panel in panels]
    assert widths == [[500, 5000], [900, 1800], [pytest.approx(200), pytest.approx(400)]]


def test_every_baseline_is_a_line_of_the_rank_figure():
    bitfit = tidy()[-1:].assign(method="bitfit", best=0.75)
    axes = figures.score_vs_rank(pd.concat([tidy(), bitfit])).axes[0]
    assert {line.get_label() for line in axes.lines} >= {"head only", "BitFit", "full fine-tuning"}


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
    assert len(legend.get_texts()) == len(figures.COLOURS)
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


def runs_and_verdicts() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make runs of the paper's model and numbers: ranks of one table, a baseline, another."""
    runs = tidy().assign(rows_train=100)
    rows = [
        ("lora", 1, "q+v", "best", "paper.ranks", 0.72, 0.01, "reproduced"),
        ("peft", 1, "q+v", "best", "paper.ranks", 0.72, 0.01, "reproduced"),
        ("lora", 8, "q+v", "best", "paper.ranks", 0.74, 0.01, "undecided"),
        ("full", None, None, "last", "paper.main", 0.81, float("nan"), "not reproduced"),
        ("lora", 8, "all", "best", "paper.other", 0.99, 0.01, "not comparable"),
    ]
    names = ["method", "rank", "targets", "epoch", "published", "published_value", "published_sd"]
    table = pd.DataFrame(rows, columns=[*names, "verdict"])
    return runs, table.assign(task="t", model="m", label=None, metric="accuracy")


def test_published_numbers_are_lines_with_their_spread_as_a_band():
    rows = figures.score_rows(*runs_and_verdicts())
    assert (
        len(rows[rows.method == "published"]) == 3
    )  # the twins' once, none that is not comparable
    best, last = figures.score_vs_rank(rows).axes
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
        assert set(figures.score_rows(runs, verdicts).method) == {"lora", "peft", "head", "full"}


def test_the_front_is_filled_and_joined():
    axes = figures.pareto(priced()).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-"] == [
        [1000, 3000]
    ]
    fills = [box.lines[0].get_markerfacecolor() for box in axes.containers]
    assert [fill == "white" for fill in fills] == [False, True, False]


def test_the_crosscheck_csv_has_the_worst_of_every_check():
    table = pd.concat([checks(), checks().assign(cell="d", difference=1e-3)], ignore_index=True)
    rows = figures.crosscheck_rows(table)
    assert list(rows.cell) == ["d"] * 4
    assert list(rows.check.drop_duplicates()) == ["same layers", "outputs"]


def test_a_series_looks_the_same_in_every_panel_and_the_legend_has_all():
    other = tidy()[tidy().targets.isna() | (tidy().targets == "all")].assign(task="u")
    figure = figures.score_vs_rank(pd.concat([tidy(), other]))
    one, two = figure.axes[0], figure.axes[2]
    looks = [
        {box.get_label(): box.lines[0].get_color() for box in axes.containers}
        for axes in (one, two)
    ]
    assert looks[1].items() < looks[0].items()
    rows = figures.score_rows(*runs_and_verdicts())
    (legend,) = figures.score_vs_rank(rows).legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(shown) == len(set(shown)) == 8  # four lines of runs, two baselines, two published
