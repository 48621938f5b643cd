"""Draw a study's figures: SVG, PNG, and a CSV of what each shows."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.report.figure_registry import study_figures
from loraudit.report.figures import make_figure
from loraudit.studies.study import read_study


def main() -> None:
    """Read the arguments, draw, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    parser.add_argument("--figures", required=True, type=Path, help="the folder of its figures")
    arguments = parser.parse_args()
    for name, figure in study_figures(read_study(arguments.results / "study.json")).items():
        make_figure(figure, arguments.results, arguments.figures / name)


run_program(main)
