"""Collect a study's run records and cross-checks into tidy tables."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from loraudit.collect import collected, read_study
from loraudit.errors import run_program
from loraudit.files import read_json, write_atomic
from loraudit.tables import write_tidy


def main() -> None:
    """Read the arguments, collect, and write CSV and Parquet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the study's folder")
    folder = parser.parse_args().results
    study = read_study(folder / "study.json")
    for name, table in collected(study, folder).items():
        write_tidy(table, folder / "tidy" / name)
    records = (read_json(folder / "runs" / run.id / "record.json") for run in study.runs)
    write_atomic(folder / "tidy" / "records.jsonl", lambda path: write_lines(path, records))


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Write one line of JSON per record, one record at a time."""
    with open(path, "w") as file:
        file.writelines(f"{json.dumps(record)}\n" for record in records)


run_program(main)
