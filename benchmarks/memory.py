"""Measure the memory of the jobs that config/cluster.yaml asks memory for, on one CPU thread.

Random models of MiniLM's, RoBERTa-base's and -large's shape and random tokens without padding, so
that neither a network nor a fetched file is needed:

    python benchmarks/memory.py [CASE ...]

- train: scripts/train.py on STEPS optimizer steps and an evaluation; LoRA and PEFT of rank 8 on q
  and v, and full fine-tuning.
- crosscheck: scripts/crosscheck.py on one cell, rank 8 on q and v.
- layers: only that part of a cross-check that compares single layers.

A case is named by its words, as "train roberta-base lora 16 x 128"; a CASE chooses those whose name
begins with it. Cross-checks take STEPS optimizer steps instead of their own number: in the second
one the optimizer holds its moments beside all else, and further steps need no more memory.

Each case is a copy of this process, which has the libraries loaded and no model, as jobs of one
machine are (src/loraudit/base/forks.py). Measured is the most resident memory that Linux has noted
for the copy (VmHWM), read every POLL seconds. A copy that takes more than MOST_GIB is ended, and
its row says so: the number is then the least that the job takes. A measured case replaces the row
of its name in job_memory.csv, so that cases can be measured one by one.
"""

import argparse
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import peft  # noqa: F401  # as in a job of one machine, libraries are there before it starts
import pyarrow as pa
import sklearn.metrics  # noqa: F401
import torch
from accelerate.commands import launch  # noqa: F401

from common import random_model, spec_of
from loraudit.base.files import sha256, write_atomic, write_json, write_text
from loraudit.crosscheck import single_layer, whole_model
from loraudit.report.formatting import markdown
from loraudit.studies.spec import RunSpec
from loraudit.training import run  # noqa: F401

TABLE, POLL, STEPS = "job_memory.csv", 0.05, 2
MOST_GIB = 12
"""Memory with which a copy is ended."""


@dataclass(frozen=True)
class Case:
    """A job of one model: `rows` and `tokens` of a forward pass; layers alone have neither."""

    job: str
    model: str
    method: str = "lora"
    rows: int = 0
    tokens: int = 0

    @property
    def name(self) -> str:
        """What the case is called on the command line."""
        shape = f" {self.rows} x {self.tokens}" if self.tokens else ""
        return f"{self.job} {self.model} {self.method}{shape}"


ROWS = {"train": 16, "crosscheck": whole_model.ROWS}
LONG, SHORT = (128, 512), (128,)
SHAPES = [
    *[("train", "minilm", method, SHORT) for method in ("lora", "peft", "full")],
    *[("train", "roberta-base", method, LONG) for method in ("lora", "peft", "full")],
    *[("train", "roberta-large", method, LONG) for method in ("lora", "peft", "full")],
    *[("crosscheck", model, "lora", LONG) for model in ("minilm", "roberta-base", "roberta-large")],
]
CASES = [
    *[Case(job, model, method, ROWS[job], n) for job, model, method, many in SHAPES for n in many],
    *[Case("layers", model) for model in ("minilm", "roberta-base", "roberta-large")],
]


def case_spec(case: Case) -> RunSpec:
    """Return the run of a case; -large has the family of -base, and its names of layers."""
    batch = ROWS["train"]
    return spec_of(
        "roberta-base" if case.model == "roberta-large" else case.model,
        method=case.method,
        max_length=case.tokens or SHORT[0],
        global_batch=batch,
        micro_batch=batch,
        epochs=1,
        validate_epochs="all",
        **dict.fromkeys(("train_rows", "validation_rows", "selection_rows")),
    )


def make(case: Case, root: Path) -> None:
    """Write a random model and random tokens of one length, as fetch_model and tokenise do."""
    random_model(case.model).save_pretrained(root / "model")
    weights = root / "model/model.safetensors"
    write_json(root / "model/manifest.json", {"files": {weights.name: sha256(weights)}})
    random, folder = np.random.default_rng(0), root / "tokens"
    folder.mkdir()
    counts = {"train": STEPS * ROWS["train"], "validation": ROWS["train"]}
    for split, rows in counts.items():
        ids = random.integers(1000, 30000, (rows, case.tokens)).tolist()
        columns = {"row": np.arange(rows), "label": np.arange(rows) % 2}
        batch = pa.record_batch({**columns, "ids": pa.array(ids, pa.list_(pa.int32()))})
        file = str(folder / f"{split}.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
    files = {file.name: sha256(file) for file in folder.glob("*.arrow")}
    facts = {"max_length": case.tokens, "pad_id": 1, "splits": dict.fromkeys(counts, "random")}
    write_json(folder / "manifest.json", {**facts, "absent": [], "files": files})


def do(case: Case, root: Path) -> None:
    """Do a job on what `make` has made, in this process."""
    whole_model.STEPS = single_layer.STEPS = STEPS
    if case.job == "layers":
        check_layers(case)
        return
    os.environ.update(ACCELERATE_USE_CPU="true", ACCELERATE_MIXED_PRECISION="no")
    sys.argv = [f"scripts/{case.job}.py", "--spec", case_spec(case).model_dump_json()]
    for name in ("tokens", "model", "out"):
        sys.argv += [f"--{name}", str(root / name)]
    runpy.run_path(sys.argv[0], run_name="__main__")


def check_layers(case: Case) -> None:
    """Compare each shape of a model's adapted layers alone, as the cross-check does at its end."""
    with torch.device("meta"):  # only the shapes are read
        model = random_model(case.model)
    for layer in whole_model.layer_cases(model, case_spec(case)):
        for dtype in single_layer.TOLERANCE:
            single_layer.compare_layer(layer, dtype)


def copy(call: Callable[[], object]) -> int:
    """Call a function in a copy of this process, which ends with it; return the copy's number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        call()
        status = 0
    except SystemExit as end:
        status = 0 if end.code in (None, 0) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def watch(pid: int, most_mib: float, what: str) -> tuple[float, bool]:
    """Wait for a copy; return its peak resident MiB, and whether it was ended for taking too much.

    Raises:
        SystemExit: it failed.
    """
    peak, stopped, status = 0.0, False, None
    while status is None:
        peak = max(peak, resident_mib(pid))
        if peak > most_mib and not stopped:
            os.kill(pid, signal.SIGKILL)
            stopped = True
        time.sleep(POLL)
        ended, code = os.waitpid(pid, os.WNOHANG)
        status = code if ended else None
    if status and not stopped:
        raise SystemExit(f"{what} failed")
    return peak, stopped


def resident_mib(pid: int) -> float:
    """Return the most resident memory that Linux has noted for a process; 0 if it has ended.

    Not getrusage's figure: a process inherits its parent's.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def measure(cases: list[Case], most_mib: float) -> Iterator[dict]:
    """Measure cases one after the other, each on a model and tokens that are made for it."""
    for case in cases:
        root = Path(tempfile.mkdtemp())
        try:
            if case.tokens:
                watch(copy(lambda c=case, r=root: make(c, r)), most_mib, f"making {case.name}")
            job = copy(lambda c=case, r=root: do(c, r))
            peak, stopped = watch(job, most_mib, case.name)
        finally:
            shutil.rmtree(root)
        print(f"{case.name}: {peak:,.0f} MiB{' and more' * stopped}", file=sys.stderr, flush=True)
        yield {"case": case.name, **asdict(case), "peak_mib": round(peak), "stopped": stopped}


def append(rows: list[dict], out: Path) -> None:
    """Write rows into the table in place of those of the same cases, in the order of CASES."""
    file = out / TABLE
    old = pd.read_csv(file).to_dict("records") if file.is_file() else []
    found = {row["case"]: row for row in [*old, *rows]}
    table = pd.DataFrame([found[case.name] for case in CASES if case.name in found])
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(file, lambda path: table.to_csv(path, index=False))
    write_text(file.with_suffix(".md"), markdown(shown(table)))


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Set methods side by side, in MiB; "over" where a job was ended before its peak."""
    peak = table.peak_mib.map("{:,}".format)
    peak = peak.where(~table.stopped, f"over {1024 * MOST_GIB:,.0f}")
    shape = [f"{row.rows} x {row.tokens}" if row.tokens else "" for row in table.itertuples()]
    key = ["job", "model", "rows x tokens"]
    rows = table.assign(**{"rows x tokens": shape, "peak": peak})
    wide = rows.pivot_table(index=key, columns="method", values="peak", aggfunc="first", sort=False)
    names = {"lora": "LoRA, MiB", "peft": "PEFT, MiB", "full": "full fine-tuning, MiB"}
    return (
        wide.reindex(columns=list(names))
        .rename(columns=names)
        .astype(object)
        .fillna("")
        .reset_index()
    )


def main() -> None:
    """Measure the chosen cases and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=[""], metavar="CASE")
    parser.add_argument("--out", type=Path, default=Path("results/committed/bench"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for name in given.cases for case in CASES if case.name.startswith(name)]
    for row in measure(chosen, 1024 * MOST_GIB):
        append([row], given.out)


if __name__ == "__main__":
    main()
