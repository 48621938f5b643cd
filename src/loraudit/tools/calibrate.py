"""Measure what a run costs on this machine, by a few real optimizer steps in a fresh process.

The steps are the training loop's own (`loop.optimizer_step`), on batches of the study's size. The
batches hold fetched rows where data and model are here, else random tokens at max_length.
"""

import contextlib
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, write_json
from loraudit.base.gpu_slots import hold, visible
from loraudit.studies.entries import HubSource, TaskEntry
from loraudit.studies.method_settings import ALoRASettings
from loraudit.studies.spec import RunSpec
from loraudit.studies.values import validated

if TYPE_CHECKING:
    from loraudit.data.batches import Examples

SAMPLE_ROWS = 2000
"""The most rows that are tokenised, to know how long rows are."""

STEPS, FIRST = 8, 2
"""`STEPS` optimizer steps are timed. `FIRST` others come before them, on the widest batches: these
set the peak memory, and compile the model if it is to be compiled."""

SECONDS = 20.0
"""No further step begins after so many seconds, once `FEWEST` were timed."""
FEWEST = 3


def row_counts(task: TaskEntry, data: Path, spec: RunSpec) -> dict[str, int] | None:
    """Return the rows that a run trains and scores, by split.

    They are known from the fetched task or from its published sizes; if neither tells, the answer
    is None.
    """
    if (data / "manifest.json").is_file():
        splits = read_json(data / "manifest.json")["splits"]
        have = {name: facts["rows"] for name, facts in splits.items()}
    elif task.rows:
        have = dict(task.rows)
    else:
        have = {}
    asked = {"train": spec.train_rows}
    asked |= dict.fromkeys([name for name in have if name != "train"], spec.validation_rows)
    asked.setdefault("validation", spec.validation_rows)
    held = {"train": spec.selection_rows or 0}
    left = {name: count - held.get(name, 0) for name, count in have.items()}
    counts = {name: left.get(name) if rows is None else rows for name, rows in asked.items()}
    known = {name: rows for name, rows in counts.items() if rows is not None}
    if len(known) < len(counts):
        return None
    if not spec.saves:  # it only tunes
        known = {"train": known["train"]}
    return known | ({"selection": spec.selection_rows} if spec.selection_rows else {})


def model_source(spec: RunSpec, model: Path) -> Path | None:
    """Return a folder with the model's config.json: fetched, local or cached from the hub.

    Returns None where there is none: nothing is downloaded for an estimate.
    """
    if (model / "config.json").is_file():
        return model
    source = spec.model.source
    folder = Path(getattr(source, "folder", "nowhere"))
    if (folder / "config.json").is_file():
        return folder
    if isinstance(source, HubSource):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source.hub, "config.json", revision=source.revision)
        return Path(cached).parent if isinstance(cached, str) else None
    return None


def measure(
    fields: dict, folders: dict[str, Path], launch: dict, threads: int, runs_per_gpu: int = 1
) -> dict:
    """Time one kind of run. Call it in a fresh process, so that the peak memory is the run's.

    On a GPU it waits for a place, as a run does. Of a run in several processes it times the part of
    one of them, without their exchange of gradients.

    Args:
        fields: the RunSpec as JSON values.
        folders: the folders of the fetched `task`, its `tokens` and the `model`. The first two may
            be missing, and the third may hold config.json alone.
        launch: what launcher.py reads of a launch file.
        threads: CPU threads of one run.
        runs_per_gpu: how many runs may share a GPU.

    Returns:
        Seconds per step, to evaluate a row and to get ready (with what the first steps take more
        than others), peak MiB, the numbers of saved and held values, the sum of all layers' ranks,
        and whether the batches held real rows.

    Raises:
        UserError: the settings do not fit the model or the machine.
    """
    gpu = not launch["use_cpu"]
    with hold(int(gpu), visible() if gpu else [], runs_per_gpu):
        spec: RunSpec = validated(RunSpec, fields, "spec")
        part = spec.global_batch // launch["num_processes"]
        own = spec.model_copy(update={"global_batch": part})
        cost = _measure(own, folders, launch, threads)
    cost["evaluate_row_seconds"] /= launch["num_processes"]
    return cost


def _measure(spec: RunSpec, folders: dict[str, Path], launch: dict, threads: int) -> dict:
    warnings.simplefilter("ignore")  # libraries warn of each other and of the made-up labels
    os.environ["ACCELERATE_MIXED_PRECISION"] = str(launch["mixed_precision"])
    os.environ["ACCELERATE_USE_CPU"] = str(launch["use_cpu"]).lower()
    started = time.monotonic()
    import torch

    from loraudit.adapters.fast_base import fast_base
    from loraudit.training import run
    from loraudit.training.accounting import (
        adapter_ranks,
        count_parameters,
        peak_device_memory_mib,
        peak_memory_mib,
    )
    from loraudit.training.device import same_bits
    from loraudit.training.method import method_of

    if not launch["use_cpu"] and not torch.cuda.is_available():
        raise UserError(
            "its launch file asks for a GPU, and this machine has none; `--gpu NAME` estimates it "
            "by measured speeds"
        )
    torch.set_num_threads(threads)
    accelerator = run.make_accelerator(spec)
    base = _base(spec, folders["model"])
    module = method_of(spec).apply(fast_base(base, spec), spec)
    ready = time.monotonic() - started
    examples, pad, real = _examples(spec, folders)
    base.config.pad_token_id = pad
    started = time.monotonic()
    parameters = count_parameters(module, spec.model.head)
    state = run.prepare(spec, accelerator, module, len(examples), pad)
    held = _evaluated_once(module, examples, spec)
    ready += time.monotonic() - started
    # As a run does, whose kernels may be slower.
    with same_bits(spec.precision, accelerator.device):
        first, steps = _time_steps(state, examples)
        evaluate_row_seconds = _time_evaluation(state, examples)
    mean = float(np.mean(steps))
    return {
        "step_seconds": mean,
        "steps": len(steps),
        "evaluate_row_seconds": evaluate_row_seconds,
        "ready_seconds": ready + max(0.0, first - FIRST * mean),
        "memory_mib": peak_memory_mib(),
        "device_mib": peak_device_memory_mib(),
        "saved_values": parameters["trainable"] if spec.facts.saves else 0,
        "held_values": sum(value.numel() for value in held.weights.values()),
        "ranks": sum(adapter_ranks(module).values()),
        "real_rows": real,
    }


def _evaluated_once(module, examples: "Examples", spec: RunSpec):
    """Load what a run holds in memory from its first evaluation on: metrics and best weights."""
    from loraudit.training import metrics
    from loraudit.training.journal import Best

    best = Best()
    best.offer(1, 0.0, module)
    logits = np.zeros((2, max(1, len(spec.task.classes))))
    metrics.compute(logits, examples.labels[:2], spec.task)
    return best


def measure_crosscheck(fields: dict, folders: dict[str, Path], threads: int) -> float:
    """Return the seconds that a cell's cross-check takes, imports included."""
    warnings.simplefilter("ignore")
    started = time.monotonic()
    import torch

    from loraudit.crosscheck.whole_model import crosscheck

    torch.set_num_threads(threads)
    spec: RunSpec = validated(RunSpec, fields, "spec")
    with _tokens(spec, folders) as tokens:
        few = min(SAMPLE_ROWS, spec.train_rows or SAMPLE_ROWS, _rows(tokens))
        crosscheck(spec.model_copy(update=some(few)), tokens, folders["model"])
    return time.monotonic() - started


def _base(spec: RunSpec, folder: Path):
    """Load the model or, where its weights are not here, build it with random ones.

    A step costs the same either way.
    """
    from loraudit.adapters.base_model import auto_class, load_base

    if (folder / "model.safetensors").is_file():
        return load_base(spec, folder)
    from transformers import AutoConfig

    classes = max(1, len(spec.task.classes))
    config = AutoConfig.from_pretrained(folder, num_labels=classes, trust_remote_code=False)
    return auto_class(spec.task).from_config(config)


def _examples(spec: RunSpec, folders: dict[str, Path]) -> tuple["Examples", int, bool]:
    """Return rows to train on, the padding token, and whether the rows are real."""
    from loraudit.data.batches import load_examples, pad_id

    if not readable(folders):
        rows = spec.global_batch * (STEPS + FIRST)
        return random_examples(spec, _vocabulary(folders["model"]), rows), 0, False
    with _tokens(spec, folders) as tokens:
        rows = min(_rows(tokens), spec.train_rows or SAMPLE_ROWS, SAMPLE_ROWS)
        few = spec.model_copy(update=some(rows))
        return load_examples(few, tokens, "train"), pad_id(tokens), True


def some(rows: int) -> dict:
    """Return the fields of a run that reads so many training rows and holds none out."""
    return {"train_rows": rows, "selection_rows": None, "validate_epochs": "all", "tuned": None}


def readable(folders: dict[str, Path]) -> bool:
    """Tell whether the task's tokens are here, or its rows and a tokenizer to make them."""
    if (folders["tokens"] / "manifest.json").is_file():
        return True
    here = (folders["task"] / "manifest.json").is_file()
    return here and any(folders["model"].glob("tokenizer*"))


def _rows(tokens: Path) -> int:
    import pyarrow as pa

    with pa.memory_map(str(tokens / "train.arrow")) as source:
        return len(pa.ipc.open_file(source).get_batch(0))


@contextlib.contextmanager
def _tokens(spec: RunSpec, folders: dict[str, Path]) -> Iterator[Path]:
    """Give the folder of the task's tokens, or a temporary one with its first training rows."""
    if (folders["tokens"] / "manifest.json").is_file():
        yield folders["tokens"]
        return
    import pandas as pd

    from loraudit.data.tokenise import tokenise

    with tempfile.TemporaryDirectory() as name:
        some = Path(name)
        table = pd.read_parquet(folders["task"] / "train.parquet")[:SAMPLE_ROWS]
        table.to_parquet(some / "train.parquet", index=False)
        about = {"splits": {"train": {"sha256": ""}}, "absent": [], "kind": spec.task.kind}
        write_json(some / "manifest.json", about)
        tokenise(some, folders["model"], spec.max_length, some / "tokens")
        yield some / "tokens"


def _vocabulary(model: Path) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model, trust_remote_code=False).vocab_size


def random_examples(spec: RunSpec, vocabulary: int, rows: int) -> "Examples":
    """Return rows of random tokens, all as long as the spec's max_length."""
    from loraudit.data.batches import Examples

    lm, labels = spec.task.causal_lm, np.zeros(rows, dtype=float if spec.task.regression else int)
    return Examples(
        rows=np.arange(rows),
        labels=np.full(rows, spec.max_length - 1) if lm else labels,
        starts=np.arange(rows) * spec.max_length,
        lengths=np.full(rows, spec.max_length),
        ids=np.random.default_rng(0).integers(0, vocabulary, rows * spec.max_length, np.int32),
        types=None,
        given=np.ones(rows, dtype=int) if lm else None,
    )


def _time_steps(state, examples: "Examples") -> tuple[float, list[float]]:
    """Time the first steps together, then single steps on batches from narrow to wide."""
    from loraudit.data.batches import global_batches
    from loraudit.training.loop import optimizer_step

    spec, generator = state.spec, np.random.default_rng(0)
    batches = global_batches(examples.lengths, spec.global_batch, spec.batching, generator)
    full = [batch for batch in batches if len(batch) == spec.global_batch] or batches
    ordered = sorted(full, key=lambda batch: examples.lengths[batch].max())
    places = np.linspace(0, len(ordered) - 1, 2 * STEPS + 1)[1::2].round().astype(int)
    state.model.train()
    started = time.monotonic()
    for batch in ordered[-FIRST:]:
        optimizer_step(state, examples, batch).item()  # which waits until the step is done
    first = time.monotonic() - started
    seconds: list[float] = []
    for place in generator.permutation(places):
        if len(seconds) >= FEWEST and sum(seconds) > SECONDS:
            break
        started = time.monotonic()
        optimizer_step(state, examples, ordered[place]).item()
        seconds.append(time.monotonic() - started)
    return first, seconds


def _time_evaluation(state, examples: "Examples") -> float:
    """Return the seconds to evaluate a row, as a mean over rows of all lengths."""
    from loraudit.training.loop import evaluate

    rows = min(len(examples), state.spec.micro_batch * STEPS)
    order = np.argsort(examples.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, rows).round().astype(int)]
    started = time.monotonic()
    evaluate(state, examples.take(chosen), "calibrate")
    return (time.monotonic() - started) / rows


def run_seconds(spec: RunSpec, rows: dict[str, int], cost: dict) -> float:
    """Return a run's seconds without its launch, from what `measure` returned."""
    scored = scored_rows(spec, rows)
    per_epoch = math.ceil(rows["train"] / spec.global_batch)
    steps = spec.epochs * per_epoch
    return (
        cost["ready_seconds"]
        + steps * cost["step_seconds"]
        + scored * cost["evaluate_row_seconds"]
        + scoring_rows(spec, per_epoch, cost["ranks"]) * cost["evaluate_row_seconds"]
    )


def scored_rows(spec: RunSpec, rows: dict[str, int]) -> int:
    """Return how many rows a run scores in all its epochs; a row counts each time."""
    counts = {"all": spec.epochs, "chosen": min(2, spec.epochs), "last": 1, "none": 0}
    each = counts[spec.validate_epochs]
    passes = {"train": 0, "selection": spec.epochs}
    return sum(count * passes.get(split, each) for split, count in rows.items())


def scoring_rows(spec: RunSpec, per_epoch: int, ranks: int) -> int:
    """Return how many evaluated rows would cost as much as ALoRA's scores do.

    In every round each of the `ranks` needs two passes of the scored rows, from the rank's block
    on. On average that is half of the model, so two such passes cost one evaluation.
    """
    if not isinstance(spec.settings, ALoRASettings):
        return 0
    rounds = sum(step < spec.epochs * per_epoch for step in spec.settings.steps(per_epoch))
    return rounds * ranks * spec.settings.rows
