"""A finished study by two of its files: the tidy runs, and the records behind them.

They are all that a shipped study has (results/committed), so that it can be set beside another.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from loraudit.analysis.tidy_files import read_table
from loraudit.base.errors import UserError


class Finished(NamedTuple):
    """A study's tidy runs, and the records of these and of the runs that tune, which come first."""

    runs: pd.DataFrame
    records: list[dict]

    def specs(self) -> dict[str, dict]:
        """Return each reported run's spec, as JSON, by its name."""
        reported = self.records[-len(self.runs) :]
        return {run: record["spec"] for run, record in zip(self.runs.run, reported, strict=True)}


def read_finished(runs: Path, records: Path) -> Finished:
    """Read a study's tidy runs and its records, a JSON object per line.

    Raises:
        UserError: one of the two files is damaged, or they are not of the same runs.
    """
    try:
        found = [json.loads(line) for line in records.read_text().splitlines()]
        made = Finished(read_table(runs), found)
        made.specs()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{runs} and {records.name}: can't be read together ({said})") from None
    return made


def unlike(one: dict, two: dict) -> list[str]:
    """Return the fields that two specs, as JSON, have both and with other values.

    Where a task's or model's files were read from is no difference: a copy is written as its name.
    """
    return [name for name in one if name in two and not _alike(one[name], two[name])]


def _alike(one: object, two: object) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        if "source" in one and "source" in two:
            return one["name"] == two["name"]
        return not unlike(one, two)
    return one == two
