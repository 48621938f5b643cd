"""The figure of the cross-check."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from loraudit.report import crosscheck_figures
from tiny_tables import checks


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_crosscheck_csv_has_the_worst_of_every_check():
    table = pd.concat([checks(), checks().assign(cell="d", difference=1e-3)], ignore_index=True)
    rows = crosscheck_figures.crosscheck_rows(table)
    assert list(rows.cell) == ["d"] * 4
    assert list(rows.check.drop_duplicates()) == ["same layers", "outputs"]


def test_without_a_cross_check_the_figure_says_so():
    rows = crosscheck_figures.crosscheck_rows(pd.DataFrame())
    (text,) = crosscheck_figures.crosscheck(rows).axes[0].texts
    assert "no cross-check of this study has a result" in text.get_text()
