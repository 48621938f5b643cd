"""Write results/<study>/partial/report.html from what an unfinished study has so far.

Runs and cross-checks without a result are named there. Its tables and figures stand beside it; the
study's own are not touched.
"""

import argparse
from pathlib import Path

from loraudit.analysis.collect import complete, missing, write_collected
from loraudit.base.errors import UserError, run_program
from loraudit.base.files import folder_atomic, read_json, write_text
from loraudit.report.figure_registry import make_from
from loraudit.report.page import read_page, render
from loraudit.report.products import UPDATES, study_figures
from loraudit.report.study_tables import write_tables
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
    tasks = dict.fromkeys(run.spec.task.name for run in planned.runs)
    manifests = {task: arguments.data / task / "manifest.json" for task in tasks}
    data = {task: read_json(path) for task, path in manifests.items() if path.is_file()}
    remake = f"snakemake --cores 1 partial --config {arguments.switches}"
    with folder_atomic(folder / "partial") as out:
        write_collected(study, cells, folder, out)
        write_tables(study, out)
        wanted = study_figures(study)
        if not cells:
            wanted.pop("crosscheck", None)
        for name in wanted.keys() - set(UPDATES):
            make_from(name, [out / table for table in wanted[name]], out / "figures" / name)
        figures = sorted((out / "figures").glob("*.svg"))
        remakes = {path.stem: remake for path in figures}
        lost = missing(planned, study, cells, folder, arguments.logs)
        page = read_page(out, planned, figures, data, remakes, lost)
        write_text(out / "report.html", render(page))


run_program(main)
