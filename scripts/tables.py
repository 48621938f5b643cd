"""Make a study's tables: CSV for programs, Markdown for readers.

summary (scores over seeds), verdicts (beside published numbers), switches (an ablation's), pairs
(methods on the same seeds), cost. A table that the study has no rows for is written without any.
"""

import argparse
from pathlib import Path

import pandas as pd

from loraudit.collect import read_study
from loraudit.compare import summaries
from loraudit.errors import run_program
from loraudit.files import write_atomic, write_text
from loraudit.tables import READABLE, markdown


def main() -> None:
    """Read the arguments, aggregate, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    folder = parser.parse_args().results
    study = read_study(folder / "study.json")
    tidy = pd.read_parquet(folder / "tidy" / "runs.parquet")
    made = summaries(study, tidy)
    for name, table in made.items():
        stem = folder / "tables" / name
        write_atomic(stem.with_suffix(".csv"), lambda path, t=table: t.to_csv(path, index=False))
        shown = READABLE[name](table) if len(table) else table
        write_text(stem.with_suffix(".md"), markdown(shown))


run_program(main)
