"""What a reader must know of a task's rows before believing a score on them."""

import numpy as np
import pandas as pd

from loraudit.base.text_keys import text_keys
from loraudit.studies.entries import TaskEntry

SKEWED = 0.9
"""A class with this share of a split's rows is remarked on: always answering it scores as much."""


def split_keys(table: pd.DataFrame) -> np.ndarray:
    """Return the keys of a split's texts (rows, text columns)."""
    return np.stack([text_keys(texts) for _, texts in table.filter(like="text_").items()], axis=1)


def also_in_train(
    tables: dict[str, pd.DataFrame], keys: dict[str, np.ndarray]
) -> dict[str, dict[str, int]]:
    """Count the rows of each scored split whose texts are a training row's, when normalised.

    Args:
        tables: the task's splits, as `fetch_task.canonical` makes them.
        keys: `split_keys` of each of them.

    Returns:
        For each split but train: `rows` of it that are also in train, and of these `other_label`,
        the rows that no equal training row gives their label.
    """
    labelled: dict[tuple, set] = {}
    for key, label in zip(map(tuple, keys["train"].tolist()), tables["train"].label, strict=True):
        labelled.setdefault(key, set()).add(label)
    counts = {}
    for split in (name for name in tables if name != "train"):
        rows = map(tuple, keys[split].tolist())
        found = [
            label in labelled[key]
            for key, label in zip(rows, tables[split].label, strict=True)
            if key in labelled
        ]
        counts[split] = {"rows": len(found), "other_label": found.count(False)}
    return counts


def remarks(
    tables: dict[str, pd.DataFrame], entry: TaskEntry, repeated: dict[str, dict[str, int]]
) -> list[str]:
    """Say what is odd about a task's rows, a sentence each; nothing if nothing is.

    Args:
        tables: the task's splits, as `fetch_task.canonical` makes them.
        entry: the task.
        repeated: what `also_in_train` returns.
    """
    said = []
    for split, counts in repeated.items():
        if counts["rows"]:
            said.append(_repeated(split, len(tables[split]), **counts))
    for split, table in tables.items():
        said += _of_classes(split, table, entry)
        texts = (column.str.strip() for _, column in table.filter(like="text_").items())
        blank = sum(int((text == "").sum()) for text in texts)
        said += [f"{split}: {blank:,} texts of pairs are empty"] if blank else []
    return said


def _repeated(split: str, of: int, rows: int, other_label: int) -> str:
    share = f"{rows:,} of {of:,} rows ({100 * rows / of:.1f} %)"
    label = f", {other_label:,} of them with another label" if other_label else ""
    return (
        f"{split}: {share} are also in train, but for case, punctuation and white space{label}; "
        "scores on them tell what was memorised"
    )


def _of_classes(split: str, table: pd.DataFrame, entry: TaskEntry) -> list[str]:
    """Remark on classes without rows and on a class that has nearly all rows."""
    said = []
    shares = [float((table.label == number).mean()) for number in range(len(entry.classes))]
    for name, share in zip(entry.classes, shares, strict=True):
        if not share:
            learnt = "it can't be learnt" if split == "train" else "its score is not measured"
            said.append(f"{split}: class {name!r} has no row: {learnt}")
        elif share >= SKEWED:
            said.append(
                f"{split}: {100 * share:.1f} % of the rows are of class {name!r}: always answering "
                f"{name!r} is right on as many"
            )
    return said
