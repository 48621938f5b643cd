"""Estimate runs on a GPU that is not here, by a table of speeds that benchmarks/gpu.py measured.

A run takes the row of the GPU that is nearest to it: its own model, precision, code path and
method where the table has them, and then the size of a step, batch x tokens, that is closest (of
two as close, the larger). A larger step takes longer in proportion to its tokens. A smaller one
counts as the row's, because the time of a small step is that of starting its kernels. No step that
was not measured counts as slower than a larger one of its kind that was. A run's inputs count as
`max_length` tokens each, so that shorter inputs may take less than estimated.

For a GPU that the table lacks, the speeds of one that it has are scaled by the ratio of the two
peaks (gpus.yaml). No step is taken to be faster than it was measured, since a short one waits for
Python.
"""

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from loraudit.base.errors import UserError, unknown
from loraudit.base.shipped import own_or_shipped
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.names import targets_name
from loraudit.studies.spec import RunSpec

TABLE = Path("results/committed/bench/gpu.csv")
PEAKS = Path(__file__).with_name("gpus.yaml")
COLUMNS = (
    *("gpu", "device", "torch", "model", "method", "batch", "tokens", "precision", "compute"),
    *("tool", "runs_per_gpu", "steps_per_second", "q1", "q3", "peak_mib"),
)

FORWARD = 1 / 3
"""An evaluated row is taken to cost so much of a trained one: a forward pass without the backward
pass, which costs about two. This is arithmetic and was not measured."""

RECOMPUTED = 1 + FORWARD
"""A step that recomputes its blocks is taken to cost so much of one that does not: a forward pass
more. Its memory is taken to be as large as without, which is too much. The table has no such run.
"""

START_SECONDS = 10.0
"""What a run takes before its first step, as measured on a CPU (docs/speed.md)."""


class Speed(NamedTuple):
    """What a run costs by a row of the table; `source` says which, and how it was scaled."""

    step_seconds: float
    evaluate_row_seconds: float
    device_mib: float
    source: str


def read_speeds(name: str) -> pd.DataFrame:
    """Return the rows of a GPU that are of our own training loop, or those of another one, scaled.

    Args:
        name: a GPU's short name, such as h100.

    Returns:
        The rows; `slower` says by how much their speeds were divided, 1 if they were measured.

    Raises:
        UserError: there is no table, it lacks columns, or nothing is known of such a GPU.
    """
    path = own_or_shipped(TABLE)
    if not path.is_file():
        raise UserError(
            f"gpu: {name!r}: no table of measured speeds ({TABLE}); on a machine with that GPU, "
            "`python benchmarks/gpu.py` makes it"
        )
    table = pd.read_csv(path)
    if lacking := [column for column in COLUMNS if column not in table]:
        raise UserError(f"{path}: no column {', '.join(lacking)}; `python benchmarks/gpu.py` has")
    ours = table[table["tool"] == "loraudit"].assign(slower=1.0)
    found = ours[ours["gpu"].str.lower() == name.lower()]
    return _scaled(ours, name.lower()) if found.empty else found


def _scaled(measured: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of the GPUs whose peaks are known too, at the speed of another one's peak."""
    peaks = read_yaml(PEAKS)
    known = measured[measured["gpu"].isin(set(peaks))]
    if name not in peaks or known.empty:
        raise unknown("gpu", name, {*measured["gpu"], *(() if known.empty else peaks)})
    ratios = [
        max(1.0, peaks[gpu][precision] / peaks[name][precision])
        for gpu, precision in zip(known["gpu"], known["precision"], strict=True)
    ]
    return known.assign(steps_per_second=known["steps_per_second"] / ratios, slower=ratios, of=name)


def speed(spec: RunSpec, rows: pd.DataFrame, runs_per_gpu: int = 1, processes: int = 1) -> Speed:
    """Return what a run costs on a GPU.

    Args:
        spec: the run.
        rows: `read_speeds`' answer.
        runs_per_gpu: runs that share the GPU, each then slower.
        processes: GPUs that share each step of the run; their exchange is not counted.
    """
    batch = math.ceil(spec.global_batch / processes)
    work = batch * spec.max_length
    wanted = {
        "model": spec.model.name,
        "precision": spec.precision,
        "compute": spec.compute,
        "method": f"{spec.method}-r{spec.lora.rank}-{targets_name(spec)}"
        if spec.adapter
        else spec.method,
    }
    scores = [
        (
            *(_distance(key, row[key], value) for key, value in wanted.items()),
            round(abs(math.log(row["batch"] * row["tokens"] / work)), 9),
            -row["batch"] * row["tokens"],
            abs(math.log(row["runs_per_gpu"] / runs_per_gpu)),
        )
        for _, row in rows.iterrows()
    ]
    row = rows.iloc[min(range(len(scores)), key=scores.__getitem__)]
    if row["batch"] * row["tokens"] != work:
        larger = _larger(row, rows, batch, spec.max_length)
        row = min((row, *larger), key=lambda one: _seconds(one, work, runs_per_gpu))
    share = work / (row["batch"] * row["tokens"])
    seconds = _seconds(row, work, runs_per_gpu)
    own = spec.recompute == "none"
    source = _source(row, wanted | {"runs_per_gpu": runs_per_gpu}, share, own)
    evaluated = FORWARD * seconds / batch / processes  # which share the rows out
    if spec.recompute == "blocks":
        seconds *= RECOMPUTED
        source += f", times {RECOMPUTED:.3g} for recompute: blocks (memory: as without)"
    return Speed(seconds, evaluated, float(row["peak_mib"]), source)


def _seconds(row: pd.Series, work: int, runs_per_gpu: int) -> float:
    """Return what a step of `work` tokens takes by a row of the table."""
    # if not as many runs shared the GPU, its total stays
    return runs_per_gpu / row["steps_per_second"] * max(1.0, work / (row["batch"] * row["tokens"]))


KIND = ["gpu", "model", "method", "precision", "compute", "runs_per_gpu"]
"""The columns in which two rows of one kind, which may differ in the size of a step, are equal."""


def _larger(row: pd.Series, rows: pd.DataFrame, batch: int, tokens: int) -> list[pd.Series]:
    """Return the rows of the kind of `row` with a batch and inputs that are at least so large."""
    alike = (rows[KIND] == row[KIND]).all(axis=1)
    found = rows[alike & (rows["batch"] >= batch) & (rows["tokens"] >= tokens)]
    return [one for _, one in found.iterrows()]


def _distance(key: str, found: object, wanted: object) -> float:
    """Return 0 for an equal value, and how far another one is: less for a related method."""
    if found == wanted:
        return 0.0
    if key == "method":
        same = str(found).partition("-")[0] == str(wanted).partition("-")[0]
        return 1.0 if same else 2.0
    return 1.0


def _source(row: pd.Series, wanted: dict[str, object], share: float, own: bool) -> str:
    """Say whether the run's own step was measured, or which row was used and how it was scaled.

    Args:
        row: the row that was used.
        wanted: what of the run decides its speed.
        share: the tokens of the run's step as a multiple of the row's.
        own: whether the run computes a step as the row's did.
    """
    size = f"{row['batch']}x{row['tokens']}"
    said = f"{row['gpu']}: {row['model']} {row['method']} {size} {row['precision']}"
    other = [f"{key} {row[key]} for {value}" for key, value in wanted.items() if row[key] != value]
    measured = row.get("of") is None
    if own and measured and not other and math.isclose(share, 1):
        return f"measured on {said}"
    said += f" ({', '.join(other)})" if other else ""
    if not math.isclose(share, 1):
        scaled = f"times {share:.3g} for the step's tokens"
        said += f", {scaled}" if share > 1 else ", as which the smaller step counts"
    said += "" if measured else f", times {row['slower']:.3g} for {row['of']}'s peak"
    return f"arithmetic from {said}"
