"""A study's tables: scores over seeds, verdicts, switches, pairs of methods, cost."""

from functools import partial
from pathlib import Path

import pandas as pd

from loraudit.compare import method_pairs, switch_effects, verdicts
from loraudit.cost import cost
from loraudit.files import write_atomic, write_text
from loraudit.reference import select
from loraudit.statistics import aggregate
from loraudit.study import BASE, Study
from loraudit.tables import READABLE, markdown


def write_tables(study: Study, folder: Path) -> None:
    """Make folder/tables from folder/tidy: CSV for programs, Markdown for readers.

    A table that the study has no rows for is written without any.
    """
    tidy = pd.read_parquet(folder / "tidy" / "runs.parquet")
    made = {
        "summary": aggregate(tidy),
        "verdicts": verdicts(study, tidy, select(study.compare)),
        "switches": switch_effects(study, tidy, BASE),
        "pairs": method_pairs(tidy),
        "cost": cost(tidy),
    }
    for name, table in made.items():
        stem = folder / "tables" / name
        write_atomic(stem.with_suffix(".csv"), partial(table.to_csv, index=False))
        shown = READABLE[name](table) if len(table) else table
        write_text(stem.with_suffix(".md"), markdown(shown))
