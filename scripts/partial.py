"""Write results/<study>/partial/report.html from what an unfinished study has so far.

Runs and cross-checks without a result are named there. Its tables and figures stand beside it; the
study's own are not touched.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.analysis.collect import complete, missing
from loraudit.base.errors import UserError, run_program
from loraudit.base.files import folder_atomic
from loraudit.report.page import write_page
from loraudit.report.products import REPORT, Places, products
from loraudit.studies.study import read_study


def main() -> None:
    """Read the arguments, collect what there is, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    parser.add_argument("--logs", required=True, type=Path, help="the study's logs")
    parser.add_argument("--data", required=True, type=Path, help="folder of the fetched tasks")
    parser.add_argument("--switches", required=True, help="how the study is asked for: study=...")
    arguments = parser.parse_args()
    folder = arguments.results
    planned = read_study(folder / "study.json")
    study, cells = complete(planned, folder)
    if not study.runs:
        raise UserError(f"{folder}: no run of {planned.name} has a result yet")
    with folder_atomic(folder / "partial") as out:
        places = Places(source=folder, results=out, figures=out / "figures")
        for product in products(study, places, cells, updates=False):
            if product.name != REPORT and product.can_be_made():
                product.make()
        figures = sorted(places.figures.glob("*.svg"))
        tasks = dict.fromkeys(run.spec.task.name for run in planned.runs)
        manifests = [arguments.data / task / "manifest.json" for task in tasks]
        remake = f"snakemake --cores 1 partial --config {arguments.switches}"
        remakes = {path.stem: remake for path in figures}
        lost = missing(planned, study, cells, folder, arguments.logs)
        write_page(planned, out, figures, manifests, remakes, lost)


run_program(main)
