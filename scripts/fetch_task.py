"""Fetch one task into a folder, and print what it holds."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.data.fetch_task import fetch_task
from loraudit.data.sources import describe
from loraudit.studies.entries import TaskEntry
from loraudit.studies.values import validated


def main() -> None:
    """Read the arguments and fetch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entry", required=True, help="a TaskEntry as JSON")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    entry = validated(TaskEntry, json.loads(arguments.entry), "task")
    manifest = fetch_task(entry, arguments.out)
    print(
        f"task {entry.name}: {describe(entry.source)}; dropped {manifest['dropped'] or 'nothing'}"
    )
    if manifest["absent"]:
        print(f"  not in this source, so not scored: {', '.join(manifest['absent'])}")
    for split, facts in manifest["splits"].items():
        print(f"  {split}: {facts['rows']} rows, {facts['labels']}")
    for said in manifest["remarks"]:
        print(f"  remark: {said}")


run_program(main)
