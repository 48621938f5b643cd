"""A run's record: what was asked for, what came out, where it ran, and a seal on all of this.

The seal is a digest of every digit of record.json, which itself holds the hashes of the run's other
files. It reveals edits and bit rot, but not a forger who makes a new seal; `loraudit verify`
therefore also recomputes the scores from the predictions.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint, sha256, write_json
from loraudit.studies.names import score_name
from loraudit.studies.spec import CHOSEN_ON, EpochChoice, RunSpec, digest
from loraudit.studies.values import Frozen


class Chosen(Frozen):
    """The epoch that a choice came to (from 1), and its scores as fractions, None where undefined.

    A metric of another split than validation has the split's name behind it: `accuracy_selection`.
    """

    epoch: int
    scores: dict[str, float | None]


class Train(Frozen):
    """What training gave.

    `seconds` are wall time. `cpu_seconds` are the processor time of the main process, all its
    threads together, spent training ("train") and evaluating ("evaluate").

    `epochs` has an entry for each of the spec's `choices`. `diverged` is the optimizer step after
    which the loss or an output was not finite, of a run that only tunes: it then has no epochs,
    and its values count as the worst. (Other runs that diverge have no record.)

    `collapsed` names those choices at whose epoch the run predicts (almost) one class only, or
    scores no more than the majority class would; of a regression, at which its outputs are
    constant. A language model has no constant answer and is never named. `unmoved` names matrices B
    of the saved adapter that are still zero, so that their layers are as if they had no adapter.
    """

    steps: int
    epochs: dict[EpochChoice, Chosen]
    collapsed: tuple[EpochChoice, ...] = ()
    unmoved: tuple[str, ...] = ()
    diverged: int | None = None
    parameters: dict[str, int]
    bytes: dict[str, int]
    rows: dict[str, int]
    tokens: dict[str, int]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    peak_memory_mib: float
    peak_device_memory_mib: float | None = None
    copied: tuple[str, ...] = ()
    """Names of the tensors that a warm start copied."""
    counts: dict[str, float] = {}
    """What moving ranks cost, such as the forward passes, rows and seconds of ALoRA's scoring; or
    what a closed fit has chosen, such as the probe's C."""


class Trial(Frozen):
    """What one candidate of a tuned run scored on the selection rows, over `n` seeds.

    Of these `collapsed` gave a constant answer, and `diverged` have no score, which counts as the
    worst (`scores.worst_score`).
    """

    values: dict[str, Any]
    mean: float
    sd: float | None
    n: int
    collapsed: int = 0
    diverged: int = 0


class Tuning(Frozen):
    """What was chosen for a run's tuned fields, and from what.

    `at_edge` names the fields whose chosen value is the smallest or largest that was tried, so that
    a better one may lie beyond. `seals` are the seals of the records that were compared.
    """

    chosen: dict[str, Any]
    at_edge: tuple[str, ...]
    trials: tuple[Trial, ...]
    seals: dict[str, str]


LAYOUT = 6
"""The layout of records that this version writes and reads."""


class RunRecord(Frozen):
    """One complete run: its spec, what training gave, and the environment it ran in.

    The spec has the values that were chosen for tuned fields; `tuning` says how.

    `code_sha256` is the digest that the run's rule computes of the code behind it, None for a run
    started by hand. `files` and `record_sha256` are the seal, None until the record is sealed.
    """

    layout: Literal[6] = 6
    spec: RunSpec
    spec_sha256: str
    train: Train
    environment: dict
    tuning: Tuning | None = None
    code_sha256: str | None = None
    files: dict[str, str] | None = None
    record_sha256: str | None = None


def selection_score(record: RunRecord) -> float | None:
    """Return a run's headline score on the selection rows at the epoch that they choose.

    Values are chosen by it. None: it is undefined, or the run diverged.
    """
    if record.train.diverged is not None:
        return None
    name = score_name(record.spec.task.headline, CHOSEN_ON["selected"])
    return record.train.epochs["selected"].scores[name]


def seal(text: str) -> str:
    """Return the digest of a record's JSON text without its own `record_sha256`.

    The order of keys and the spacing do not matter; every digit of a fraction does.
    """
    content = json.loads(text, parse_float=str)
    content.pop("record_sha256", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_files(folder: Path) -> dict[str, str]:
    """Return {relative name: SHA-256} of those files of a run that its record seals."""
    names = ("spec.json", "history.csv", "predictions.parquet", "ranks.csv")
    adapter = folder_fingerprint(folder / "adapter")
    sealed = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    return sealed | {f"adapter/{name}": value for name, value in adapter.items()}


def write_record(folder: Path, record: RunRecord) -> None:
    """Seal a run's record and write it as record.json; the run's other files must exist."""
    content = record.model_dump(mode="json") | {"files": run_files(folder)}
    content["record_sha256"] = seal(json.dumps(content))
    write_json(folder / "record.json", content)


def load_record(path: Path | str) -> tuple[str, RunRecord]:
    """Read a record.json without checking its digests; return its text and the record.

    Raises:
        UserError: there is no complete record, or one of a layout that this version does not read.
    """
    try:
        text = Path(path).read_text()
        return text, _parsed(text, path)
    except (ValidationError, ValueError, TypeError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a complete run record: {reason}") from None


def _parsed(text: str, path: Path | str) -> RunRecord:
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
        UserError: there is no complete record, or its spec or its seal does not match the digest
            that it holds.
    """
    text, record = load_record(path)
    if digest(record.spec) != record.spec_sha256:
        raise UserError(f"{path}: the spec was changed after the run (its digest differs)")
    if record.record_sha256 is not None and seal(text) != record.record_sha256:
        raise UserError(f"{path}: the record was changed after the run (its seal is broken)")
    return record
