"""What each cell of a study costs: parameters, bytes, memory and time, from the run records."""

import pandas as pd

from loraudit.statistics import CELL

TASKS = 10
"""The poster's example: one base model that serves ten tasks."""


def cost(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell; times and memory are means over its runs.

    `bytes_task` is what one more task adds on disk: the adapter or the trained part, or, for full
    fine-tuning, another checkpoint. `bytes_tasks` is the disk for `TASKS` tasks: adapters beside
    one checkpoint, or as many checkpoints. Memory is the process's peak (resident), everything
    included; on a GPU `device_mib` is what tensors took at most.
    """
    rows = []
    for key, runs in tidy.groupby(CELL, dropna=False, sort=False):
        first, full = runs.iloc[0], runs.method.iloc[0] == "full"
        checkpoint = int(first.bytes_checkpoint)
        task = checkpoint if full else int(runs.bytes_adapter.mean())
        seen = runs.rows_train * runs.last_epoch
        rows.append(
            {
                **dict(zip(CELL, key, strict=True)),
                "n": len(runs),
                **{
                    f"parameters_{part}": int(first[f"parameters_{part}"])
                    for part in ("adapter", "head", "trainable", "model")
                },
                "bytes_task": task,
                "bytes_checkpoint": checkpoint,
                "bytes_tasks": TASKS * checkpoint if full else checkpoint + TASKS * task,
                "peak_mib": runs.peak_memory_mib.mean(),
                "device_mib": runs.peak_device_memory_mib.astype(float).mean(),
                "seconds_step": (runs.seconds_train / runs.steps).mean(),
                "rows_second": (seen / runs.seconds_train).mean(),
                "seconds_run": runs.seconds.mean(),
                "padded_share": (runs.tokens_padded / runs.tokens_real).mean(),
            }
        )
    return pd.DataFrame(rows)
