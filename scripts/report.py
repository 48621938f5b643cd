"""Write a study's report.html, self-contained."""

import argparse
from pathlib import Path

import pandas as pd

from loraudit.collect import read_study
from loraudit.errors import run_program
from loraudit.files import read_json, write_text
from loraudit.pairs import lora_runs
from loraudit.report import facts, render
from loraudit.tables import READABLE, crosscheck_table, protocol_table, provenance_table, read_table


def main() -> None:
    """Read the arguments and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    parser.add_argument("--figures", required=True, nargs="+", type=Path, help="PNG files")
    parser.add_argument("--data", nargs="+", type=Path, help="manifests of the fetched tasks")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    folder = arguments.results
    study = read_study(folder / "study.json")
    found = {
        name: pd.read_parquet(folder / "tidy" / f"{name}.parquet")
        for name in ("runs", "crosscheck", "twins")
    }
    if lora_runs(study):
        found["amplification"] = pd.read_parquet(folder / "tidy" / "amplification.parquet")
    found |= {name: read_table(folder / "tables" / f"{name}.csv") for name in READABLE}
    shown = {**READABLE, "crosscheck": crosscheck_table}
    tables = {
        **{name: make(found[name]) for name, make in shown.items() if len(found[name])},
        "twins": found["twins"],
        "protocol": protocol_table(study),
        "provenance": provenance_table(study, folder / "runs"),
    }
    figures = {path.stem: path for path in arguments.figures}
    data = {path.parent.name: read_json(path) for path in arguments.data}
    write_text(arguments.out, render(study, tables, figures, facts(study, found), data))


run_program(main)
