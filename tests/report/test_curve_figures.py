"""Learning curves."""

import matplotlib.pyplot as plt
import pytest

from loraudit.report import curve_figures
from tiny_tables import epochs


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_learning_curves_show_a_mean_line_per_cell_and_twins_share_a_colour():
    loss, score = curve_figures.learning_curves(epochs()).axes
    lines = {line.get_label(): line for line in loss.lines}
    assert list(lines["lora r1 q+v"].get_ydata()) == pytest.approx([1.05, 0.55])
    assert lines["lora r1 q+v"].get_color() == lines["peft r1 q+v"].get_color()
    assert lines["lora r1 q+v"].get_color() != lines["lora r8 q+v"].get_color()
    assert lines["peft r1 q+v"].get_linestyle() == "--"
    assert list(score.lines[0].get_ydata()) == pytest.approx([0.6, 0.7])
