"""A run's predictions as a table: one row for each epoch, split and example."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # it imports torch, which readers of records do without
    from loraudit.data.batches import Examples


def prediction_table(
    epochs: dict[int, dict[str, np.ndarray]],
    examples: "dict[str, Examples]",
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
    if not tables:
        return pd.DataFrame(columns=["split", "epoch", "row", "label", "prediction"])
    return pd.concat(tables, ignore_index=True)
