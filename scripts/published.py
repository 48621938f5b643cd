"""Set published per-seed results beside other published numbers: no run of ours is needed."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.report.published import write_published


def main() -> None:
    """Read the arguments, compare, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", required=True, type=Path, help="config/published.yaml")
    parser.add_argument("--csv", required=True, type=Path)
    parser.add_argument("--markdown", required=True, type=Path)
    parser.add_argument("--svg", required=True, type=Path, help="png and csv go beside it")
    parser.add_argument("--page", required=True, type=Path)
    said = parser.parse_args()
    write_published(said.numbers, said.csv, said.markdown, said.svg, said.page)


run_program(main)
