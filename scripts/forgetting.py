"""Score the earlier tasks of a run's chain after the run, each with its own head."""

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # fetched folders only: no look at the hub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.base.files import write_atomic


def main() -> None:
    """Read the arguments, score, and write a row per earlier run and metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="its name in the study")
    parser.add_argument("--runs", required=True, type=Path, help="the folder with all runs")
    parser.add_argument("--model", required=True, type=Path, help="folder of the fetched model")
    parser.add_argument("--earlier", nargs="+", required=True, help="names of the earlier runs")
    parser.add_argument("--tokens", nargs="+", required=True, type=Path, help="of each of these")
    parser.add_argument("--out", required=True, type=Path, help="the CSV file to write")
    arguments = parser.parse_args()
    import pandas as pd

    from loraudit.training.forgetting import forgetting_rows

    tokens = dict(zip(arguments.earlier, arguments.tokens, strict=True))
    rows = forgetting_rows(arguments.run, arguments.runs, tokens, arguments.model)
    table = pd.DataFrame(rows)
    write_atomic(arguments.out, lambda new: table.to_csv(new, index=False))


run_program(main)
