"""Measure what a run and a study cost, beside PEFT with the Hugging Face Trainer, on real text.

The movie snippets and all-MiniLM-L6-v2, one thread a process, quickstart settings (batch 8):

    snakemake --cores 1 resources/tokens/snippets/minilm-128/manifest.json
    python benchmarks/runs.py [padding start evaluate study whole cores] [--rounds 3] [--out DIR]

- padding: tokens computed over real tokens, an epoch; no timing.
- start: from the launcher's first instruction to the end of the first optimizer step, data and
  model cached (ours: launch.py; PEFT: accelerate launch of peer.py).
- evaluate: our evaluation of a split over bare forward passes of the frozen model on the same
  batches.
- study: the six kinds of run of the quickstart grid, each once by us and by the peer with dynamic
  padding and with padding to 128: start, seconds a step and seconds an evaluation are measured
  over --rows rows, and put together for 4,000 training rows, two epochs and two evaluations.
- whole: one run (q+v, r=8) of --whole rows by us and by the peer, timed as a whole.
- cores: wall time of a study of 1, 2 and 4 short runs with 1 and 2 cores, Snakemake included.
"""

import argparse
import json
import os
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
from loraudit.base.files import write_atomic, write_json
from loraudit.data.batches import collate, global_batches, load_examples, pad_id, sorted_batches
from loraudit.studies.entries import MATRICES
from loraudit.studies.spec import RunSpec
from loraudit.training import loop, run

TOKENS, MODEL = Path("resources/tokens/snippets/minilm-128"), Path("resources/models/minilm")
LAUNCH = ("--quiet", "--config_file", "profiles/accelerate/cpu.yaml")
LAUNCH += ("--num_cpu_threads_per_process", "1")
GRID = {  # the quickstart grid's kinds of run: our spec's changes, the peer's arguments
    "q+v, r=1": ({"rank": 1}, ["--rank", "1"]),
    "q+v, r=8": ({}, []),
    "all, r=1": ({"rank": 1, "targets": MATRICES}, ["--rank", "1", "--targets", "ALL"]),
    "all, r=8": ({"targets": MATRICES}, ["--targets", "ALL"]),
    "head": ({"method": "head"}, ["--method", "head"]),
    "full": ({"method": "full"}, ["--method", "full"]),
}
ALL = "query,key,value,attention.output.dense,intermediate.dense,output.dense"
STUDY_ROWS, EPOCHS = 4000, 2


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


def ours(changes: dict, rows: tuple[int, int], epochs: int = 1) -> dict[str, float]:
    """Run ours in a process of its own; returns its seconds, and those of the whole process."""
    spec = spec_of(train_rows=rows[0], validation_rows=rows[1], epochs=epochs, **changes)
    with tempfile.TemporaryDirectory() as root:
        write_json(Path(root, "spec.json"), spec.model_dump(mode="json"))
        paths = [f"{root}/spec.json", str(TOKENS), str(MODEL), f"{root}/out"]
        return _timed([sys.executable, "scripts/launch.py", *LAUNCH, "benchmarks/ours.py", *paths])


def peer(arguments: list[str], rows: tuple[int, int], epochs: int = 1) -> dict[str, float]:
    """Run the peer in a process of its own."""
    arguments = [ALL if word == "ALL" else word for word in arguments]
    with tempfile.TemporaryDirectory() as root:
        own = ["--rows", *map(str, rows), "--epochs", str(epochs), "--out", root, *arguments]
        return _timed(["accelerate", "launch", *LAUNCH, "benchmarks/peer.py", *own])


def _timed(command: list[str]) -> dict[str, float]:
    """Run a program; its start is counted from here, so the launcher's is included."""
    started = time.time()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "BENCH_STARTED": str(started)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    whole = time.time() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"whole": whole}


def starts(rounds: int) -> pd.DataFrame:
    """Time process starts, interleaved, the launcher included."""
    rows = []
    for _ in range(rounds):
        for name, found in (("ours", ours({}, (8, 8))), ("PEFT", peer([], (8, 8)))):
            rows.append({"what": name, **found})
    table = pd.DataFrame(rows)
    wide = table.assign(n=table.groupby("what").cumcount()).pivot(
        index="n", columns="what", values="start"
    )
    return spread(wide).assign(part="start", setting="seconds to the first step")


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


def study(rounds: int, rows: tuple[int, int]) -> pd.DataFrame:
    """Measure the parts of every kind of run, and put a study together from them."""
    found = []
    for number in range(rounds):
        for kind, (changes, arguments) in GRID.items():
            runs = {
                "ours": ours(changes, rows),
                "PEFT + Trainer": peer(arguments, rows),
                "PEFT + Trainer, padded to 128": peer([*arguments, "--padding", "fixed"], rows),
            }
            for name, parts in runs.items():
                found.append({"round": number, "kind": kind, "what": name, **parts})
        print(f"study: round {number + 1}/{rounds}", file=sys.stderr, flush=True)
    table = pd.DataFrame(found)
    steps = EPOCHS * STUDY_ROWS / 8
    table["study"] = (
        (table.whole - table.train - table.evaluate)
        + table.train / (rows[0] / 8 - 1) * steps
        + table.evaluate * EPOCHS * 2000 / rows[1]
    )
    wide = table.pivot_table(index="round", columns="what", values="study", aggfunc="sum")
    out = []
    for to in ("PEFT + Trainer", "PEFT + Trainer, padded to 128"):
        ratio = spread(wide.div(wide[to], axis=0)).assign(to=to)
        out.append(ratio.assign(seconds=wide.median().to_numpy()))
    setting = f"6 runs of {STUDY_ROWS:,} rows, 2 epochs, from measured parts"
    return pd.concat(out).assign(part="study", setting=setting)


def whole(rows: int) -> pd.DataFrame:
    """Time one run as a whole, by us and by the peer, one after the other."""
    seconds = {
        "ours": ours({}, (rows, 2000), EPOCHS)["whole"],
        "PEFT + Trainer": peer([], (rows, 2000), EPOCHS)["whole"],
    }
    table = pd.DataFrame({"what": list(seconds), "seconds": list(seconds.values())})
    table["median"] = table.seconds / seconds["PEFT + Trainer"]
    setting = f"q+v, r=8, {rows:,} rows, {EPOCHS} epochs, one run each"
    return table.assign(part="whole", to="PEFT + Trainer", setting=setting)


CORES_STUDY = """
question: How does wall time grow with runs and cores?
defaults: {{task: snippets, model: minilm, train_rows: 160, validation_rows: 100, global_batch: 8,
           micro_batch: 8, epochs: 1, batching: length_grouped}}
grid:
  - {{method: lora, rank: 8, targets: q+v, seed: [{seeds}]}}
"""


def cores() -> pd.DataFrame:
    """Time Snakemake on studies of 1, 2 and 4 runs, their cross-check made before."""
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for runs in (1, 2, 4):
            for count in (1, 2):
                file = Path(root, f"bench-{runs}-{count}.yaml")
                file.write_text(CORES_STUDY.format(seeds=", ".join(map(str, range(runs)))))
                name, records = file.stem, []
                for seed in range(runs):
                    folder = f"results/{name}/runs/snippets/minilm/lora-r8-q+v"
                    records.append(f"{folder}/s{seed}/record.json")
                command = ["snakemake", "--quiet", "--cores", str(count), *records]
                started = time.time()
                subprocess.run([*command, "--config", f"study={file}"], check=True)
                seconds = time.time() - started
                rows.append({"axis": "runs", "value": runs, "what": f"{count} cores"})
                rows[-1]["seconds"] = seconds
                subprocess.run(["rm", "-r", f"results/{name}", f"logs/{name}"], check=True)
    return pd.DataFrame(rows).assign(part="cores")


def main() -> None:
    """Measure the asked parts and write a CSV of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs=2, default=(160, 200))
    parser.add_argument("--whole", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    arguments = parser.parse_args()
    parts = {
        "padding": padding,
        "start": lambda: starts(arguments.rounds),
        "evaluate": lambda: evaluation(arguments.rounds),
        "study": lambda: study(arguments.rounds, tuple(arguments.rows)),
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
