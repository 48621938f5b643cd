"""Write a study's report.html, self-contained."""

import argparse
from pathlib import Path

from loraudit.base.errors import run_program
from loraudit.base.files import read_json, write_text
from loraudit.report.page import read_page, render
from loraudit.studies.study import read_study


def main() -> None:
    """Read the arguments and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    parser.add_argument("--figures", required=True, nargs="+", type=Path, help="SVG files")
    parser.add_argument("--data", nargs="+", type=Path, help="manifests of the fetched tasks")
    parser.add_argument("--switches", required=True, help="how the study is asked for: study=...")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    study = read_study(arguments.results / "study.json")
    data = {path.parent.name: read_json(path) for path in arguments.data}
    remake = {
        path.stem: f"snakemake --cores 1 {path.as_posix()} --config {arguments.switches}"
        for path in arguments.figures
    }
    page = read_page(arguments.results, study, arguments.figures, data, remake)
    write_text(arguments.out, render(page))


run_program(main)
