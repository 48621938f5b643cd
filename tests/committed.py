"""The studies on record in results/committed."""

import json
from pathlib import Path

from loraudit.studies.record import LAYOUT

COMMITTED = Path("results/committed")


def records_of(folder: Path) -> list[dict]:
    """Read the records of a committed study's runs."""
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def of_today(folder: Path) -> bool:
    """Tell whether a committed study's records have today's layout, and today's code reads them.

    What was made by older code can't be made again from its tables; it stands as evidence until the
    study is run again.
    """
    if not (folder / "records.jsonl").is_file():
        return True
    return all(record.get("layout", 1) == LAYOUT for record in records_of(folder))
