"""Measure what one GPU does in a second: training steps of RoBERTa-base's and -large's shape.

Random models, random tokens without padding, LoRA of rank 8 on q and v; neither a network nor a
fetched file is needed. `loraudit plan --gpu NAME` reads the table that this writes.

    python benchmarks/gpu.py [PART ...] [--rounds 5] [--minutes 9]

- steps: our training loop, 16 rows of 32, 128 and 512 tokens, in float32, TF32 and bfloat16, in the
  deterministic mode of every run; the fast path and, at 128 tokens, the plain layers.
- peer: PEFT with the Hugging Face Trainer on the same shapes (of RoBERTa-base), as its users start
  it: not deterministic.
- workspace: both again with 32 tokens, while CUBLAS_WORKSPACE_CONFIG stays set, which our runs take
  away after the first product (loraudit.training.device); written to gpu_workspace.csv.
- compiled: our loop under `compute: compiled`.
- shared: 2 and 4 runs at once on the GPU, each in a process of its own; their steps together.
- profile: how many kernels a step of our loop starts and how long they keep the GPU busy, beside
  the step's time; written to gpu_profile.csv.

Each part runs in processes of its own; of the peer and of `workspace` each case does, because the
Trainer's choice of TF32 stays with its process. A round is STEPS optimizer steps, after WARM_UP
others; the GPU has finished when the clock is read. Parts that no longer fit into --minutes are
left out, and said to be. Rows of parts that are measured again replace those of the same GPU and
part.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common import RANK, random_model, spec_of
from loraudit.base.errors import UserError, run_program
from loraudit.base.files import write_atomic
from loraudit.studies.spec import RunSpec
from loraudit.tools.calibrate import random_examples
from loraudit.tools.gpu_speeds import COLUMNS, TABLE
from loraudit.training.accounting import peak_device_memory_mib

PROFILE, KEPT = "gpu_profile.csv", "gpu_workspace.csv"
MODELS, TOKENS, PRECISIONS = (
    ("roberta-base", "roberta-large"),
    (32, 128, 512),
    ("fp32", "tf32", "bf16"),
)
BATCH, STEPS, WARM_UP = 16, 10, 5
METHOD = f"lora-r{RANK}-q+v"
Case = dict[str, str | int]
"""Model, tokens, precision and compute of one row."""


def cases(part: str) -> list[Case]:
    """Return what a part measures, row by row."""
    if part == "steps":
        grid = [(m, t, p, "fast") for m in MODELS for t in TOKENS for p in PRECISIONS]
        grid += [("roberta-base", 128, p, "plain") for p in PRECISIONS]
    elif part == "peer":
        grid = [("roberta-base", t, p, "plain") for t in TOKENS for p in PRECISIONS]
    elif part == "workspace":
        grid = [("roberta-base", 32, p, c) for p in ("fp32", "bf16") for c in ("fast", "plain")]
    elif part == "compiled":
        grid = [("roberta-base", 128, p, "compiled") for p in ("fp32", "bf16")]
    elif part == "shared":
        grid = [("roberta-base", 128, p, "fast") for p in ("fp32", "bf16")]
    else:
        grid = [("roberta-base", t, p, "fast") for p in ("fp32", "bf16") for t in TOKENS]
    return [
        dict(zip(("model", "tokens", "precision", "compute"), row, strict=True)) for row in grid
    ]


def case_spec(case: Case) -> RunSpec:
    """Return the run of a case."""
    return spec_of(
        "roberta-base",  # -large has its family and its names of layers
        max_length=int(case["tokens"]),
        global_batch=BATCH,
        micro_batch=BATCH,
        precision=case["precision"],
        compute=case["compute"],
        selection_rows=None,
        validate_epochs="all",
    )


def our_step(case: Case) -> Callable[[], object]:
    """Return a call of one optimizer step of our training loop."""
    from loraudit.adapters.fast_base import fast_base
    from loraudit.training import run
    from loraudit.training.loop import optimizer_step
    from loraudit.training.method import method_of

    spec = case_spec(case)
    accelerator = run.make_accelerator(spec)
    with accelerator.device:  # drawn there, which is faster
        base = random_model(str(case["model"]))
    module = method_of(spec).apply(fast_base(base, spec), spec)
    examples = random_examples(spec, base.config.vocab_size, BATCH)
    state = run.prepare(spec, accelerator, module, 100_000, 1)
    state.model.train()
    return lambda: optimizer_step(state, examples, np.arange(BATCH))


@contextmanager
def warm_step(case: Case) -> Iterator[Callable[[], object]]:
    """Give a step of our training loop that was done some times, in the mode of a run."""
    from loraudit.training.device import same_bits

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with same_bits(str(case["precision"]), device):
        step = our_step(case)
        for _ in range(WARM_UP):
            step()
        yield step


def our_rates(case: Case, rounds: int) -> dict[str, float]:
    """Time our training loop; returns what `rates` returns."""
    with warm_step(case) as step:
        return rates(step, rounds)


def rates(step: Callable[[], object], rounds: int) -> dict[str, float]:
    """Return the median steps per second of some rounds, its quartiles, and the peak memory."""
    found = []
    for _ in range(rounds):
        _finish()
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        _finish()
        found.append(STEPS / (time.perf_counter() - started))
    return spread(found) | {"peak_mib": peak_mib()}


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    return {"steps_per_second": median, "q1": q1, "q3": q3}


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib() -> float:
    """Return the most device memory that this process's tensors took since it was last asked."""
    peak = peak_device_memory_mib()
    if peak is None:
        return float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def peer_rates(case: Case, rounds: int) -> dict[str, float]:
    """Train with PEFT and the Trainer; returns what `rates` returns."""
    import peft
    import transformers

    class Clock(transformers.TrainerCallback):
        """Takes the time after each round."""

        def __init__(self):
            self.times: list[float] = []

        def on_step_end(self, args, state, control, **_):
            """Note the time when a round is over."""
            if state.global_step >= WARM_UP and (state.global_step - WARM_UP) % STEPS == 0:
                _finish()
                self.times.append(time.perf_counter())

    with torch.device("cuda"):
        model = random_model(str(case["model"]))
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=16, target_modules=["query", "value"]
    )
    few = random_examples(case_spec(case), model.config.vocab_size, BATCH)
    ids = torch.as_tensor(few.ids.astype(np.int64)).reshape(BATCH, -1)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": number % 2}
            for number, row in enumerate(ids)]  # fmt: skip
    steps, clock = WARM_UP + rounds * STEPS, Clock()
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            out, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=1e-4,
            optim="adamw_torch_fused", bf16=case["precision"] == "bf16",
            tf32=case["precision"] == "tf32", logging_strategy="no", save_strategy="no",
            report_to="none", disable_tqdm=True,
        )  # fmt: skip
        transformers.Trainer(
            model=peft.get_peft_model(model, config),
            args=arguments,
            train_dataset=rows * steps,
            callbacks=[clock],
        ).train()
    return spread(list(STEPS / np.diff(clock.times))) | {"peak_mib": peak_mib()}


def keep_workspace() -> None:
    """Let CUBLAS_WORKSPACE_CONFIG stay set in this process, for our runs as for others."""
    from loraudit.training import device

    os.environ[device.WORKSPACE] = device.WORKSPACES[0]
    device.settle_workspace = lambda: None


def measure(part: str, rounds: int, deadline: float, only: int | None) -> Iterator[dict]:
    """Measure a part's cases, or the `only` one, as long as there is time; yields rows."""
    if part == "workspace":
        keep_workspace()
    for case in cases(part)[slice(only, None if only is None else only + 1)]:
        if time.time() > deadline:
            print(f"left out for lack of time: {part} {case}", file=sys.stderr)
            continue
        try:
            ours = part != "peer" and (part, case["compute"]) != ("workspace", "plain")
            found = our_rates(case, rounds) if ours else peer_rates(case, rounds)
        except UserError as error:  # hardware without this precision
            print(f"left out: {part} {case}: {error}", file=sys.stderr)
            continue
        tool = "loraudit" if ours else "peft+trainer"
        yield {**case, "tool": tool, "runs_per_gpu": 1, **found}


def profile(rounds: int, deadline: float) -> Iterator[dict]:
    """Count the kernels of a step and the time that they take; yields rows."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    for case in cases("profile"):
        if time.time() > deadline:
            print(f"left out for lack of time: profile {case}", file=sys.stderr)
            continue
        with warm_step(case) as step:
            found = rates(step, rounds)
            with profiled(activities=[ProfilerActivity.CUDA]) as trace:
                for _ in range(STEPS):
                    step()
                _finish()
        kernels = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        yield {
            **case,
            "step_ms": 1000 / found["steps_per_second"],
            "kernels": len(kernels) / STEPS,
            "kernel_ms": sum(e.device_time for e in kernels) / 1000 / STEPS,
        }


def measure_one(case: Case, rounds: int, start: float) -> dict:
    """Measure one case beside others, all from the same second on."""
    with warm_step(case) as step:
        late = max(0.0, time.time() - start)
        time.sleep(max(0.0, start - time.time()))
        return {"late": late, **rates(step, rounds)}


READY_SECONDS = 20.0
"""How long processes that share the GPU have to get ready, before all begin to be timed."""


MOST_LATE = 1.0
"""Seconds by which one of them may begin later for their steps to count as taken together."""


GRACE = 30.0
"""Seconds that a case which began in time may go on after the deadline."""


def _ended(process: subprocess.Popen, end: float) -> tuple[list[str], str]:
    """Return the lines that a process printed until a time, and why it did not end well, or ""."""
    try:
        text, _ = process.communicate(timeout=max(1.0, end - time.time()))
        why = "ended with an error" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        (text, _), why = process.communicate(), "was stopped for lack of time"
    return text.splitlines(), why


def _row(process: subprocess.Popen, end: float) -> dict:
    """Return what a process that shares the GPU measured; nothing if it failed or took too long."""
    lines, why = _ended(process, end)
    return json.loads(lines[-1]) if lines and not why else {}


def share(rounds: int, deadline: float) -> Iterator[dict]:
    """Let 2 and 4 processes share the GPU; yields rows with their steps together."""
    for case in cases("shared"):
        for runs in (2, 4):
            if time.time() + READY_SECONDS > deadline:
                print(f"left out for lack of time: {runs} runs of {case}", file=sys.stderr)
                continue
            start = time.time() + READY_SECONDS
            words = ["--one", json.dumps(case), "--start", str(start), "--rounds", str(rounds)]
            started = [subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE,
                                        text=True) for _ in range(runs)]  # fmt: skip
            found = [row for process in started if (row := _row(process, deadline + GRACE))]
            late = max((row["late"] for row in found), default=0.0)
            if len(found) < runs or late > MOST_LATE:
                why = f"{len(found)} of {runs} ended well, the last began {late:.1f} s late"
                print(f"left out: {runs} runs of {case}: {why}", file=sys.stderr)
                continue
            total = {
                key: sum(row[key] for row in found) for key in ("steps_per_second", "q1", "q3")
            }
            peak = max(row["peak_mib"] for row in found)
            yield {**case, "tool": "loraudit", "runs_per_gpu": runs, **total, "peak_mib": peak}


def short_name(device: str) -> str:
    """Return a GPU's short name, as in gpus.yaml: h100 for "NVIDIA H100 80GB HBM3", rtx4090.

    A part of a GPU (MIG) is not the GPU: its name has the part, as h100-mig-1g.10gb.
    """
    whole, _, part = device.lower().partition(" mig ")
    words = [word for word in whole.replace("-", " ").split()
             if word not in ("nvidia", "geforce", "amd", "tesla")]  # fmt: skip
    series = words and words[0].isalpha()
    name = "".join(words[:2]) if series else (words[0] if words else "cpu")
    return f"{name}-mig-{part.strip()}" if part else name


def append(out: Path, rows: list[dict], part: str) -> None:
    """Write rows into their table, in place of those of the same GPU and part."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    facts = {"gpu": short_name(device), "device": device, "torch": torch.__version__}
    made = {"method": METHOD, "batch": BATCH}
    new = pd.DataFrame([{**facts, **made, **row, "part": part} for row in rows])
    file = out / {"profile": PROFILE, "workspace": KEPT}.get(part, TABLE.name)
    new = new if part == "profile" else new[[*COLUMNS, "part"]]
    old = pd.read_csv(file) if file.is_file() else new[:0]
    old = old[(old.gpu != facts["gpu"]) | (old.part != part)]
    both = pd.concat([frame for frame in (old, new) if len(frame)])
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(file, lambda path: both.to_csv(path, index=False, float_format="%.5g"))


ROW = "row: "
"""What a line with a row begins with, since libraries print lines of their own."""


def measured_apart(part: str, rounds: int, deadline: float) -> list[dict]:
    """Measure a part in a process of its own, or each of its cases in one; return the rows."""
    apart = range(len(cases(part))) if part in ("peer", "workspace") else [None]
    return [row for only in apart for row in _rows_of(part, rounds, deadline, only)]


def _rows_of(part: str, rounds: int, deadline: float, only: int | None) -> list[dict]:
    words = ["--part", part, "--rounds", str(rounds), "--deadline", str(deadline)]
    words += [] if only is None else ["--only", str(only)]
    said, why = _said([sys.executable, __file__, *words], deadline + GRACE)
    rows = [json.loads(line.removeprefix(ROW)) for line in said if line.startswith(ROW)]
    if why:
        print(f"part {part} {why} after {len(rows)} rows", file=sys.stderr)
    return rows


def _said(words: list[str], end: float) -> tuple[list[str], str]:
    """Start a program, and return of it what `_ended` does."""
    return _ended(subprocess.Popen(words, stdout=subprocess.PIPE, text=True), end)


PARTS = ("steps", "peer", "workspace", "profile", "shared", "compiled")
"""In the order of measuring; compiled is last, since what it takes is not known."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all if none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins after these")
    parser.add_argument("--out", type=Path, default=TABLE.parent)
    for name in ("part", "one"):  # of the processes that this program starts
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name, kind in (("deadline", float), ("start", float), ("only", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_all(parts: Iterable[str], rounds: int, minutes: float, out: Path) -> None:
    """Measure the parts that are asked for and write the tables."""
    deadline = time.time() + 60 * minutes
    for part in parts:
        shared = part == "shared"
        rows = list(share(rounds, deadline)) if shared else measured_apart(part, rounds, deadline)
        if rows:
            append(out, rows, part)
    for name in (TABLE.name, PROFILE, KEPT):
        if (out / name).is_file():
            print((out / name).read_text())


def main() -> None:
    """Measure; in a process that this program started, one part or one case."""
    given = arguments()
    if given.one:
        print(json.dumps(measure_one(json.loads(given.one), given.rounds, given.start)))
    elif given.part:
        how = profile if given.part == "profile" else partial(measure, given.part, only=given.only)
        for row in how(given.rounds, given.deadline):
            print(ROW + json.dumps(row), flush=True)
    elif torch.cuda.is_available():
        measure_all(given.parts or PARTS, given.rounds, given.minutes, given.out)
    else:
        raise UserError("benchmarks/gpu.py needs a CUDA GPU, and this machine has none")


if __name__ == "__main__":
    run_program(main)
