"""Figures of moving ranks and of quantised bases."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from loraudit.report import rank_figures
from loraudit.report.alt_text import describe
from loraudit.report.figure_registry import make

CELL = {"task": "t", "model": "m", "rank": 2.0, "targets": "q+v", "label": ""}


def moved() -> pd.DataFrame:
    """Make two seeds that move rank from v to q, at step 10 or 20, and end at step 40."""
    rows = []
    for seed, step in ((0, 10), (1, 20)):
        for at, shift in ((0, 0), (step, 1), (40, 1)):
            for layer in (0, 1):
                for matrix, sign in (("q", 1), ("v", -1)):
                    run = {"run": f"s{seed}", "seed": seed, "step": at, "layer": layer}
                    rows.append({**run, "matrix": matrix, "in_use": 2 + sign * shift})
    return pd.DataFrame(rows).assign(method="alora", **CELL)


def moved_rows() -> pd.DataFrame:
    return rank_figures.rank_rows(moved())


def scored() -> pd.DataFrame:
    """Make scores of three cells over full precision, 4 and 2 bits, two seeds each."""
    rows = [
        {"method": method, "label": label, "base_bits": bits, "seed": seed, "run": f"{label}{seed}"}
        for method, label, bits in (
            ("lora", "", None),
            ("lora", "base_bits4", 4),
            ("lora", "base_bits2", 2),
            ("lora", "base_bits4-loftq", 4),
            ("lora", "base_bits2-loftq", 2),
        )
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows).assign(**{k: v for k, v in CELL.items() if k != "label"})
    scores = 0.7 + table.base_bits.fillna(32) / 200 + table.seed / 100
    return table.assign(metric="accuracy", best=scores, last=scores)


def scored_rows() -> pd.DataFrame:
    return rank_figures.bits_rows(scored())


def test_ranks_are_averaged_over_seeds_at_every_step_of_a_change():
    rows = moved_rows().set_index(["matrix", "layer", "step"]).in_use.sort_index()
    assert rows["q", 0].to_dict() == {0: 2, 10: 2.5, 20: 3, 40: 3}
    assert rows["v", 1].to_dict() == {0: 2, 10: 1.5, 20: 1, 40: 1}
    assert set(moved_rows().seeds) == {2}
    assert (moved_rows().groupby("step").in_use.sum() == 8).all()  # the budget stays


def test_the_map_shows_each_line_and_the_steps_at_their_place():
    figure = rank_figures.ranks(moved_rows())
    axes = figure.axes[0]
    image = axes.collections[0]
    assert np.allclose(
        np.ma.getdata(image.get_array()).reshape(4, 3),
        [[2, 2.5, 3], [2, 2.5, 3], [2, 1.5, 1], [2, 1.5, 1]],
    )
    assert image.get_coordinates()[0, :, 0].tolist() == [0, 10, 20, 40]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["q", "v"]
    assert "mean of 2 seeds" in figure.axes[-1].get_ylabel()
    plt.close(figure)


def test_the_first_cells_are_drawn_of_many():
    many = pd.concat([moved().assign(label=f"l{n}") for n in range(9)])
    kept = rank_figures.rank_rows(many)
    assert kept.label.unique().tolist() == [f"l{n}" for n in range(rank_figures.MOST_CELLS)]


def test_a_line_is_a_cell_without_its_bits():
    assert scored_rows().line.unique().tolist() == ["lora r2 q+v", "lora r2 q+v loftq"]


def test_bits_are_in_order_and_means_at_their_place():
    figure = rank_figures.score_vs_bits(scored_rows())
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "32"]
    plain = axes.containers[0].lines[0]
    assert np.round(np.asarray(plain.get_xdata(), float)).tolist() == [0, 1, 2]
    assert plain.get_ydata() == pytest.approx([0.715, 0.725, 0.865])
    loftq = axes.containers[1].lines[0]
    assert loftq.get_ydata() == pytest.approx([0.715, 0.725])
    plt.close(figure)


def test_they_are_drawn_by_name_and_described(tmp_path):
    make("ranks", [moved()], tmp_path / "ranks")
    make("score_vs_bits", [scored()], tmp_path / "bits")
    assert pd.read_csv(tmp_path / "ranks.csv").in_use.max() == 3
    assert "alora r2 q+v q 3.0, v 1.0" in describe("ranks", moved_rows())
    assert "71.5 at 2 bits, 72.5 at 4 bits, 86.5 at full" in describe(
        "score_vs_bits", scored_rows()
    )
