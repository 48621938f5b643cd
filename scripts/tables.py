"""Aggregate a study's runs over seeds: summary.csv for programs, summary.md for readers."""

import argparse
from pathlib import Path

import pandas as pd

from loraudit.errors import run_program
from loraudit.files import write_atomic, write_text
from loraudit.statistics import aggregate
from loraudit.tables import summary_table


def main() -> None:
    """Read the arguments, aggregate, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", required=True, type=Path, help="tidy/runs.parquet")
    parser.add_argument("--csv", required=True, type=Path)
    parser.add_argument("--markdown", required=True, type=Path)
    arguments = parser.parse_args()
    summary = aggregate(pd.read_parquet(arguments.runs))
    write_atomic(arguments.csv, lambda path: summary.to_csv(path, index=False))
    table = summary_table(summary)
    align = ["right" if str(value)[:1].isdigit() else "left" for value in table.iloc[0]]
    text = table.to_markdown(index=False, colalign=align, disable_numparse=True)
    write_text(arguments.markdown, text + "\n")


run_program(main)
