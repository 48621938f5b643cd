"""Read and write tidy tables as CSV and Parquet."""

from pathlib import Path
from typing import TextIO

import pandas as pd

from loraudit.base.files import write_atomic


def read_table(path: Path | TextIO) -> pd.DataFrame:
    """Read a table's CSV; a table without rows has no columns either."""
    try:
        return pd.read_csv(
            path, keep_default_na=False, na_values=[""], dtype={"label": str, "switch": str}
        )
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def write_tidy(table: pd.DataFrame, stem: Path) -> None:
    """Write <stem>.csv and <stem>.parquet, each whole or not at all."""
    write_atomic(stem.with_suffix(".csv"), lambda path: table.to_csv(path, index=False))
    write_atomic(stem.with_suffix(".parquet"), lambda path: table.to_parquet(path, index=False))
