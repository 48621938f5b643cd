"""Measure any LoRA adapter in PEFT's format as section 7 does: tables and figures of its updates.

python scripts/analyse_adapter.py --adapter FOLDER --model FOLDER --out FOLDER
"""

import argparse
from pathlib import Path

from loraudit.analysis.section7 import MOST, adapter_tables
from loraudit.analysis.tidy_files import write_tidy
from loraudit.base.errors import run_program
from loraudit.base.shipped import read_table
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figures import make_figure
from loraudit.studies.entries import parsed_modules


def main() -> None:
    """Read the arguments, measure, write CSV and Parquet, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", required=True, type=Path, help="the adapter's folder")
    parser.add_argument("--model", required=True, type=Path, help="has model.safetensors")
    parser.add_argument("--out", required=True, type=Path, help="gets tidy/ and figures/")
    parser.add_argument("--side", choices=("right", "left"), default="right", help="of phi")
    parser.add_argument("--most", type=int, default=MOST, help="largest i and j of phi")
    parser.add_argument("--models", default="config/models.yaml", help="layer names by family")
    arguments = parser.parse_args()
    table = read_table(arguments.models, "families")
    families = [parsed_modules(family["modules"]) for family in table["families"].values()]
    tables = adapter_tables(
        arguments.adapter, arguments.model, families, arguments.side, arguments.most
    )
    for name, table in tables.items():
        write_tidy(table, arguments.out / "tidy" / name)
    for name in ("spectra", "stable_rank", "amplification", "intruders", "subspace_weights"):
        make_figure(FIGURES[name], arguments.out, arguments.out / "figures" / name)


run_program(main)
