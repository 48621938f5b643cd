"""Measure what a run has done to its base as a language model, on held-out text."""

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # fetched folders only: no look at the hub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.base.files import write_atomic


def main() -> None:
    """Read the arguments, measure, and write a row per task of the run's chain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="its name in the study")
    parser.add_argument("--runs", required=True, type=Path, help="the folder with all runs")
    parser.add_argument("--model", required=True, type=Path, help="folder of the fetched model")
    parser.add_argument("--chain", nargs="+", required=True, help="the run and those before it")
    parser.add_argument("--tokens", nargs="+", required=True, type=Path, help="of each of these")
    parser.add_argument("--rows", required=True, type=int, help="validation rows of each task")
    parser.add_argument("--out", required=True, type=Path, help="the CSV file to write")
    arguments = parser.parse_args()
    import pandas as pd

    from loraudit.training.language_loss import language_rows

    tokens = dict(zip(arguments.chain, arguments.tokens, strict=True))
    model, count = arguments.model, arguments.rows
    table = pd.DataFrame(language_rows(arguments.run, arguments.runs, tokens, model, count))
    write_atomic(arguments.out, lambda new: table.to_csv(new, index=False))


run_program(main)
