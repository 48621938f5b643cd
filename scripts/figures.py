"""Draw one figure of a study: SVG, PNG, and a CSV of what it shows."""

import argparse
from pathlib import Path

from loraudit.base.errors import run_program
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figures import make_figure


def main() -> None:
    """Read the arguments, draw, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", required=True, choices=FIGURES)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    parser.add_argument("--svg", required=True, type=Path, help="png and csv go beside it")
    arguments = parser.parse_args()
    make_figure(FIGURES[arguments.figure], arguments.results, arguments.svg.with_suffix(""))


run_program(main)
