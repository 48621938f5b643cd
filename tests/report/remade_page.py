"""A shipped study's page, made again by today's code from what is committed of it."""

import shutil
from pathlib import Path

import pandas as pd

from loraudit.analysis.collect import FORGETTING, LANGUAGE, ROW_ERRORS, TUNING
from loraudit.analysis.tidy_files import read_table
from loraudit.report.figure_registry import study_figures
from loraudit.report.figures import make_figure
from loraudit.report.page import write_page
from loraudit.report.table_registry import SECTION7
from loraudit.report.tables import write_late_tables, write_tables
from loraudit.studies.expand import load_study


def remade_page(name: str, results: Path) -> Path:
    """Write results/report.html from the committed runs, records, twins and figures of a study.

    Tables and figures are made from the runs; section 7's figures are the committed ones. The
    cross-checks are those that the committed figure draws, and the differences between methods have
    no part of the validation rows.
    """
    folder, figures = (Path(place) / "committed" / name for place in ("results", "figures"))
    study = load_study(f"config/studies/{name}.yaml")
    tidy = results / "tidy"
    tidy.mkdir(parents=True)
    shutil.copyfile(folder / "records.jsonl", tidy / "records.jsonl")
    runs = read_table(folder / "runs.csv")
    found = {
        "runs": runs[runs.run.isin([run.id for run in study.runs])],
        "twins": read_table(folder / "twins.csv"),
        "crosscheck": read_table(figures / "crosscheck.csv"),
        "amplification": read_table(figures / "amplification.csv"),
        "tuning": pd.DataFrame(columns=TUNING),
        "row_errors": pd.DataFrame(columns=ROW_ERRORS),
        "forgetting": pd.DataFrame(columns=FORGETTING),
        "language_loss": pd.DataFrame(columns=LANGUAGE),
    }
    for part, table in found.items():
        table = table.fillna({"label": ""}) if "label" in table else table
        table.to_parquet(tidy / f"{part}.parquet")
    write_tables(study, results, results)
    write_late_tables(study, results, results)
    drawn = []
    for figure in study_figures(study).values():
        stem = results / "figures" / figure.name
        committed = figures / f"{figure.name}.csv"
        if not any(Path(table).stem in SECTION7 for table in figure.tables):
            make_figure(figure, results, stem)
        elif committed.is_file():  # measured on adapters, which are not committed
            shutil.copyfile(committed, stem.with_suffix(".csv"))
            shutil.copyfile(committed.with_suffix(".svg"), stem.with_suffix(".svg"))
        else:
            continue
        drawn.append(stem.with_suffix(".svg"))
    remake = {path.stem: f"snakemake --cores 1 figures/{name}/{path.name}" for path in drawn}
    write_page(study, results, drawn, [], remake)
    return results / "report.html"
