"""Read what a run left behind: its record and its predictions."""

from pathlib import Path

import pandas as pd

from loraudit.base.errors import UserError
from loraudit.studies.record import RunRecord, read_record


def read_run(folder: Path) -> tuple[RunRecord, pd.DataFrame]:
    """Read a run's record and its predictions.

    Raises:
        UserError: no complete run in that folder.
    """
    for name in ("record.json", "predictions.parquet"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no run here ({name} is missing)")
    return read_record(folder / "record.json"), pd.read_parquet(folder / "predictions.parquet")
