"""Every figure of a study by its name: which rows of a table it draws, and how."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from loraudit.analysis.cost import pareto
from loraudit.analysis.tidy_files import read_table
from loraudit.report import figures, rank_figures, section7_figures
from loraudit.report.figure_limits import few, say

Rows = Callable[..., pd.DataFrame]
Draw = Callable[[pd.DataFrame], Figure]


def _all(table: pd.DataFrame) -> pd.DataFrame:
    return table


DRAWN: dict[str, tuple[Rows, Draw]] = {
    "verdicts": (_all, figures.verdicts),
    "switches": (_all, figures.switches),
    "score_vs_rank": (figures.score_rows, figures.score_vs_rank),
    "score_vs_parameters": (figures.score_rows, figures.score_vs_parameters),
    "score_vs_rows": (figures.score_rows, figures.score_vs_rows),
    "score_vs_bits": (rank_figures.bits_rows, rank_figures.score_vs_bits),
    "learning_curves": (_all, figures.learning_curves),
    "ranks": (rank_figures.rank_rows, rank_figures.ranks),
    "cost": (_all, figures.cost),
    "pareto": (pareto, figures.pareto),
    "crosscheck": (figures.crosscheck_rows, figures.crosscheck),
    "spectra": (section7_figures.spectra_rows, section7_figures.spectra),
    "stable_rank": (section7_figures.stable_rank_rows, section7_figures.stable_rank),
    "amplification": (section7_figures.amplification_rows, section7_figures.amplification),
    **{
        f"subspace_{pair}": (
            partial(section7_figures.pair_rows, pair=pair),
            section7_figures.subspaces,
        )
        for pair in ("ranks", "seeds", "weights")
    },
}


def drawn_rows(name: str, tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, str]:
    """Return the rows that a figure draws of its tables, and a note if some are left out."""
    rows, _ = DRAWN[name]
    return few(name, rows(*tables))


def make_from(name: str, files: list[Path], stem: Path) -> None:
    """Draw a figure from its tables' files, Parquet or CSV."""
    read = {".parquet": pd.read_parquet, ".csv": read_table}
    make(name, [read[file.suffix](file) for file in files], stem)


def make(name: str, tables: list[pd.DataFrame], stem: Path) -> None:
    """Draw a figure from its tables (`products.FIGURES`): SVG, PNG, and a CSV of what is drawn."""
    drawn, note = drawn_rows(name, tables)
    figure = DRAWN[name][1](drawn)
    say(figure, note)
    figures.save(figure, drawn, stem)
