"""A run's result: what was asked, what came out, where it ran."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from loraudit.errors import UserError
from loraudit.files import read_json
from loraudit.spec import Frozen, RunSpec, digest
from loraudit.tasks import Examples


class Train(Frozen):
    """What training gave. Metrics are fractions; seconds are wall time."""

    steps: int
    best_epoch: int
    last_epoch: int
    best: dict[str, float]
    last: dict[str, float]
    parameters: dict[str, int]
    bytes: dict[str, int]
    rows: dict[str, int]
    tokens: dict[str, int]
    seconds: dict[str, float]
    peak_memory_mib: float
    peak_device_memory_mib: float | None = None
    copied: tuple[str, ...] = ()
    """Names of the tensors that a warm start copied."""


class RunRecord(Frozen):
    """One run, complete: the spec asked for, what training gave, the environment it ran in."""

    spec: RunSpec
    spec_sha256: str
    train: Train
    environment: dict


def read_record(path: Path | str) -> RunRecord:
    """Read a record.json.

    Raises:
        UserError: not a complete record, or one whose spec does not match its own digest.
    """
    try:
        record = RunRecord(**read_json(path))
    except (ValidationError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a complete run record: {reason}") from None
    if digest(record.spec) != record.spec_sha256:
        raise UserError(f"{path}: the spec was changed after the run (its digest differs)")
    return record


def prediction_table(
    epochs: dict[int, dict[str, np.ndarray]],
    examples: dict[str, Examples],
    predict: Callable[[np.ndarray], np.ndarray],
) -> pd.DataFrame:
    """Stack {epoch: {split: logits (n, k)}} into a table, a row per epoch, split and example."""
    tables = []
    for epoch, split, logits in (
        (epoch, split, logits)
        for epoch, splits in epochs.items()
        for split, logits in splits.items()
    ):
        columns = {"split": split, "epoch": epoch, "row": examples[split].rows}
        table = pd.DataFrame(
            {**columns, "label": examples[split].labels, "prediction": predict(logits)}
        )
        for k in range(logits.shape[1]):
            table[f"logit_{k}"] = logits[:, k]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
