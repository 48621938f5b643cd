"""Tile all PNG figures of a folder on one page, each at one scale, to be compared at a glance."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.report.contact_sheet import contact_sheet


def main() -> None:
    """Read the arguments, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", required=True, type=Path, help="a folder of folders of PNGs")
    parser.add_argument("--out", required=True, type=Path, help="the page, a PNG")
    arguments = parser.parse_args()
    contact_sheet(sorted(arguments.figures.glob("*/*.png")), arguments.out)


run_program(main)
