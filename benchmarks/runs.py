"""Measure what a run and a study cost, beside PEFT with the Hugging Face Trainer, on real text.

The movie snippets and all-MiniLM-L6-v2, one thread a process, quickstart settings (batch 8):

    snakemake --cores 1 resources/tokens/snippets/minilm-128/manifest.json
    python benchmarks/runs.py [padding start evaluate study whole cores] [--rounds 3] [--out DIR]

- padding: tokens computed over real tokens, an epoch; no timing.
- start: from a run's command to the end of the first optimizer step, data and model cached. Ours is
  launch.py, and in a study a copy of a process that has the libraries (start.py); PEFT's is
  accelerate launch of peer.py.
- evaluate: our evaluation of a split over bare forward passes of the frozen model on the same
  batches.
- study: five of the quickstart's kinds of run with its sizes (960 rows, one epoch, 500 rows scored
  once), one after the other on one core: ours by one call of Snakemake, its planning included, the
  peer's by a command each. The peer pads to the longest row of a batch, with rows grouped by length
  or not, or to 128 tokens; the last, which takes longest, in the first round alone.
- whole: one run (q+v, r=8) of --whole rows by us and by the peer in each of these ways, and under
  torch.compile.
- cores: wall time of a study of 1, 2 and 4 short runs with 1 and 2 cores, Snakemake included.
"""

import argparse
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common import interleaved, spec_of, spread
from loraudit.adapters import inject
from loraudit.adapters.base_model import load_base
from loraudit.adapters.fast_base import fast_base
from loraudit.base import forks
from loraudit.base.files import write_atomic, write_json
from loraudit.data.batches import collate, global_batches, load_examples, pad_id, sorted_batches
from loraudit.studies.expand import load_study
from loraudit.studies.spec import RunSpec
from loraudit.training import loop, run

TOKENS, MODEL = Path("resources/tokens/snippets/minilm-128"), Path("resources/models/minilm")
LAUNCH = ("--quiet", "--config_file", "profiles/accelerate/cpu.yaml")
LAUNCH += ("--num_cpu_threads_per_process", "1")
PEFT = "PEFT + Trainer"
BEST = f"{PEFT}, grouped by length"
PEERS = {
    BEST: ["--order", "group_by_length"],
    f"{PEFT}, shuffled": [],
    f"{PEFT}, padded to 128": ["--padding", "fixed"],
}
COMPILED = f"{BEST}, torch.compile"
ALL = "query,key,value,attention.output.dense,intermediate.dense,output.dense"
GRID = {  # kinds of run: a study's grid entry, the peer's arguments
    "{method: lora, rank: 1, targets: q+v}": ["--rank", "1"],
    "{method: lora, rank: 8, targets: q+v}": [],
    "{method: lora, rank: 8, targets: all}": ["--targets", ALL],
    "{method: head}": ["--method", "head"],
    "{method: full}": ["--method", "full"],
}
ROWS = (960, 500)
"""Training and validation rows of a run of the quickstart."""


def padding() -> pd.DataFrame:
    """Count computed over real tokens of an epoch, training and evaluation."""
    spec = spec_of()
    rows = []
    for split in ("train", "validation"):
        lengths = load_examples(_whole(spec), TOKENS, split).lengths
        ways = {
            how: global_batches(lengths, spec.global_batch, how, np.random.default_rng(0))
            for how in ("shuffle", "length_grouped")
        }
        ways["sorted (evaluation)"] = sorted_batches(lengths, loop.EVALUATED * spec.micro_batch)
        for way, batches in ways.items():
            padded = sum(len(b) * lengths[b].max() for b in batches)
            rows.append({"what": way, "setting": split, "median": padded / lengths.sum()})
        rows.append({"what": "to 128", "setting": split, "median": 128 / lengths.mean()})
    return pd.DataFrame(rows).assign(part="padding")


def _whole(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"train_rows": None, "validation_rows": None})


def ours(rows: tuple[int, int], *, copied: bool = False) -> dict[str, float]:
    """Run ours (q+v, r=8) in a process of its own, as a copy of one that has the libraries or not.

    Returns the seconds to its first step, and those of the whole process.
    """
    spec = spec_of(train_rows=rows[0], validation_rows=rows[1], epochs=1)
    with tempfile.TemporaryDirectory() as root:
        write_json(Path(root, "spec.json"), spec.model_dump(mode="json"))
        paths = [f"{root}/spec.json", str(TOKENS), str(MODEL), f"{root}/out"]
        start = ["scripts/start.py"] if copied else []
        words = [*start, "scripts/launch.py", *LAUNCH, "benchmarks/ours.py", *paths]
        return _timed([sys.executable, *words])


def peer(arguments: list[str], rows: tuple[int, int]) -> dict[str, float]:
    """Run the peer in a process of its own; returns the same."""
    with tempfile.TemporaryDirectory() as root:
        own = ["--rows", *map(str, rows), "--out", root, *arguments]
        return _timed(["accelerate", "launch", *LAUNCH, "benchmarks/peer.py", *own])


def _timed(command: list[str]) -> dict[str, float]:
    """Run a program; its start is counted from here, so the launcher's is included."""
    started = time.time()
    environment = os.environ | {"LORAUDIT_BENCH_STARTED": str(started)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    whole = time.time() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"whole": whole}


def starts(rounds: int) -> pd.DataFrame:
    """Time process starts, interleaved, the launcher included."""
    forks.start_server(1)
    ours((8, 8), copied=True)  # the server imports the libraries at its first copy
    calls = {
        "ours": lambda: ours((8, 8)),
        "ours, in a study": lambda: ours((8, 8), copied=True),
        "PEFT": lambda: peer([], (8, 8)),
    }
    rounds_of = [{name: call()["start"] for name, call in calls.items()} for _ in range(rounds)]
    return spread(pd.DataFrame(rounds_of)).assign(part="start", setting="seconds to the first step")


def evaluation(rounds: int) -> pd.DataFrame:
    """Time our evaluation of 1,000 rows and bare forward passes on the same batches."""
    torch.set_num_threads(1)
    spec = spec_of(validation_rows=1000)
    examples = load_examples(spec, TOKENS, "validation")
    model = inject.apply(fast_base(load_base(spec, MODEL), spec), spec)
    pad = pad_id(TOKENS)
    state = run.prepare(spec, run.make_accelerator(spec), model, 8, pad)
    bare = load_base(spec, MODEL).eval()
    cuts = sorted_batches(examples.lengths, loop.EVALUATED * spec.micro_batch)
    batches = [collate(examples, cut, spec, pad) for cut in cuts]

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                bare(**batch)

    calls = {"bare forward": forward, "ours": lambda: loop.evaluate(state, examples, "evaluate")}
    seconds = interleaved(calls, max(5, rounds), warm_up=1)
    ratio = spread(seconds.div(seconds["bare forward"], axis=0))
    setting = "1,000 validation rows, over a bare forward pass"
    return ratio.assign(part="evaluate", setting=setting)


STUDY = """
question: What does a study of small runs cost?
defaults: {task: snippets, model: minilm, train_rows: %d, validation_rows: %d, global_batch: 8,
           micro_batch: 8, epochs: 1, batching: length_grouped, seed: [0]}
grid:
"""


def study(rounds: int) -> pd.DataFrame:
    """Time a study of every kind of run, by us and by the peer, as a whole."""
    found = []
    with tempfile.TemporaryDirectory() as root:
        file = Path(root, "bench-study.yaml")
        file.write_text(STUDY % ROWS + "".join(f"  - {kind}\n" for kind in GRID))
        for number in range(rounds):
            ways = [name for name in PEERS if number == 0 or "padded" not in name]
            calls = {name: functools.partial(peers, PEERS[name]) for name in ways}
            calls["ours"] = lambda: snakemake(file, 1)
            order = random.Random(number).sample(list(calls), len(calls))
            found.append({name: calls[name]() for name in order})
            print(f"study: round {number + 1}/{rounds}", file=sys.stderr, flush=True)
    wide = pd.DataFrame(found)[["ours", *PEERS]]
    setting = f"{len(GRID)} runs of {ROWS[0]} rows, {ROWS[1]} scored once"
    tables = []
    for to in PEERS:
        table = spread(wide.div(wide[to], axis=0)).assign(to=to)
        tables.append(table.assign(seconds=wide.median().to_numpy()))
    return pd.concat(tables).assign(part="study", setting=setting)


def peers(arguments: list[str]) -> float:
    """Run the peer once for each kind of run; returns the seconds of all."""
    return sum(peer([*kind, *arguments], ROWS)["whole"] for kind in GRID.values())


def snakemake(file: Path, cores: int) -> float:
    """Run a study's runs, without its cross-checks, tables and report; returns the seconds."""
    name = file.stem
    runs = [f"{run.id}/record.json" for run in load_study(file).runs]
    records = [f"results/{name}/runs/{record}" for record in runs]
    # Without the address of the server that `starts` may have made: a study makes its own.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LORAUDIT_")}
    started = time.time()
    command = ["snakemake", "--quiet", "--cores", str(cores), *records]
    subprocess.run([*command, "--config", f"study={file}"], check=True, env=environment)
    seconds = time.time() - started
    for folder in (f"results/{name}", f"logs/{name}"):
        shutil.rmtree(folder)
    return seconds


def whole(rows: int) -> pd.DataFrame:
    """Time one run as a whole, by us and by the peer, one after the other."""
    calls = {"ours": lambda: ours((rows, ROWS[1]))}
    ways = PEERS | {COMPILED: [*PEERS[BEST], "--compile"]}
    for name, arguments in ways.items():
        calls[name] = functools.partial(peer, arguments, (rows, ROWS[1]))
    seconds = {name: call()["whole"] for name, call in calls.items()}
    table = pd.DataFrame({"what": list(seconds), "seconds": list(seconds.values())})
    table["median"] = table.seconds / seconds[BEST]
    setting = f"q+v, r=8, {rows:,} rows, {ROWS[1]} scored once, one run each"
    return table.assign(part="whole", to=BEST, setting=setting)


CORES_STUDY = """
question: How does wall time grow with runs and cores?
defaults: {{task: snippets, model: minilm, train_rows: 160, validation_rows: 100, global_batch: 8,
           micro_batch: 8, epochs: 1, batching: length_grouped}}
grid:
  - {{method: lora, rank: 8, targets: q+v, seed: [{seeds}]}}
"""


def cores() -> pd.DataFrame:
    """Time Snakemake on studies of 1, 2 and 4 runs."""
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for runs in (1, 2, 4):
            for count in (1, 2):
                file = Path(root, f"bench-{runs}-{count}.yaml")
                file.write_text(CORES_STUDY.format(seeds=", ".join(map(str, range(runs)))))
                row = {"axis": "runs", "value": runs, "what": f"{count} cores"}
                rows.append(row | {"seconds": snakemake(file, count)})
    return pd.DataFrame(rows).assign(part="cores")


def main() -> None:
    """Measure the asked parts and write a CSV of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    arguments = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", **dict.fromkeys(forks.THREADS, "1")}
    os.environ |= forks.OFFLINE
    parts = {
        "padding": padding,
        "start": lambda: starts(arguments.rounds),
        "evaluate": lambda: evaluation(arguments.rounds),
        "study": lambda: study(arguments.rounds),
        "whole": lambda: whole(arguments.whole),
        "cores": cores,
    }
    for part in arguments.parts or parts:
        table = parts[part]()
        write_atomic(
            arguments.out / f"{part}.csv", lambda path, t=table: t.to_csv(path, index=False)
        )
        print(table.round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
