"""A run's result: what was asked, what came out, where it ran; and its seal.

The seal is a digest of every digit of record.json, which itself holds the hashes of the run's other
files. It shows edits and bit rot. It can't show a forger who seals anew: scores are therefore also
recomputed from the predictions (`loraudit verify`).
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint, sha256, write_json
from loraudit.studies.spec import RunSpec, digest
from loraudit.studies.values import Frozen


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
    counts: dict[str, float] = {}
    """What moving ranks cost (alora: forward passes, rows and seconds of scoring)."""


LAYOUT = 2
"""The layout of records that this version writes and reads."""


class RunRecord(Frozen):
    """One run, complete: the spec asked for, what training gave, the environment it ran in.

    `code_sha256` is the digest of the code behind the run as its rule computes it, None for a run
    started by hand. `files` and `record_sha256` are the seal, None in records older than it.
    """

    layout: Literal[2] = 2
    spec: RunSpec
    spec_sha256: str
    train: Train
    environment: dict
    code_sha256: str | None = None
    files: dict[str, str] | None = None
    record_sha256: str | None = None


def seal(text: str) -> str:
    """Return the digest of a record's JSON text, its own `record_sha256` left out.

    Keys may be in any order and spacing is free; fractions count digit by digit, as written.
    """
    content = json.loads(text, parse_float=str)
    content.pop("record_sha256", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_files(folder: Path) -> dict[str, str]:
    """Return {relative name: SHA-256} of the files of a run that its record seals."""
    names = ("spec.json", "history.csv", "predictions.parquet", "ranks.csv")
    adapter = folder_fingerprint(folder / "adapter")
    found = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    return found | {f"adapter/{name}": value for name, value in adapter.items()}


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record.json, sealed; its other files must be there already."""
    content = record.model_dump(mode="json") | {"files": run_files(folder)}
    content["record_sha256"] = seal(json.dumps(content))
    write_json(folder / "record.json", content)


def parse_record(text: str, path: Path | str) -> RunRecord:
    """Make a record from its JSON text; whether its digests fit is not checked.

    Raises:
        UserError: the record has another layout than this version reads.
        ValueError, TypeError, ValidationError, RecursionError: it is no record.
    """
    content = json.loads(text)
    layout = content.get("layout", 1) if isinstance(content, dict) else LAYOUT
    if layout != LAYOUT:
        raise UserError(
            f"{path}: a record of layout {layout}, this version reads layout {LAYOUT}: delete it "
            "to have the run made again, or use the version of loraudit that wrote it"
        )
    return RunRecord(**content)


def read_record(path: Path | str) -> RunRecord:
    """Read a record.json.

    Raises:
        UserError: no file, not a complete record, or one whose spec or seal does not match its own
            digest.
    """
    try:
        text = Path(path).read_text()
        record = parse_record(text, path)
    except UserError:
        raise
    except (ValidationError, ValueError, TypeError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a complete run record: {reason}") from None
    if digest(record.spec) != record.spec_sha256:
        raise UserError(f"{path}: the spec was changed after the run (its digest differs)")
    if record.record_sha256 is not None and seal(text) != record.record_sha256:
        raise UserError(f"{path}: the record was changed after the run (its seal is broken)")
    return record
