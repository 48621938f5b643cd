"""Fetch one model into a folder."""

import argparse
import json
import sys
from pathlib import Path

from humanize import naturalsize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.data.fetch_model import fetch_model
from loraudit.data.sources import describe
from loraudit.studies.entries import ModelEntry
from loraudit.studies.values import validated


def main() -> None:
    """Read the arguments and fetch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entry", required=True, help="a ModelEntry as JSON")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    entry = validated(ModelEntry, json.loads(arguments.entry), "model")
    fetch_model(entry, arguments.out)
    size = naturalsize(sum(file.stat().st_size for file in arguments.out.rglob("*")))
    print(f"model {entry.name}: {describe(entry.source)}; {size} in {arguments.out}")


run_program(main)
