"""The contact sheet shows every figure once."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from loraudit.base.errors import UserError
from loraudit.report.contact_sheet import contact_sheet


def test_every_figure_is_on_the_page_at_half_its_size(tmp_path):
    files = []
    for number, red in enumerate((0.2, 0.4, 0.6, 0.8, 1.0)):
        file = tmp_path / f"{number}.png"
        plt.imsave(file, np.full((40 + 20 * number, 100, 3), (red, 0.0, 0.0)))
        files.append(file)
    contact_sheet(files, tmp_path / "page.png")
    page = plt.imread(tmp_path / "page.png")
    for number, red in enumerate((0.2, 0.4, 0.6, 0.8, 1.0)):
        own = np.isclose(page[..., 0], red, atol=0.01) & (page[..., 1] == 0)
        assert own.sum() == 50 * (20 + 10 * number)


def test_without_figures_it_says_so(tmp_path):
    with pytest.raises(UserError, match="no figures to tile"):
        contact_sheet([], tmp_path / "page.png")
