"""Expand a study and write it as JSON, for the rules that look at all of its runs."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.base.files import write_json
from loraudit.studies.expand import load_configured


def main() -> None:
    """Read the arguments, expand, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    study = load_configured(json.loads(arguments.config))
    write_json(arguments.out, study.model_dump(mode="json"))


run_program(main)
