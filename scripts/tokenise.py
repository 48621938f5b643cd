"""Tokenise one task for one model; prints nothing if all is well."""

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # fetched folders only: no look at the hub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.data.tokenise import tokenise


def main() -> None:
    """Read the arguments and tokenise."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    arguments = parser.parse_args()
    tokenise(arguments.data, arguments.model, arguments.max_length, arguments.out)


run_program(main)
