"""Figures by their entries: described with their numbers, drawn from files with the CSV behind."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

import tiny_tables
from loraudit.report.alt_text import listed
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figures import describe, make_figure, told_apart


def describe_rows(name: str, rows: pd.DataFrame) -> str:
    return describe(FIGURES[name], rows)


@pytest.mark.parametrize("name", FIGURES)
def test_an_image_is_described_with_its_numbers(name):
    text = describe_rows(name, tiny_tables.rows(name))
    assert len(re.findall(r"\d", text)) > 3
    assert "nan" not in text
    assert len(text) < 1500
    assert "no rows" in describe_rows(name, pd.DataFrame())


def test_descriptions_say_what_is_there():
    text = describe_rows("hero", tiny_tables.scores())
    assert "LoRA (ours) q+v 72.0 at r=1, 79.0 at r=8" in text
    assert "full fine-tuning 80.0" in text
    text = describe_rows("verdicts", tiny_tables.compared())
    assert "1 reproduced, 1 not reproduced, 1 undecided" in text
    assert "not comparable" not in text
    text = describe_rows("crosscheck", tiny_tables.checks())
    assert text.count("1 of 2 checks differ by exactly 0") == 2
    assert "ALoRA r2 q+v q 3.0, v 1.0" in describe_rows("ranks", tiny_tables.rows("ranks"))
    text = describe_rows("score_vs_bits", tiny_tables.rows("score_vs_bits"))
    assert "71.5 at 2 bits, 72.5 at 4 bits, 86.5 at full" in text
    assert listed("abcdef", 2) == "a; b; and 4 more in the CSV"


def test_an_update_that_did_not_move_is_described_without_numbers_it_has_not():
    still = tiny_tables.projections().assign(stable_rank=float("nan"))
    assert "not defined, no adapter has moved" in describe_rows("stable_rank", still)
    still = tiny_tables.rows("spectra").assign(singular_value=0.0)
    assert "nan" not in describe_rows("spectra", still)


def places(axes: plt.Axes) -> np.ndarray:
    """Return x and y of all marks, lines and bars of a panel that stand at values of its data."""
    dots = [
        dot.get_offsets()
        for dot in axes.collections
        if dot.get_offset_transform() == axes.transData
    ]
    lines = [line.get_xydata() for line in axes.lines if line.get_transform() == axes.transData]
    bars = [
        np.concatenate(part.get_segments())
        for container in axes.containers
        if isinstance(container, ErrorbarContainer)
        for part in container.lines[2]
        if part.get_transform() == axes.transData and len(part.get_segments())
    ]
    return np.concatenate(
        [np.empty((0, 2)), *(np.asarray(part, float) for part in dots + lines + bars)]
    )


@pytest.mark.parametrize("name", FIGURES)
def test_every_mark_is_within_its_panel(name):
    figure = FIGURES[name].code("draw")(tiny_tables.rows(name))
    for axes in figure.axes:
        found = places(axes)
        found = found[np.isfinite(found).all(axis=1)]
        for values, limits in zip(found.T, (axes.get_xlim(), axes.get_ylim()), strict=True):
            assert (values >= min(limits)).all() and (values <= max(limits)).all(), name
    plt.close(figure)


@pytest.mark.parametrize("name", ["ranks", "cost"])
def test_a_figure_is_drawn_from_files_with_the_rows_that_it_shows(name, tmp_path):
    figure = FIGURES[name]
    (file,) = (tmp_path / table for table in figure.tables)
    file.parent.mkdir()
    table = tiny_tables.TABLES[name]()
    table.to_parquet(file) if file.suffix == ".parquet" else table.to_csv(file, index=False)
    make_figure(figure, tmp_path, tmp_path / name)
    shown = pd.read_csv(tmp_path / f"{name}.csv")
    assert len(shown) == len(tiny_tables.rows(name))
    assert (tmp_path / f"{name}.svg").is_file() and (tmp_path / f"{name}.png").is_file()


def test_a_figure_without_anything_to_see_is_a_line_on_the_page(tmp_path):
    table = tmp_path / "tidy/history.parquet"
    table.parent.mkdir()
    rows = tiny_tables.epochs()
    for most, name in ((3, "short"), (4, "long")):
        rows[rows.epoch <= most].to_parquet(table)
        make_figure(FIGURES["learning_curves"], tmp_path, tmp_path / name / "learning_curves")
    paths = [tmp_path / name / "learning_curves.svg" for name in ("short", "long")]
    short, long = ({"learning_curves": path} for path in paths)
    assert told_apart(long) == (long, {})
    line = "Not drawn: Learning curves (3 scored epochs make no curve)."
    assert told_apart(short) == ({}, {"curves": [line]})
    assert paths[0].stat().st_size < paths[1].stat().st_size
