"""Measured costs of a run on this machine: a few real optimizer steps, in a process of its own.

The steps are the training loop's own (`train.optimizer_step`), on batches of the study's size: of
the fetched rows where data and model are here, else of random tokens at max_length.
"""

import math
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraudit.errors import UserError
from loraudit.files import read_json
from loraudit.spec import METHOD_MODULES, HubSource, RunSpec, TaskEntry, validated

if TYPE_CHECKING:
    from loraudit.tasks import Examples

SAMPLE_ROWS = 2000
"""Rows that are tokenised to know their lengths."""

STEPS = 8
"""Optimizer steps that are timed, after two on the widest batches, which set the peak memory."""

SECONDS = 20.0
"""After so long no further step is begun, once `FEWEST` were timed."""
FEWEST = 3


def row_counts(task: TaskEntry, data: Path, spec: RunSpec) -> dict[str, int] | None:
    """Return the rows that a run trains and scores, None where nobody knows them yet.

    They are known from the fetched task, or from its published sizes.
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
    found = {name: have.get(name) if rows is None else rows for name, rows in asked.items()}
    return None if None in found.values() else found


def model_source(spec: RunSpec, model: Path) -> Path | None:
    """Return a folder with the model's config.json: fetched, local, or cached from the hub."""
    if (model / "config.json").is_file():
        return model
    source = spec.model.source
    folder = Path(getattr(source, "folder", "nowhere"))
    if (folder / "config.json").is_file():
        return folder
    if isinstance(source, HubSource):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source.hub, "config.json", revision=source.revision)
        return Path(found).parent if isinstance(found, str) else None
    return None


def measure(fields: dict, data: Path, model: Path, launch: dict, threads: int) -> dict:
    """Time one kind of run; called in a fresh process, whose peak memory is then the run's.

    Args:
        fields: the RunSpec as JSON values.
        data: folder of the fetched task; need not be there.
        model: folder of the fetched model, or of its config.json alone.
        launch: the file of profiles/accelerate, as read.
        threads: CPU threads of one run.

    Returns:
        Seconds per step, to evaluate a row, to tokenise a row, and to get ready; peak MiB; values
        that are saved; whether the batches were real rows.

    Raises:
        UserError: settings that fit neither model nor machine.
    """
    os.environ["ACCELERATE_MIXED_PRECISION"] = str(launch["mixed_precision"])
    os.environ["ACCELERATE_USE_CPU"] = str(bool(launch.get("use_cpu", False))).lower()
    warnings.simplefilter("ignore", FutureWarning)  # of the libraries, about each other
    started = time.monotonic()
    import torch

    from loraudit import train as loop
    from loraudit.accounting import count_parameters, peak_device_memory_mib, peak_memory_mib

    if not launch.get("use_cpu") and not torch.cuda.is_available():
        raise UserError("its launch file asks for a GPU, and this machine has none")
    torch.set_num_threads(threads)
    spec: RunSpec = validated(RunSpec, fields, "spec")
    examples, pad, row_seconds, real = _examples(spec, data, model)
    accelerator = loop.make_accelerator(spec)
    module = _method(spec).apply(_base(spec, model), spec)
    parameters = count_parameters(module, spec.model.head)
    state = loop.prepare(spec, accelerator, module, len(examples), pad)
    held = _evaluated_once(loop, module, examples, spec)
    ready = time.monotonic() - started - row_seconds * len(examples)
    steps = _time_steps(loop, state, examples)
    return {
        "step_seconds": float(np.mean(steps)),
        "steps": len(steps),
        "evaluate_row_seconds": _time_evaluation(loop, state, examples),
        "tokenise_row_seconds": row_seconds,
        "ready_seconds": ready,
        "memory_mib": peak_memory_mib(),
        "device_mib": peak_device_memory_mib(),
        "saved_values": 0 if spec.method == "full" else parameters["trainable"],
        "held_values": sum(value.numel() for value in held.weights.values()),
        "real_rows": real,
    }


def _evaluated_once(loop, module, examples: "Examples", spec: RunSpec):
    """Take up what a run holds from its first evaluation on: metrics, and the best weights."""
    best = loop.Best()
    best.offer(1, 0.0, module)
    logits = np.zeros((2, max(1, len(spec.task.classes))))
    loop.metrics.compute(logits, examples.labels[:2], spec.task)
    return best


def measure_crosscheck(fields: dict, data: Path, model: Path, threads: int) -> float:
    """Return the seconds that a cell's cross-check takes, from its first import on."""
    warnings.simplefilter("ignore", FutureWarning)
    started = time.monotonic()
    import torch

    from loraudit.crosscheck import crosscheck

    torch.set_num_threads(threads)
    crosscheck(validated(RunSpec, fields, "spec"), data, model)
    return time.monotonic() - started


def _method(spec: RunSpec):
    import importlib

    return importlib.import_module(METHOD_MODULES[spec.method])


def _base(spec: RunSpec, folder: Path):
    """Load the model, or build it from its config with random weights: a step costs the same."""
    from loraudit.models import load_base

    if (folder / "model.safetensors").is_file():
        return load_base(spec, folder)
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, num_labels=max(1, len(spec.task.classes)))
    return AutoModelForSequenceClassification.from_config(config)


def _examples(spec: RunSpec, data: Path, model: Path) -> tuple["Examples", int, float, bool]:
    """Return rows to train on, the padding's id, seconds to tokenise one, and if they are real."""
    from transformers import AutoTokenizer

    from loraudit.tasks import load_examples

    if (data / "manifest.json").is_file() and any(model.glob("tokenizer*")):
        rows = row_counts(spec.task, data, spec)["train"]
        few = spec.model_copy(update={"train_rows": min(rows, SAMPLE_ROWS)})
        tokenizer = AutoTokenizer.from_pretrained(model)
        started = time.monotonic()
        examples = load_examples(few, data, "train", tokenizer)
        seconds = (time.monotonic() - started) / len(examples)
        return examples, tokenizer.pad_token_id, seconds, True
    return _random_examples(spec, model), 0, 0.0, False


def _random_examples(spec: RunSpec, model: Path) -> "Examples":
    from transformers import AutoConfig

    from loraudit.tasks import Examples

    vocabulary = AutoConfig.from_pretrained(model).vocab_size
    generator = np.random.default_rng(0)
    rows = spec.global_batch * (STEPS + 2)
    ids = generator.integers(0, vocabulary, (rows, spec.max_length)).tolist()
    kind = float if spec.task.regression else int
    return Examples(np.arange(rows), ids, None, np.zeros(rows, dtype=kind))


def _time_steps(loop, state, examples: "Examples") -> list[float]:
    """Time steps on batches that are spread over an epoch's widths."""
    spec, generator = state.spec, np.random.default_rng(0)
    batches = loop.global_batches(examples.lengths, spec.global_batch, spec.batching, generator)
    full = [batch for batch in batches if len(batch) == spec.global_batch] or batches
    ordered = sorted(full, key=lambda batch: examples.lengths[batch].max())
    places = np.linspace(0, len(ordered) - 1, 2 * STEPS + 1)[1::2].round().astype(int)
    state.model.train()
    for batch in ordered[-2:]:
        loop.optimizer_step(state, examples, batch)
    seconds: list[float] = []
    for place in generator.permutation(places):
        if len(seconds) >= FEWEST and sum(seconds) > SECONDS:
            break
        started = time.monotonic()
        loop.optimizer_step(state, examples, ordered[place])
        seconds.append(time.monotonic() - started)
    return seconds


def _time_evaluation(loop, state, examples: "Examples") -> float:
    """Return the seconds to evaluate a row, over rows of all lengths."""
    rows = min(len(examples), state.spec.micro_batch * STEPS)
    order = np.argsort(examples.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, rows).round().astype(int)]
    types = examples.types and [examples.types[i] for i in chosen]
    ids = [examples.ids[i] for i in chosen]
    some = type(examples)(examples.rows[chosen], ids, types, examples.labels[chosen])
    started = time.monotonic()
    loop.evaluate(state, some, "calibrate")
    return (time.monotonic() - started) / rows


def run_seconds(spec: RunSpec, rows: dict[str, int], cost: dict) -> float:
    """Return a run's seconds, launching aside, from what `measure` found."""
    scored = sum(count for split, count in rows.items() if split != "train")
    steps = spec.epochs * math.ceil(rows["train"] / spec.global_batch)
    return (
        cost["ready_seconds"]
        + (rows["train"] + scored) * cost["tokenise_row_seconds"]
        + steps * cost["step_seconds"]
        + spec.epochs * scored * cost["evaluate_row_seconds"]
    )
