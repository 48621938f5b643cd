"""Figures: equal data give equal bytes; series, bars and baselines are the table's."""

import pandas as pd
import pytest

from loraudit import figures


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
    (figures.spectra, spectrum),
    (figures.stable_rank, projections),
    (figures.amplification, projections),
    (figures.subspaces, lambda: figures.pair_rows(similarities(), "ranks")),
]


@pytest.mark.parametrize(("draw", "table"), DRAW, ids=[draw.__name__ for draw, _ in DRAW])
def test_equal_data_equal_bytes(draw, table, tmp_path):
    for name in ("a", "b"):
        figures.save(draw(table()), table(), tmp_path / name / "figure")
    for suffix in ("svg", "png", "csv"):
        one, two = ((tmp_path / name / "figure").with_suffix(f".{suffix}") for name in "ab")
        assert one.read_bytes() == two.read_bytes()


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
    assert axes.get_xlim() == (100, 10**7)


def test_equal_counts_still_get_a_decade():
    axes = figures.score_vs_parameters(tidy()[:1]).axes[0]
    assert axes.get_xlim() == (1000, 10**4)


def test_the_forest_shows_comparable_rows_with_their_words():
    axes = figures.verdicts(compared()).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.split(" | ")[0] for name in names] == [
        "t lora r1 q+v",
        "t lora r2 q+v",
        "t lora r4 q+v",
    ]
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
        (lambda: figures.subspaces(pd.DataFrame()), "no two adapters of this study"),
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
    panels = figures.spectra(spectrum()).axes[:2]
    assert [panel.get_title(loc="left") for panel in panels] == ["t, m, r=2 q+v\nq", "v"]
    for panel in panels:
        assert [list(line.get_ydata()) for line in panel.lines] == [[19.5, 19.0], [20.5, 20.0]]
        assert panel.get_yscale() == "log"


def test_the_stable_rank_has_a_line_of_means_per_cell_and_a_dot_per_seed():
    figure = figures.stable_rank(projections())
    q, v = figure.axes
    assert [line.get_label() for line in q.lines] == ["r=2 q", "r=2 q+v"]  # rank 1 says nothing
    assert list(q.lines[0].get_ydata()) == pytest.approx([1.75, 1.75])
    assert [len(dots.get_offsets()) for dots in q.collections] == [4, 4]
    assert [len(dots.get_offsets()) for dots in v.collections] == [0, 4]


def test_cells_beyond_the_colours_are_counted():
    cells = [projections().assign(label=str(number)) for number in range(5)]
    (legend,) = figures.stable_rank(pd.concat(cells)).legends
    assert len(legend.get_texts()) == len(figures.COLOURS)
    assert legend.get_title().get_text() == "3 further cells are in the table"


def test_table_7_is_four_lines_on_a_log_axis():
    q, v = figures.amplification(projections()).axes
    for panel in (q, v):
        assert panel.get_yscale() == "log"
        assert [list(line.get_ydata()) for line in panel.lines] == [[4, 4], [9, 9], [2, 2], [1, 1]]


def test_phi_has_a_row_per_matrix_three_layers_and_the_control():
    shown = figures.pair_rows(similarities(), "ranks")
    assert set(shown.layer) == {0, 2, 3}
    assert set(shown.targets) == {"q+v"}
    panels = figures.subspaces(shown).axes[:8]
    titles = [panel.get_title() for panel in panels]
    assert titles == [
        f"{m}, {x}" for m in "qv" for x in ("layer 0", "layer 2", "layer 3", "random")
    ]
    found = [panel.images[0].get_array().tolist() for panel in panels[:4]]
    assert found == [[[pytest.approx(a), pytest.approx(b)]] for a, b in
                     ((0.1, 0.2), (0.3, 0.4), (0.4, 0.5), (0.1, 0.1))]  # fmt: skip
    assert figures.pair_rows(similarities(), "seeds").empty
