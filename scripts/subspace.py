"""Make section 7's tables of a study's in-house adapters: spectra, amplification, subspaces."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.analysis.section7 import MOST, write_study_tables
from loraudit.base.errors import run_program
from loraudit.studies.study import read_study


def main() -> None:
    """Read the arguments, measure, and write CSV and Parquet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    parser.add_argument("--models", required=True, type=Path, help="the folder of fetched models")
    parser.add_argument("--side", choices=("right", "left"), default="right", help="of phi")
    parser.add_argument("--most", type=int, default=MOST, help="largest i and j of phi")
    arguments = parser.parse_args()
    folder = arguments.results
    study = read_study(folder / "study.json")
    options = (arguments.side, arguments.most)
    write_study_tables(study, folder, arguments.models, folder, *options)


run_program(main)
