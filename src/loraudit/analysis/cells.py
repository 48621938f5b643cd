"""Cells: the runs of a study that differ in the seed only, by their columns and by their names."""

import numpy as np
import pandas as pd

from loraudit.studies.names import targets_name
from loraudit.studies.spec import CHOICES, RunSpec
from loraudit.studies.study import Run

SUBJECT = ["task", "model"]
CELL = [*SUBJECT, "method", "rank", "targets", "label"]
"""Columns that make a cell of a study: all its runs differ in the seed only."""

SCORED_CELL = [*CELL, "metric"]
"""The columns of a cell, and the metric that its task is scored by."""


def cell_of(run: Run) -> dict:
    """Return the columns that name a run's cell."""
    spec = run.spec
    return {
        "task": spec.task.name,
        "model": spec.model.name,
        "method": spec.method,
        "rank": spec.adapter.rank if spec.adapter else None,
        "targets": targets_name(spec) or None,
        "label": run.label,
    }


def chosen_spec(spec: RunSpec, runs: pd.DataFrame) -> RunSpec:
    """Return a cell's spec with the settings that were chosen, as far as its runs tell them."""
    known = {name for name in (spec.tuned.fields if spec.tuned else ()) if name in runs}
    values = {name: runs[name].iloc[0] for name in known}
    none = {name for name, value in values.items() if np.ndim(value) == 0 and pd.isna(value)}
    return spec.with_values(values | dict.fromkeys(none)) if known else spec


def choices_of(runs: pd.DataFrame) -> list[str]:
    """Return the choices of an epoch that all runs of a tidy table made, in the order of `CHOICES`.

    The first is the one to be shown where there is room for one.
    """
    return [choice for choice in CHOICES if _made(runs, choice).all()]


def all_choices(runs: pd.DataFrame) -> list[str]:
    """Return the choices of an epoch that all runs of some task and model made.

    Where only some tasks have selection rows, a table of all has `selected` for these alone.
    """
    made = [choices_of(part) for _, part in runs.groupby(SUBJECT, sort=False)]
    return [choice for choice in CHOICES if any(choice in choices for choices in made)]


def _made(runs: pd.DataFrame, choice: str) -> pd.Series:
    """Tell of each run whether it made a choice of an epoch."""
    # An epoch may be chosen whose score is undefined, so the epochs' column counts where it is.
    column = f"{choice}_epoch" if f"{choice}_epoch" in runs else choice
    return runs[column].notna() if column in runs else pd.Series(False, runs.index)


def collapsed(runs: pd.DataFrame, choice: str) -> pd.Series:
    """Tell of each run whether it collapsed at a choice's epoch; where it is not known, no."""
    column = f"{choice}_collapsed"
    return runs[column].eq(True) if column in runs else pd.Series(False, runs.index)


def first_collapsed(runs: pd.DataFrame) -> pd.Series:
    """Tell of each run whether it collapsed at the choice that its task and model show first."""
    found = pd.Series(False, runs.index)
    for _, part in runs.groupby(SUBJECT, sort=False):
        for choice in choices_of(part)[:1]:
            found[part.index] = collapsed(part, choice)
    return found


def first_choice(table: pd.DataFrame) -> str:
    """Return the choice of an epoch to be shown, of those in a table's column `epoch`."""
    return next(choice for choice in CHOICES if (table.epoch == choice).any())


def label_text(label: object) -> str:
    """Return a label as text; a missing one is empty."""
    return "" if pd.isna(label) else str(label)


def cell_name(cell: dict) -> str:
    """Name a cell within its task and model: "lora r8 q+v label"."""
    rank = "" if pd.isna(cell["rank"]) else f"r{cell['rank']:g} {cell['targets']}"
    return " ".join(filter(None, [cell["method"], rank, label_text(cell["label"])]))
