"""Write report.html, self-contained, into a study's folder."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.report.page import write_page
from loraudit.studies.study import read_study


def main() -> None:
    """Read the arguments and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    parser.add_argument("--figures", required=True, nargs="+", type=Path, help="SVG files")
    parser.add_argument("--data", nargs="+", type=Path, help="manifests of the fetched tasks")
    parser.add_argument("--switches", required=True, help="how the study is asked for: study=...")
    arguments = parser.parse_args()
    study = read_study(arguments.results / "study.json")
    remake = {
        path.stem: f"snakemake --cores 1 {path.as_posix()} --config {arguments.switches}"
        for path in arguments.figures
    }
    write_page(study, arguments.results, arguments.figures, arguments.data, remake)


run_program(main)
