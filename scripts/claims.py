"""Make the tables of a study that also need section 7's: its verdicts on claims of papers."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.report.tables import write_late_tables
from loraudit.studies.study import read_study


def main() -> None:
    """Read the arguments, test the claims, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    folder = parser.parse_args().results
    write_late_tables(read_study(folder / "study.json"), folder, folder)


run_program(main)
