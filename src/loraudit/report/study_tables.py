"""A study's tables: scores over seeds, verdicts, switches, pairs of methods, cost."""

from functools import partial
from pathlib import Path

import pandas as pd

from loraudit.analysis.comparisons import method_pairs, switch_effects, verdicts
from loraudit.analysis.cost import cost
from loraudit.analysis.statistics import aggregate
from loraudit.base.files import write_atomic, write_text
from loraudit.report.tables import READABLE, markdown
from loraudit.studies.reference import select
from loraudit.studies.study import BASE, Study


def summaries(study: Study, tidy: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Make a study's tables from its tidy runs; one that it has no rows for is empty."""
    return {
        "summary": aggregate(tidy),
        "verdicts": verdicts(study, tidy, select(study.compare)),
        "switches": switch_effects(study, tidy, BASE),
        "pairs": method_pairs(tidy, study.contrasts),
        "cost": cost(tidy),
    }


def readable(name: str, table: pd.DataFrame) -> str:
    """Return one of `summaries` as Markdown."""
    return markdown(READABLE[name](table) if len(table) else table)


def write_tables(study: Study, folder: Path) -> None:
    """Make folder/tables from folder/tidy: CSV for programs, Markdown for readers."""
    tidy = pd.read_parquet(folder / "tidy" / "runs.parquet")
    for name, table in summaries(study, tidy).items():
        stem = folder / "tables" / name
        write_atomic(stem.with_suffix(".csv"), partial(table.to_csv, index=False))
        write_text(stem.with_suffix(".md"), readable(name, table))
