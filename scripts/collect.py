"""Collect a study's run records and cross-checks into tidy tables."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.analysis.collect import write_collected
from loraudit.base.errors import run_program
from loraudit.studies.study import read_study


def main() -> None:
    """Read the arguments, collect, and write CSV and Parquet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    folder = parser.parse_args().results
    study = read_study(folder / "study.json")
    write_collected(study, list(study.cells()), folder, folder)


run_program(main)
