"""Measure a step of K runs in a pack beside a step of each of them alone, interleaved.

Random models and random tokens without padding, LoRA on q and v; neither a network nor a fetched
file is needed. The ratio is the K steps alone over the one step together: above 1, packing gains.

    python benchmarks/packing.py [--model minilm] [--runs 4] [--rows 16] [--tokens 32] [--rounds 20]

On a GPU the time is the wall's, with the GPU's work finished when the clock is read; on a CPU it is
CPU time of this process.
"""

import argparse
import random
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from common import random_model, spec_of
from loraudit.adapters.fast_base import fast_base
from loraudit.adapters.pack import copy_sharing
from loraudit.base.errors import run_program
from loraudit.studies.spec import RunSpec
from loraudit.tools.calibrate import random_examples
from loraudit.training import run
from loraudit.training.device import same_bits
from loraudit.training.loop import optimizer_step
from loraudit.training.method import method_of
from loraudit.training.packing import assemble
from loraudit.training.packing import optimizer_step as packed_step

RANKS = (8, 4, 16, 2)
MODELS = ("minilm", "roberta-base", "roberta-large")


def specs_of(model: str, runs: int, rows: int, tokens: int, precision: str) -> list[RunSpec]:
    """Return runs that differ in seed and rank."""
    shape = {"max_length": tokens, "global_batch": rows, "micro_batch": rows}
    shape |= {"selection_rows": None, "validate_epochs": "all", "precision": precision}
    entry = "minilm" if model == "minilm" else "roberta-base"  # -large has its names of layers
    return [
        spec_of(entry, seed=seed, rank=RANKS[seed % len(RANKS)], **shape) for seed in range(runs)
    ]


def steps(model: str, specs: list[RunSpec]) -> dict[str, Callable[[], None]]:
    """Return a call that does a step of each run alone, and one that does them together."""
    accelerator = run.make_accelerator(specs[0])
    rows, pad = specs[0].global_batch, 1
    base = fast_base(random_model(model), specs[0])
    examples = random_examples(specs[0], base.config.vocab_size, rows)
    alone = [
        run.prepare(spec, accelerator, method_of(spec).apply(own, spec), 100_000, pad)
        for spec in specs
        for own in [copy_sharing(base, spec.model.head)]
    ]
    for state in alone:
        state.model.train()
    packed = assemble(specs, accelerator, base, [{"train": examples} for _ in specs], pad)
    packed.model.train()
    batch = np.arange(rows)

    def each() -> None:
        for state in alone:
            optimizer_step(state, examples, batch)

    return {"alone": each, "packed": lambda: packed_step(packed, [batch] * len(specs))}


def ratios(calls: dict[str, Callable[[], None]], rounds: int, warm_up: int = 3) -> pd.DataFrame:
    """Time both calls once a round, in an order drawn anew; returns the seconds (rounds, 2)."""
    gpu, order, found = torch.cuda.is_available(), list(calls), []
    clock = time.perf_counter if gpu else time.process_time
    shuffle = random.Random(0).shuffle
    for _ in range(warm_up + rounds):
        shuffle(order)
        row = {}
        for name in order:
            started = clock()
            calls[name]()
            if gpu:
                torch.cuda.synchronize()
            row[name] = clock() - started
        found.append(row)
    return pd.DataFrame(found[warm_up:])


def main() -> None:
    """Measure, and print the ratio's median and quartiles."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    for name, value in {"runs": 4, "rows": 16, "tokens": 32, "rounds": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    specs = specs_of(given.model, given.runs, given.rows, given.tokens, given.precision)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with same_bits(given.precision, device):
        seconds = ratios(steps(given.model, specs), given.rounds)
    lower, median, upper = (seconds.alone / seconds.packed).quantile([0.25, 0.5, 0.75])
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{given.model}, {given.runs} runs of {given.rows} x {given.tokens}, {where}:")
    for name, value in seconds.median().items():
        print(f"  {name}: {1000 * value:.1f} ms for a step of every run")
    print(f"  alone / packed: {median:.2f} [{lower:.2f}, {upper:.2f}]")


if __name__ == "__main__":
    run_program(main)
