"""Draw one figure of a study: SVG, PNG, and a CSV of what it shows."""

import argparse
from pathlib import Path

import pandas as pd

from loraudit import figures
from loraudit.crowd import few, say
from loraudit.errors import run_program
from loraudit.tables import read_table

DRAW = {
    "score_vs_rank": figures.score_vs_rank,
    "score_vs_parameters": figures.score_vs_parameters,
    "score_vs_rows": figures.score_vs_rows,
    "learning_curves": figures.learning_curves,
    "crosscheck": figures.crosscheck,
    "verdicts": figures.verdicts,
    "switches": figures.switches,
    "cost": figures.cost,
    "spectra": figures.spectra,
    "stable_rank": figures.stable_rank,
    "amplification": figures.amplification,
    "subspace_ranks": figures.subspaces,
    "subspace_seeds": figures.subspaces,
    "subspace_weights": figures.subspaces,
}


def main() -> None:
    """Read the arguments, draw, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", required=True, choices=DRAW)
    parser.add_argument("--table", required=True, type=Path, help="a table, Parquet or CSV")
    parser.add_argument("--svg", required=True, type=Path, help="png and csv go beside it")
    arguments = parser.parse_args()
    read = {".parquet": pd.read_parquet, ".csv": read_table}[arguments.table.suffix]
    table = read(arguments.table)
    if arguments.figure.startswith("subspace_"):
        table = figures.pair_rows(table, arguments.figure.removeprefix("subspace_"))
    table, note = few(arguments.figure, table)
    figure = DRAW[arguments.figure](table)
    say(figure, note)
    figures.save(figure, table, arguments.svg.with_suffix(""))


run_program(main)
