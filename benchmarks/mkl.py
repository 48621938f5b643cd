"""Measure how much faster matrix products are where MKL takes an AMD CPU for one of Intel's.

torch's x86 builds multiply matrices with MKL, which asks a function of its own whether the CPU is
Intel's and takes slower kernels where it is not, also on AMD's CPUs that have AVX-512. A library
that is loaded first can answer in that function's place.

    python benchmarks/mkl.py [--rounds 7] [--out DIR]

Every round starts one process with that library and one without, in random order, one thread each.
Needs a C compiler, as `cc`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from common import random_model, spec_of, spread
from loraudit.base.files import write_atomic, write_text
from loraudit.report.formatting import markdown
from speed import MODELS, step_call

ANSWER = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
PRODUCT = (512, 768, 3072)
ROWS, TOKENS = 8, 64
REPEATED = {"product": 30, "minilm": 10, "roberta-base": 5}


def cases() -> dict[str, Callable[[], object]]:
    """Return what is timed: a layer's product, and training steps of LoRA on query and value."""
    torch.manual_seed(0)
    n, d_in, d_out = PRODUCT
    x, layer = torch.randn(n, d_in), torch.nn.Linear(d_in, d_out).requires_grad_(False)
    made = {"product": lambda: layer(x)}
    for name in MODELS:
        made[name] = step_call("ours", random_model(name), spec_of(name), ROWS, TOKENS)
    return made


def seconds_here() -> dict[str, float]:
    """Time each case in this process: CPU seconds of one call, after one that is not timed."""
    torch.set_num_threads(1)
    found = {}
    for name, call in cases().items():
        call()
        started = time.process_time()
        for _ in range(REPEATED[name]):
            call()
        found[name] = (time.process_time() - started) / REPEATED[name]
    return found


def seconds_in_a_process(library: Path | None) -> dict[str, float]:
    """Time each case in a process of its own, which loads the library first if there is one."""
    changed = {"LD_PRELOAD": str(library)} if library else {}
    done = subprocess.run(
        [sys.executable, __file__, "--here"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **changed},
    )
    return json.loads(done.stdout)


def answering_library(folder: Path) -> Path:
    """Compile the library that says to MKL that the CPU is Intel's."""
    source, library = folder / "answer.c", folder / "answer.so"
    source.write_text(ANSWER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def measure(rounds: int) -> pd.DataFrame:
    """Return the time with the library over that without, of each case: median and quartiles."""
    with tempfile.TemporaryDirectory() as folder:
        library = answering_library(Path(folder))
        ways: dict[str, Path | None] = {"with": library, "without": None}
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for done in range(rounds):
            for way in random.Random(done).sample(list(ways), len(ways)):
                found[way].append(seconds_in_a_process(ways[way]))
            print(f"round {done + 1} of {rounds}", file=sys.stderr, flush=True)
    times = {way: pd.DataFrame(each) for way, each in found.items()}
    table = spread(times["with"] / times["without"])
    for way, each in times.items():
        table[f"ms {way}"] = 1000 * each.median().to_numpy()
    n, d_in, d_out = PRODUCT
    shown = {
        "product": f"product, {n} x {d_in} by {d_in} x {d_out}",
        **{m: f"training step, {m}, q+v, {ROWS} x {TOKENS} tokens" for m in MODELS},
    }
    return table.assign(what=table.what.map(shown))


def main() -> None:
    """Measure and write mkl.csv and mkl.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(seconds_here()))
        return
    table = measure(arguments.rounds)
    write_atomic(arguments.out / "mkl.csv", lambda path: table.to_csv(path, index=False))
    shown = table.rename(
        columns={
            "median": "time with it / without",
            "lower": "lower quartile",
            "upper": "upper quartile",
        }
    )
    write_text(arguments.out / "mkl.md", markdown(shown.round(2)))
    print(shown.round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
