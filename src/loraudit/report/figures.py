"""Make a figure of the registry: select its rows, thin them, draw and save them, describe them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from loraudit.analysis.cells import cell_of
from loraudit.analysis.tidy_files import read_table
from loraudit.base.files import cached_by_file
from loraudit.report.figure_registry import FIGURES, Figure
from loraudit.report.figure_style import nothing, save_picture, save_rows
from loraudit.report.looks import study_looks
from loraudit.report.thinning import thinned, write_note
from loraudit.studies.study import Run, read_study


def make_figure(figure: Figure, results: Path, stem: Path) -> None:
    """Draw a figure from its tables below results: <stem>.svg and .png, and .csv of its rows."""
    rows, note = drawn_rows(figure, read_tables(figure, results))
    save_rows(rows, stem)
    _draw(figure, rows, note, _cells(results), stem)


def make_rows(figure: Figure, results: Path, stem: Path) -> None:
    """Write the rows that a figure draws to <stem>.csv."""
    rows, _ = drawn_rows(figure, read_tables(figure, results))
    save_rows(rows, stem)


def make_picture(figure: Figure, results: Path, stem: Path, runs: Iterable[Run]) -> None:
    """Draw a figure of a study of these runs to <stem>.svg and <stem>.png."""
    rows, note = drawn_rows(figure, read_tables(figure, results))
    _draw(figure, rows, note, [cell_of(run) for run in runs], stem)


def _draw(figure: Figure, rows: pd.DataFrame, note: str, cells: list[dict], stem: Path) -> None:
    with study_looks(cells):
        picture = draw(figure, rows)
    write_note(picture, "" if undrawn(figure, rows) else note)
    save_picture(picture, stem)


def _cells(results: Path) -> list[dict]:
    """Return the cells of the study in a folder, in its order; none where there is no study."""
    file = results / "study.json"
    return _planned_cells(file) if file.is_file() else []


@cached_by_file
def _planned_cells(file: Path) -> list[dict]:
    """Read a study's cells, a row per run; once for all of its figures."""
    return [cell_of(run) for run in read_study(file).runs]


def draw(figure: Figure, rows: pd.DataFrame) -> MatplotlibFigure:
    """Draw a figure of its rows, or say in it why there is nothing to see."""
    reason = undrawn(figure, rows)
    return nothing(f"not drawn: {reason}") if reason else figure.code("draw")(rows)


def undrawn(figure: Figure, rows: pd.DataFrame) -> str:
    """Say in a few words why there is nothing to see in a figure of its rows; "" where there is."""
    if rows.empty or not figure.undrawn:
        return ""
    return figure.code("undrawn")(rows)


def told_apart(paths: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Tell the figures that show something from those that do not.

    Args:
        paths: SVG files by the names of their figures, each with its CSV beside it.

    Returns:
        The files of the former; and, by section of the page, a sentence on each of the latter.
    """
    drawn: dict[str, Path] = {}
    said: dict[str, list[str]] = {}
    for name, path in paths.items():
        figure = FIGURES[name]
        if reason := undrawn(figure, read_table(path.with_suffix(".csv"))):
            said.setdefault(figure.section, []).append(f"Not drawn: {figure.title} ({reason}).")
        else:
            drawn[name] = path
    return drawn, said


def read_tables(figure: Figure, results: Path) -> list[pd.DataFrame]:
    """Read the tables that a figure is drawn from, Parquet or CSV."""
    read = {".parquet": pd.read_parquet, ".csv": read_table}
    return [read[Path(table).suffix](results / table) for table in figure.tables]


def drawn_rows(figure: Figure, tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, str]:
    """Return the rows that a figure draws of its tables, and a note if some are left out."""
    rows = figure.code("rows")(*tables) if figure.rows else tables[0]
    return thinned(rows, figure.limit)


def describe(figure: Figure, rows: pd.DataFrame) -> str:
    """Say in a sentence or two what a figure shows of its rows: the alt text of its image."""
    if rows.empty:
        return "Empty figure: the study has no rows for it."
    return figure.code("describe")(rows)
