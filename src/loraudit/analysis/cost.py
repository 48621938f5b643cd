"""What each cell of a study costs: parameters, bytes, memory and time, from the run records.

Runs share a machine with each other and with whatever else it does, and the clock on the wall
counts that too. So the time of a step is its processor time, all threads together, where a task's
runs trained on CPUs; where a GPU trained, and the processor waits, it is the wall's. It is a mean
over runs, with its spread: differences within the spread are no findings, and figures say so.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats

from loraudit.analysis.cells import SCORED_CELL, SUBJECT
from loraudit.analysis.pooling import own_spread, pooled
from loraudit.analysis.statistics import NO_SPREAD, SIGNIFICANCE, aggregate
from loraudit.studies.methods import METHODS
from loraudit.studies.scores import sign

TASKS = 10
"""The poster's example: one base model that serves ten tasks."""

PRICES = {
    "parameters_trainable": "trainable parameters",
    "milliseconds_step": "{} time per step, ms",
    "memory_mib": "peak memory, MiB",
}
"""What a cell's score is weighed against, each with its name and unit; {} is the clock."""


STANDS = ("on", "within noise", "beaten")
"""Where a cell is to a front: on it; off it, but by no more than the spread; clearly beaten."""


def clearly_differ(values: Sequence[np.ndarray]) -> np.ndarray:
    """Tell of each two cells whether their means differ by more than their spread explains.

    By Welch's test at 5 % with the spread that the cells share (pooling.py), not adjusted for the
    number of pairs. Means without any spread differ where they are not equal. Of a cell with one
    value nothing is known, so that it differs from none.

    Args:
        values: of each cell, those of its runs.

    Returns:
        Booleans (cells, cells).
    """
    counts = np.array([len(one) for one in values])
    means = np.array([np.mean(one) for one in values])
    several = counts > 1
    own = [own_spread(pd.Series(one)) for one in values if len(one) > 1]
    shared = pooled(own) if own else []
    variance, freedom = np.zeros(len(values)), np.ones(len(values))
    variance[several] = [spread.variance for spread in shared]
    freedom[several] = [spread.freedom for spread in shared]
    part = variance / counts
    error = np.sqrt(part[:, None] + part)
    weight = part**2 / freedom
    gap, most = np.abs(means[:, None] - means), sum(spread.freedom for spread in own)
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.minimum(error**4 / (weight[:, None] + weight), most)
        p = 2 * scipy.stats.t.sf(gap / error, degrees)
    tied = error < NO_SPREAD
    return np.where(tied, gap > NO_SPREAD, p < SIGNIFICANCE) & several[:, None] & several


def cost(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell; times and memory are means over its runs.

    `step` is the time of a step in seconds by the `clock` ("CPU" or "wall", see above), `step_sd`
    its standard deviation over runs, and `steps_differ` whether the quickest and the slowest cell
    of the task and model differ clearly. `seconds_step` is the wall's time in any case. A fit that
    takes no steps has no time of one.

    `bytes_task` is what one more task adds on disk: the adapter or the trained part, or, for full
    fine-tuning, another checkpoint. `bytes_tasks` is the disk for `TASKS` tasks: adapters beside
    one checkpoint, or as many checkpoints. Memory is the process's peak (resident), everything
    included; on a GPU `device_mib` is what tensors took at most.
    """
    rows, tidy = [], _with_steps(tidy)
    differ = {key: _steps_differ(part) for key, part in tidy.groupby(SUBJECT, sort=False)}
    for key, runs in tidy.groupby(SCORED_CELL, dropna=False, sort=False):
        first, full = runs.iloc[0], _saves_all(runs.method.iloc[0])
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
                "clock": first.clock,
                "step": runs.step.mean(),
                "step_sd": runs.step.std(),
                "steps_differ": differ[first.task, first.model],
                "seconds_step": (runs.seconds_train / runs.steps).mean(),
                "rows_second": (seen / runs.seconds_train).mean(),
                "seconds_run": runs.seconds.mean(),
                "padded_share": (runs.tokens_padded / runs.tokens_real).mean(),
            }
        )
    return pd.DataFrame(rows)


def _saves_all(method: str) -> bool:
    """Tell whether a task of a method takes another checkpoint, so that none is kept beside it."""
    return "full" in (method, METHODS[method].published_as)


def _with_steps(tidy: pd.DataFrame) -> pd.DataFrame:
    """Add the seconds of a step of each run, and by which clock: one for a task and model.

    Methods that are one fit (their epochs are fixed) take no steps, so that theirs is missing.
    """
    takes_steps = ~tidy.method.map(lambda name: "epochs" in METHODS[name].fixed)
    tidy = tidy.assign(steps=tidy.steps.where(takes_steps))
    tidy = tidy.assign(step=tidy.seconds_train / tidy.steps, clock="wall")
    if "cpu_seconds_train" not in tidy:  # records of an older layout
        return tidy
    on_gpu = tidy.device.str.startswith("cuda")
    timed = ~on_gpu.groupby([tidy[name] for name in SUBJECT]).transform("any")
    cpu = tidy.cpu_seconds_train / tidy.steps
    return tidy.assign(step=tidy.step.where(~timed, cpu), clock=np.where(timed, "CPU", "wall"))


def _steps_differ(runs: pd.DataFrame) -> bool:
    """Tell whether the quickest and the slowest cell of a task and model differ clearly."""
    stepped = runs[runs.step.notna()]
    if stepped.empty:
        return False
    steps = [own.step.to_numpy() for _, own in stepped.groupby(SCORED_CELL, dropna=False)]
    means = [own.mean() for own in steps]
    return bool(clearly_differ([np.log(own) for own in steps])[np.argmin(means), np.argmax(means)])


def without_twins(rows: pd.DataFrame) -> pd.DataFrame:
    """Drop the rows of PEFT's runs that have ours beside them; what PEFT alone has stays."""
    keys = [*SUBJECT, "rank", "targets", "label"]
    cells = rows[keys].astype("string").fillna("").agg("|".join, axis=1)
    return rows[(rows.method != "peft") | ~cells.isin(cells[rows.method == "lora"])]


def priced(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return the runs, without PEFT's twins of ours, with their `PRICES` and the `clock` of time.

    Memory is the GPU's where the runs had one, which `on_gpu` tells, else the process's.
    """
    tidy = _with_steps(without_twins(tidy))
    device = tidy.peak_device_memory_mib.astype(float)
    memory = device.fillna(tidy.peak_memory_mib)
    return tidy.assign(milliseconds_step=1000 * tidy.step, memory_mib=memory, on_gpu=device.notna())


def pareto(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell: last-epoch score, its prices, and where it is to each front.

    A cell is "on" the front of a price (`front_<price>`, one of `STANDS`) where no other cell of
    its task and model has both a mean as good and a mean price as low, one of the two better. It is
    "beaten" where another cell that has both is clearly better in one (`clearly_differ`), else
    "within noise". `clear_<price>` tells whether there is a front to speak of: the cheapest and the
    dearest cell on it differ clearly in price and in score, or one cell clearly beats all others.
    A cell without a price (a fit that takes no steps has no time per step) is on no front, nor is
    one with an undefined score.
    PEFT's twins are left out beside ours: they are the same method.
    """
    prices = priced(tidy)
    named = [*SCORED_CELL, "n", "last_mean", "last_sd", "last_collapsed"]
    table = aggregate(prices)[named].copy()
    cells = [own for _, own in prices.groupby(SCORED_CELL, dropna=False, sort=False)]
    table["clock"] = [own.clock.iloc[0] for own in cells]
    table["on_gpu"] = [bool(own.on_gpu.any()) for own in cells]
    for price in PRICES:
        table[price] = [own[price].mean() for own in cells]
        table[f"{price}_sd"] = [own[price].std() for own in cells]
        for _, part in table.groupby(SUBJECT, sort=False):
            paid = part.index[part[price].notna() & part.last_mean.notna()]
            stands, clear = _front([cells[place] for place in paid], price)
            table.loc[paid, f"front_{price}"] = stands
            table.loc[part.index, f"clear_{price}"] = clear
    return table.astype({f"clear_{price}": bool for price in PRICES})


def _front(cells: Sequence[pd.DataFrame], price: str) -> tuple[list[str], bool]:
    """Return of each cell of a task and model where it stands, and whether the front is clear."""
    if not cells:
        return [], False
    scores = [sign(own.metric.iloc[0]) * own["last"].to_numpy(float) for own in cells]
    prices = [own[price].to_numpy(float) for own in cells]
    score, paid = (np.array([one.mean() for one in values]) for values in (scores, prices))
    scored = clearly_differ(scores)
    if price == "parameters_trainable":  # counted, not measured
        priced = paid[:, None] != paid
    else:
        priced = clearly_differ([np.log(one) for one in prices])
    better = (score[:, None] < score) | (paid[:, None] > paid)
    beats = (score[:, None] <= score) & (paid[:, None] >= paid) & better  # (cell, other)
    clearly = (beats & (scored | priced)).any(axis=1)
    places = np.where(~beats.any(axis=1), 0, np.where(clearly, 2, 1))
    front = np.flatnonzero(places == 0)
    stands = [STANDS[place] for place in places]
    if len(front) == 1:
        return stands, not (places == 1).any()
    ends = (front[paid[front].argmin()], front[paid[front].argmax()])
    return stands, bool(scored[ends] & priced[ends])
