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


DRAW = [
    (figures.score_vs_rank, tidy),
    (figures.score_vs_parameters, tidy),
    (figures.crosscheck, checks),
]


@pytest.mark.parametrize(("draw", "table"), DRAW, ids=lambda value: value.__name__)
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
