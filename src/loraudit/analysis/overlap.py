"""How many rows of a task another task has too, measured on the fetched tasks.

Texts are compared when normalised (base/text_keys.py). A row counts if one of its texts is a text
of the other task.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from loraudit.base.text_keys import TEXTS
from loraudit.studies.known import SharedTexts
from loraudit.studies.study import Study

SHARED = 0.01
"""Tasks that have this share of rows in common, of either, have the same source. Below it are
texts that anyone writes, such as "Great product."; 0.1 % between sets of one paper."""

COLUMNS = ["task", "other", "rows", "in_other", "validation", "in_others_train"]


def overlaps(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Count the rows that each of some tasks shares with each other one.

    Args:
        folders: the fetched tasks by name; one that is not fetched is left out.

    Returns:
        A row per task and other task that have a text in common: the task's `rows` and how many are
        `in_other`; its `validation` rows and how many are `in_others_train`.
    """
    keys = {
        name: load_file(folder / TEXTS)
        for name, folder in folders.items()
        if (folder / TEXTS).is_file()
    }
    rows = []
    for task, own in keys.items():
        for other, theirs in keys.items():
            if task == other:
                continue
            found = {split: _found(texts, [*theirs.values()]) for split, texts in own.items()}
            if count := sum(int(rows.sum()) for rows in found.values()):
                leaked = int(_found(own["validation"], [theirs["train"]]).sum())
                counts = sum(map(len, own.values())), count, len(own["validation"]), leaked
                rows.append((task, other, *counts))
    return pd.DataFrame(rows, columns=COLUMNS)


def _found(texts: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Tell for each row of keys (rows, columns) whether one of them is among the others."""
    known = np.unique(np.concatenate([part.ravel() for part in others]))
    return np.asarray(np.isin(texts, known).any(axis=1))


def overlap_sentences(study: Study, found: pd.DataFrame) -> list[str]:
    """Say which tasks of a study have the same source, and which runs start from such a task.

    What the study's files say already (`Study.shared_texts`) is not repeated.

    Args:
        study: its runs tell the tasks and the warm starts.
        found: what `overlaps` returns.
    """
    known = {frozenset((shared.task, shared.other)) for shared in study.shared_texts}
    pairs: dict[frozenset, list] = {}
    for row in found.itertuples():
        pairs.setdefault(frozenset((row.task, row.other)), []).append(row)
    starts = {
        (run.spec.task.name, run.spec.warm_start.task) for run in study.runs if run.spec.warm_start
    }
    said = []
    for pair, rows in pairs.items():
        if pair in known or max(row.in_other / row.rows for row in rows) < SHARED:
            continue
        counts = " and ".join(_counts(row) for row in rows)
        said.append(SharedTexts(task=rows[0].task, other=rows[0].other, what=counts).sentence())
        said += [_started(row) for row in rows if (row.task, row.other) in starts]
    return said


def _counts(row) -> str:
    return f"{row.in_other:,} of the {row.rows:,} rows of {row.task}"


def _started(row) -> str:
    return (
        f"runs on {row.task} start from {row.other}, whose training rows have the texts of "
        f"{row.in_others_train:,} of the {row.validation:,} validation rows of {row.task}: their "
        f"scores are too good; write the pair into shares_texts_with in "
        "tasks.yaml, and it is refused"
    )
