"""A run's result: what was asked, what came out, where it ran; and a study's tidy table."""

from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from loraudit.errors import UserError
from loraudit.files import read_json
from loraudit.spec import Frozen, Run, RunSpec, Study, cell_id, digest, targets_name, validated
from loraudit.statistics import agreement


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
    epochs: dict[int, np.ndarray], rows: np.ndarray, labels: np.ndarray, predict
) -> pd.DataFrame:
    """Stack {epoch: logits (n, k)} into columns epoch, row, label, prediction, logit_0 ..."""
    tables = []
    for epoch, logits in epochs.items():
        table = pd.DataFrame(
            {"epoch": epoch, "row": rows, "label": labels, "prediction": predict(logits)}
        )
        for k in range(logits.shape[1]):
            table[f"logit_{k}"] = logits[:, k]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def tidy(study: Study, folder: Path) -> pd.DataFrame:
    """Read all records of a study into one row per run.

    Raises:
        UserError: a record that is incomplete or was made from another spec.
    """
    return pd.DataFrame([_tidy_row(run, Path(folder) / run.id) for run in study.runs])


def read_study(path: Path | str) -> Study:
    """Read a study.json."""
    return validated(Study, read_json(path), str(path))


def twins(study: Study, folder: Path) -> list[dict]:
    """Compare the predictions of each pair of runs that differ in lora or peft only."""
    pairs: dict[tuple, dict[str, str]] = {}
    for run in study.runs:
        if run.spec.adapter:
            pairs.setdefault((cell_id(run), run.spec.seed), {})[run.spec.method] = run.id
    rows = []
    for (cell, seed), ids in pairs.items():
        if len(ids) == 2:
            ours, peft = (
                pd.read_parquet(Path(folder) / ids[method] / "predictions.parquet")
                for method in ("lora", "peft")
            )
            rows.append({"cell": cell, "seed": seed, **agreement(ours, peft)})
    return rows


def _tidy_row(run: Run, folder: Path) -> dict:
    record = read_record(folder / "record.json")
    if record.spec != run.spec:
        raise UserError(f"{folder}: made from another spec than the study asks for; delete it")
    spec, train = record.spec, record.train
    headline = spec.task.headline
    return {
        "run": run.id,
        "task": spec.task.name,
        "model": spec.model.name,
        "method": spec.method,
        "rank": spec.rank,
        "targets": targets_name(spec) if spec.adapter else None,
        "label": run.label,
        "seed": spec.seed,
        "metric": headline,
        "best": train.best[headline],
        "last": train.last[headline],
        "best_epoch": train.best_epoch,
        "last_epoch": train.last_epoch,
        **{f"best_{name}": value for name, value in train.best.items()},
        **{f"last_{name}": value for name, value in train.last.items()},
        **{f"parameters_{name}": count for name, count in train.parameters.items()},
        **{f"bytes_{name}": count for name, count in train.bytes.items()},
        **{f"rows_{name}": count for name, count in train.rows.items()},
        "seconds": train.seconds["total"],
        "peak_memory_mib": train.peak_memory_mib,
    }
