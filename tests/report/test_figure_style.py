"""All figures: equal data give equal bytes, and text is legible."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text

import tiny_tables
from loraudit.base.files import folder_fingerprint
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figure_style import COLUMN, WIDTH, save, score_axis
from loraudit.report.forest_figures import published


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


DRAW = {
    **{
        name: (figure.code("draw"), lambda name=name: tiny_tables.rows(name))
        for name, figure in FIGURES.items()
    },
    "published": (published, lambda: tiny_tables.compared()[:3]),
}
"""Each figure's drawing function, and rows for it."""


def save_all(folder: str) -> None:
    for name, (draw, rows) in DRAW.items():
        save(draw(rows()), rows(), Path(folder) / name)


@pytest.mark.long
@pytest.mark.slow
def test_equal_data_give_equal_bytes_in_any_process(tmp_path):
    """Whatever the hash seed and a matplotlibrc of the user's."""
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\n")
    program = "import sys, test_figure_style; test_figure_style.save_all(sys.argv[1])"
    for name, extra in (("a", {}), ("b", {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")})):
        path = os.pathsep.join(["src", "tests", "tests/report", os.environ.get("PYTHONPATH", "")])
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


HARD = {
    f"{name}-long-names": (draw, lambda rows=rows: renamed(rows()))
    for name, (draw, rows) in DRAW.items()
}


HARD["hero-six-tasks"] = (
    FIGURES["hero"].code("draw"),
    lambda: pd.concat([renamed(tiny_tables.scores()).assign(task=f"task-{n}") for n in range(6)]),
)


@pytest.mark.parametrize(("draw", "rows"), [*DRAW.values(), *HARD.values()], ids=[*DRAW, *HARD])
def test_text_is_legible_inside_the_figure_and_apart(draw, rows):
    figure = draw(rows())
    figure.canvas.draw()
    assert figure.get_figwidth() in (WIDTH, COLUMN, 2 * COLUMN)
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


def test_an_axis_of_scores_is_in_percent_or_in_the_scores_own_unit():
    figure, (one, two) = plt.subplots(1, 2)
    score_axis(one, "last epoch", "accuracy")
    assert one.get_ylabel() == "last epoch, %"
    assert one.yaxis.get_major_formatter()(0.81) == "81"
    score_axis(two, "last epoch", "log_loss")
    assert " ".join(two.get_ylabel().split()) == "last epoch (nats per token; lower is better)"
    assert two.yaxis.get_major_formatter()(3.21) != "321"
    plt.close(figure)
