"""Draw one figure of a study: SVG, PNG, and a CSV of what it shows."""

import argparse
from pathlib import Path

from loraudit.base.errors import run_program
from loraudit.report.figure_registry import DRAWN, make_from


def main() -> None:
    """Read the arguments, draw, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", required=True, choices=DRAWN)
    parser.add_argument("--tables", required=True, nargs="+", type=Path, help="Parquet or CSV")
    parser.add_argument("--svg", required=True, type=Path, help="png and csv go beside it")
    arguments = parser.parse_args()
    make_from(arguments.figure, arguments.tables, arguments.svg.with_suffix(""))


run_program(main)
