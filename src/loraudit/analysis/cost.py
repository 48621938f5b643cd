"""What each cell of a study costs: parameters, bytes, memory and time, from the run records."""

import pandas as pd

from loraudit.analysis.cells import SCORED_CELL, SUBJECT
from loraudit.analysis.statistics import aggregate
from loraudit.studies.methods import METHODS

TASKS = 10
"""The poster's example: one base model that serves ten tasks."""

PRICES = {
    "parameters_trainable": "trainable parameters",
    "milliseconds_step": "time per step, ms",
    "memory_mib": "peak memory, MiB",
}
"""What a cell's score is weighed against, each with its name and unit."""


def cost(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell; times and memory are means over its runs.

    `bytes_task` is what one more task adds on disk: the adapter or the trained part, or, for full
    fine-tuning, another checkpoint. `bytes_tasks` is the disk for `TASKS` tasks: adapters beside
    one checkpoint, or as many checkpoints. Memory is the process's peak (resident), everything
    included; on a GPU `device_mib` is what tensors took at most.
    """
    rows = []
    for key, runs in tidy.groupby(SCORED_CELL, dropna=False, sort=False):
        first, full = runs.iloc[0], not METHODS[runs.method.iloc[0]].saves
        checkpoint = int(first.bytes_checkpoint)
        task = checkpoint if full else int(runs.bytes_adapter.mean())
        seen = runs.rows_train * runs.last_epoch
        rows.append(
            {
                **dict(zip(SCORED_CELL, key, strict=True)),
                "n": len(runs),
                **{
                    f"parameters_{part}": round(runs[f"parameters_{part}"].mean())
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


def without_twins(rows: pd.DataFrame) -> pd.DataFrame:
    """Drop the rows of PEFT's runs that have ours beside them; what PEFT alone has stays."""
    keys = [*SUBJECT, "rank", "targets", "label"]
    cells = rows[keys].astype("string").fillna("").agg("|".join, axis=1)
    return rows[(rows.method != "peft") | ~cells.isin(cells[rows.method == "lora"])]


def pareto(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell: last-epoch score, its prices, and whether it is on each front.

    A cell is on the front of a price (`front_<price>`) where no other cell of its task and model
    has both a mean as high and a price as low, one of the two better. Means alone are compared, not
    their spread. Memory is the GPU's where the runs had one, else the process's. PEFT's twins are
    left out beside ours: they are the same method.
    """
    tidy = without_twins(tidy)
    scores = aggregate(tidy)[[*SCORED_CELL, "n", "last_mean", "last_sd"]]
    prices = cost(tidy)
    table = scores.assign(
        parameters_trainable=prices.parameters_trainable,
        milliseconds_step=1000 * prices.seconds_step,
        memory_mib=prices.device_mib.fillna(prices.peak_mib),
    )
    for price in PRICES:
        fronts = [_front(part, price) for _, part in table.groupby(SUBJECT, sort=False)]
        table[f"front_{price}"] = pd.concat(fronts)
    return table


def _front(part: pd.DataFrame, price: str) -> pd.Series:
    """Mark the rows that no other row beats in `last_mean` (higher) and `price` (lower)."""
    score, paid = part.last_mean.to_numpy(), part[price].to_numpy()
    beaten = [
        bool(((score >= s) & (paid <= p) & ((score > s) | (paid < p))).any())
        for s, p in zip(score, paid, strict=True)
    ]
    return pd.Series([not one for one in beaten], part.index)
