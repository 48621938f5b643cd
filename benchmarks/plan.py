"""Measure what a study costs besides training, against its number of runs: seconds and memory.

Studies of 10 to 10,000 runs in a copy of the workflow: ranks x targets x alphas, 5 seeds, ours and
PEFT's, on quickstart's task and model. Measured: the dry run of a study that has not begun; then,
over made-up results of all its runs, study.json, collect, tables, subspace (section 7, one round),
figures, report; `loraudit status`; the call that finds nothing to do. The made-up runs have the
size of quickstart's (500 validation rows, MiniLM's shape; cells that differ in alpha share one).
Seconds are medians over rounds; memory is the largest process's peak. Other work on the machine
shows in the wall time; the CPU time (user + system) moves less. Snakemake's own records are slow to
write on a disk (10,000 runs: half an hour); with TMPDIR on a memory disk (3 GB) they are not.

    python benchmarks/plan.py [--max-runs 10000] [--dry-runs] [--rounds 3]
"""

import argparse
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import transformers
import yaml
from matplotlib.figure import Figure

from loraudit.adapters import inject
from loraudit.base.errors import UserError, run_program
from loraudit.base.files import write_json, write_text
from loraudit.report.figure_style import STYLE, WIDTH, save
from loraudit.report.formatting import markdown
from loraudit.report.looks import MUTED, TARGET_MARKERS
from loraudit.studies.expand import load_study
from loraudit.studies.record import Chosen, RunRecord, Train
from loraudit.studies.spec import RunSpec, digest
from loraudit.studies.study import Run, Study

ROOT = Path(__file__).parents[1]
COPIED = ("Snakefile", "workflow", "scripts", "config", "profiles", "src")
SIZES = (10, 100, 1_000, 10_000)
SEEDS, METHODS = range(5), ("lora", "peft")
AXES = {
    "rank": (1, 2, 3, 4, 6, 8, 12, 16, 32, 64),
    "targets": ("q", "k", "v", "o", "up", "down", "q+v", "q+k", "q+k+v", "all"),
    "alpha": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
}
NAME, EPOCHS, ROWS, CHECKS = "synthetic", 3, 500, 100
RESULTS, FIGURES = Path("results", NAME), Path("figures", NAME)
STAGES = ("study", "collect", "tables", "subspace", "claims", "figures", "report")
"""The programs that follow the runs, in order."""
RULES = (*STAGES, "published")
"""The rules that call them; published numbers are the same whatever the study."""
METER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime
print(json.dumps([code, time.perf_counter() - start, cpu, used.ru_maxrss / 1024]))
"""
"""A small process that starts the measured one: a child's peak includes what its parent held."""


def grid(runs: int) -> dict:
    """Return one grid block of `runs` runs: each axis in turn gets up to 10 values.

    Raises:
        UserError: a number that is not 10, 100, 1,000 or 10,000.
    """
    if runs not in SIZES:
        raise UserError(f"runs: {runs} (legal: {', '.join(map(str, SIZES))})")
    block: dict = {"method": list(METHODS), "seed": list(SEEDS)}
    cells = runs // (len(METHODS) * len(SEEDS))
    for axis, values in AXES.items():
        taken = values[: min(cells, len(values))]
        block[axis] = list(taken) if len(taken) > 1 else values[0]
        cells //= len(taken)
    return block


def make_project(root: Path, runs: int) -> None:
    """Copy the workflow to `root` and add the study."""
    root.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    study = {"question": f"What do {runs} runs cost?", "grid": [grid(runs)]}
    write_text(root / f"config/studies/{NAME}.yaml", yaml.safe_dump(study))


def make_results(root: Path, study: Study) -> None:
    """Write made-up results of every run and cross-check, and a random base model."""
    random, adapters = np.random.default_rng(0), {}
    base = make_model(root / "resources/models/minilm")
    for run in study.runs:
        folder = root / RESULTS / "runs" / run.id
        make_run(folder, run, random)
        if run.spec.method == "lora":
            key = run.spec.lora.rank, run.spec.lora.targets
            if key not in adapters:
                adapters[key] = make_adapter(base, run.spec, root / f"adapters/{len(adapters)}")
            shutil.copytree(adapters[key], folder / "adapter", copy_function=os.link)
    checks = [
        {"check": f"layer {i}", "against": "PEFT", "dtype": "float64", "difference": i * 1e-16,
         "tolerance": 1e-10, "ok": True}
        for i in range(CHECKS)
    ]  # fmt: skip
    for cell in study.cells():
        write_json(root / RESULTS / "crosscheck" / f"{cell}.json", checks)
    facts = {"labels": {}, "sha256": "0" * 64}
    splits = {"train": {"rows": 640, **facts}, "validation": {"rows": ROWS, **facts}}
    for kind in ("tasks/snippets", "models/minilm"):
        manifest = {"splits": splits, "dropped": {}, "absent": [], "files": {}}
        write_json(root / "resources" / kind / "manifest.json", manifest)


def make_model(folder: Path) -> torch.nn.Module:
    """Save a random model of all-MiniLM-L6-v2's shape."""
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    return model


def make_adapter(base: torch.nn.Module, spec: RunSpec, folder: Path) -> Path:
    """Save a random adapter of the rank and targets of `spec`."""
    model = inject.apply(copy.deepcopy(base), spec)
    for layer in inject.lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.01)
    inject.export(model, spec, folder)
    return folder


def make_run(folder: Path, run: Run, random: np.random.Generator) -> None:
    """Write one made-up run: scores rise with the rank and spread over seeds."""
    spec = run.spec
    centre = 0.75 + 0.01 * np.log2(spec.lora.rank)
    scores = np.sort(random.normal(centre, 0.01, EPOCHS)).round(3)
    adapter = 4_608 * spec.lora.rank * len(spec.lora.targets)
    train = Train(
        steps=240,
        epochs=dict.fromkeys(spec.choices, Chosen(epoch=EPOCHS, scores={"accuracy": scores[-1]})),
        parameters={"adapter": adapter, "head": 770, "base": 0, "trainable": adapter + 770,
                    "model": 22_713_986 + adapter},
        bytes={"adapter": 4 * adapter, "checkpoint": 90_868_376},
        rows={"train": 640, "validation": ROWS},
        tokens={"real": 52_000, "padded": 53_000},
        seconds={"train": 30 + random.random(), "evaluate": 3.0, "total": 34 + random.random()},
        cpu_seconds={"train": 30 + random.random(), "evaluate": 3.0},
        peak_memory_mib=900 + random.random(),
    )  # fmt: skip
    environment = {"git": {"commit": "0" * 40, "dirty": False}, "python": "3.11", "threads": 1}
    record = RunRecord(spec=spec, spec_sha256=digest(spec), train=train, environment=environment)
    write_json(folder / "record.json", record.model_dump(mode="json"))
    write_json(folder / "spec.json", spec.model_dump(mode="json"))
    history = pd.DataFrame({"epoch": range(1, EPOCHS + 1), "step": range(80, 241, 80)})
    history = history.assign(train_loss=1 - scores, accuracy=scores)
    history.to_csv(folder / "history.csv", index=False)
    epochs = np.repeat(range(1, EPOCHS + 1), ROWS)
    logits = random.normal(size=(EPOCHS * ROWS, 2)).astype("float32")
    predictions = pd.DataFrame({"split": "validation", "epoch": epochs})
    predictions = predictions.assign(row=np.tile(range(ROWS), EPOCHS), label=epochs % 2)
    predictions = predictions.assign(prediction=logits.argmax(1))
    predictions = predictions.assign(logit_0=logits[:, 0], logit_1=logits[:, 1])
    predictions.to_parquet(folder / "predictions.parquet", index=False)


def environment(root: Path) -> dict[str, str]:
    """Put the copy's code and this interpreter's programs first, and say where its scripts are."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(root / "src"), "LORAUDIT": str(root)}


def run(root: Path, command: str) -> tuple[float, float, float]:
    """Run a shell command in the copy; returns seconds, CPU seconds and the peak in MiB.

    Raises:
        UserError: it failed.
    """
    words = [sys.executable, "-c", METER, "bash", "-c", command]
    pipes = {"text": True, "capture_output": True, "check": False}
    done = subprocess.run(words, cwd=root, env=environment(root), **pipes)
    code, *found = json.loads(done.stdout)
    if code:
        raise UserError(f"{command} failed: {done.stderr.strip()}")
    return tuple(found)


def snakemake(root: Path, arguments: str) -> tuple[float, float, float]:
    """Run Snakemake on the study in the copy."""
    return run(root, f"snakemake --quiet all {arguments} --config study={NAME}")


def stages(root: Path) -> dict[str, list[str]]:
    """Return the shell commands behind the runs by program, as the rules would call them now."""
    words = ["snakemake", "-n", "-p", "--allowed-rules", *RULES, "--config", f"study={NAME}"]
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, cwd=root, env=environment(root), check=True, **pipes)
    found: dict[str, list[str]] = {}
    for command, program in re.findall(
        r"^Shell command: (.*scripts/(\w+)\.py.*)$", done.stdout, re.M
    ):
        found.setdefault(program, []).append(command)
    (root / "logs" / NAME).mkdir(parents=True, exist_ok=True)
    return found


def measure(root: Path, runs: int, rounds: int, dry_runs: bool = False) -> list[dict]:
    """Measure every stage of one study `rounds` times, or the dry run alone."""
    rows = []

    def repeat(what: str, once) -> None:
        for number in range(1 if what == "subspace" else rounds):
            names = ("runs", "what", "round", "seconds", "cpu_seconds", "peak_mib")
            rows.append(dict(zip(names, (runs, what, number, *once()), strict=True)))
            print(*rows[-1].values(), flush=True)

    make_project(root, runs)
    repeat("dry run", lambda: snakemake(root, "-n"))
    if dry_runs:
        return rows
    study = load_study(root / f"config/studies/{NAME}.yaml", folder=root / "config")
    make_results(root, study)
    programs = stages(root)
    for what in STAGES:
        repeat(what, lambda what=what: total([run(root, p) for p in programs[what]]))
    repeat("status", lambda: run(root, f"loraudit status {NAME}"))
    run(root, programs["published"][0])
    snakemake(root, f"--cores {runs} --touch")  # records every job as done, as a real call does
    repeat("nothing to do", lambda: snakemake(root, "--cores 1"))
    return rows


def total(parts: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Add the times of several programs; the peak is the largest."""
    seconds, cpu, peaks = zip(*parts, strict=True)
    return sum(seconds), sum(cpu), max(peaks)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return medians over rounds, and the number of rounds, by stage and number of runs."""
    groups = rows.groupby(["what", "runs"], sort=False)
    medians = groups[["seconds", "cpu_seconds", "peak_mib"]].median()
    return medians.assign(rounds=groups.size()).reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Draw seconds and peak memory over the number of runs, both axes logarithmic."""
    panels = {"cpu_seconds": "CPU seconds", "peak_mib": "peak memory, MiB"}
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, len(panels), figsize=(WIDTH, 2.6), layout="constrained")
        for axes, (column, label) in zip(row, panels.items(), strict=True):
            for number, (what, part) in enumerate(table.groupby("what", sort=False)):
                look = {"color": MUTED[number % len(MUTED)], "markersize": 4}
                look["linestyle"] = "-" if number < len(MUTED) else "--"
                look["marker"] = list(TARGET_MARKERS.values())[number % len(TARGET_MARKERS)]
                axes.loglog(part.runs, part[column], label=what, **look)
            axes.set_xlabel("runs of the study")
            axes.set_ylabel(label)
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-runs", type=int, default=SIZES[-1], help="largest study")
    parser.add_argument("--dry-runs", action="store_true", help="leave out all but these (2 min)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/bench/plan.csv"))
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for runs in (size for size in SIZES if size <= arguments.max_runs):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(Path(folder), runs, arguments.rounds, arguments.dry_runs)
    table = summary(pd.DataFrame(rows))
    save(draw(table), table, arguments.out.with_suffix(""))
    text = markdown(table.round(1).astype(str))
    write_text(arguments.out.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    run_program(main)
