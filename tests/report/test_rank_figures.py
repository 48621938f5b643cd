"""The figure of moving ranks."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from loraudit.report import rank_figures
from tiny_tables import moved


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def moved_rows() -> pd.DataFrame:
    return rank_figures.rank_rows(moved())


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


def test_the_first_cells_are_drawn_of_many():
    many = pd.concat([moved().assign(label=f"l{n}") for n in range(9)])
    kept = rank_figures.rank_rows(many)
    assert kept.label.unique().tolist() == [f"l{n}" for n in range(rank_figures.MOST_CELLS)]
