"""What a study will take, before anything starts: jobs, time, memory and disk.

A dry run of Snakemake tells which jobs are to do. Times come from the study's finished runs on this
machine; for other kinds of run calibrate.py measures a few steps, kept in .loraudit/. Where the
study is set beside published numbers, the plan also says what its seeds can show.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from humanize import naturalsize

from loraudit.analysis.cells import cell_name
from loraudit.analysis.claim_runs import Lacking, lacking, too_coarse
from loraudit.analysis.collect import complete, tidy
from loraudit.analysis.overlap import overlap_sentences, overlaps
from loraudit.analysis.pair_power import pair_power, spread_of
from loraudit.analysis.verdicts import power
from loraudit.analysis.words import POWER
from loraudit.base.code_digest import code_digest
from loraudit.base.errors import UserError
from loraudit.base.files import read_json, write_json
from loraudit.base.gpu_slots import PER_GPU, installed, visible
from loraudit.base.memory import memory_mb
from loraudit.base.progress import progress
from loraudit.base.provenance import processor
from loraudit.base.shipped import own_or_shipped, shipped
from loraudit.base.terminal import duration
from loraudit.studies import paths
from loraudit.studies.advice import advice
from loraudit.studies.cluster import TARGETS, read_cluster
from loraudit.studies.expand import load_configured
from loraudit.studies.launcher import (
    gpus_per_machine,
    idle_gpus,
    launch_file,
    processes_per_machine,
    read_launcher,
    require_devices,
    require_fit,
)
from loraudit.studies.names import targets_name
from loraudit.studies.record import read_record
from loraudit.studies.reference import load_models, select
from loraudit.studies.spec import RunSpec
from loraudit.studies.study import Run, Study
from loraudit.studies.study_file import Config
from loraudit.studies.training_code import training_code
from loraudit.tools import calibrate
from loraudit.tools.all_targets import all_targets
from loraudit.tools.beside import BESIDE, Beside, Reading, beside_seconds
from loraudit.tools.gpu_speeds import START_SECONDS, read_speeds, speed
from loraudit.tools.room import Room, schedule

CACHE = Path(".loraudit/calibration.json")

FREE = (
    *("seed", "rank", "alpha", "learning_rate", "schedule", "warmup_ratio", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "init", "init_std", "warm_start"),
    *("train_rows", "train_draw", "selection_rows", "validation_rows", "validate_epochs"),
    *("epochs", "tuned"),
)
"""Fields that do not change what a step costs; rank does, but too little to matter here."""

BUSY = 0.5
"""Load per CPU above which the plan notes that other work ran beside the measurements."""

PACKED = "train_packed"
"""How the names of the rules begin that train packs of runs, one for each pack."""

UNTIMED = (
    "runs_per_batch: what packing saves is not measured; the runs of a pack are counted as if each "
    "were trained alone"
)
"""The note of a plan with packs."""

PREDICTION_BYTES = 40
"""The most that a row of predictions.parquet takes: row, label, prediction and logits."""


class Jobs(NamedTuple):
    """What Snakemake would do: the number of jobs per rule, runs to train and cells to check.

    `beside` are the runs that have a job of a rule of `BESIDE` to do, by the rule.
    """

    rules: dict[str, int]
    runs: set[str]
    cells: set[str]
    beside: Mapping[Beside, set[str]] = {}


class Machine(NamedTuple):
    """What decides how fast a run is here, and how many run at once; `launch` is the launch file.

    `gpus` are the product names of the GPUs that runs may take, or of those that are planned for.
    """

    processor: str
    cpus: int
    torch: str
    threads: int
    cores: int
    launch: str
    memory_mb: int
    gpus: tuple[str, ...]
    runs_per_gpu: int

    def profile(self) -> dict:
        """Return what is read of the launch file."""
        return read_launcher(self.launch)

    @property
    def device(self) -> str:
        """The kind of device that trains, as records call it: cpu or cuda."""
        return "cuda" if gpus_per_machine(self.profile()) else "cpu"

    @property
    def room(self) -> Room:
        """What its jobs may take at the same time."""
        return Room(self.cores, self.memory_mb, len(self.gpus) * self.runs_per_gpu)

    def run_room(self) -> Room:
        """Return the cores and GPUs that a run takes of it."""
        launcher = self.profile()
        return Room(self.threads * launcher["num_processes"], gpus=gpus_per_machine(launcher))


def plan(
    config: dict,
    given: list[str],
    cores: int,
    measure: bool = True,
    again: bool = False,
    spread: float | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
) -> dict:
    """Return a study's jobs and what they will take.

    Args:
        config: the whole configuration.
        given: the keys that were set on the command line, as KEY=VALUE, for Snakemake.
        cores: Snakemake's --cores.
        measure: measure kinds of run that no finished run tells about; otherwise they are unknown.
        again: repeat earlier measurements.
        spread: the standard deviation of scores over seeds, as a fraction, for what the seeds can
            show; None takes the published one beside published numbers, and that of the study's
            finished runs for pairs of methods.
        gpu: plan for GPUs of this name in the table of measured speeds (gpu_speeds.py), instead of
            this machine's.
        gpus: their number; None for those that are here, or else one.

    Raises:
        UserError: something in the study is wrong, or this is not the repository's folder.
    """
    study = load_configured(config)
    checked = Config(**config)
    _require_manifests(study)
    machine = _machine(study, checked, cores, gpu, gpus)
    jobs = dry_run(given)
    shown = {
        "power": planned_power(study, spread),
        "pairs": planned_pairs(study, spread),
        "coarse": too_coarse(study),
    }
    wanting = lacking(study)
    if gpu:
        unmeasured, speeds = Calibration({}, {}, None, []), read_speeds(gpu)
        answer = _answer(study, jobs, machine, {}, unmeasured, speeds)
        return answer | shown | _priced(wanting, lambda spec: gpu_estimate(spec, speeds, machine))
    known = finished_costs(study, machine)
    if again:
        CACHE.unlink(missing_ok=True)
    todo = [run for run in study.all_runs if run.id in jobs.runs]
    further = [run for one in wanting for run in one.runs]
    asked = {
        cost_key(run.spec): run
        for run in (*study.all_runs, *further)
        if cost_key(run.spec) not in known
    }
    keys = {cost_key(run.spec) for run in (*todo, *further)}
    needed = [run for key, run in asked.items() if key in keys]
    unmeasured = Calibration({}, {}, None, [])
    measured = calibrated(needed, study, jobs, machine) if measure else unmeasured
    answer = _answer(study, jobs, machine, known, measured)
    return answer | shown | _priced(wanting, lambda spec: estimate(spec, known, measured))


def _priced(wanting: Iterable[Lacking], price: Callable[[RunSpec], "Estimate"]) -> dict:
    """Say of each claim that can't be tested which runs it needs, and what these take together.

    The seconds are None where those of a run are not known.
    """
    rows = []
    for claim, why, runs in wanting:
        seconds = [price(run.spec).seconds for run in runs]
        cells = list(dict.fromkeys(run.id.rpartition("/")[0] for run in runs))
        total = None if None in seconds or not runs else sum(s for s in seconds if s is not None)
        rows.append(
            {
                "claim": claim.id,
                "statement": claim.statement,
                "why": why,
                "runs": [run.id for run in runs],
                "cells": cells,
                "seconds": total,
            }
        )
    return {"claims": rows}


def _machine(
    study: Study, config: Config, cores: int, gpu: str | None, gpus: int | None
) -> Machine:
    """Describe this machine or, with `gpu`, one with such GPUs and cores enough for them.

    Raises:
        UserError: there is no such launch file, the study does not fit it, or a run by it takes
            more than `gpus`.
    """
    name = config.launch
    if gpu and not gpus_per_machine(read_launcher(launch_file(name))):
        name = "gpu"
    launch = launch_file(name)
    launcher = read_launcher(launch)
    require_fit(study.all_runs, name, launcher)
    if not gpu:
        require_devices(name, launcher)
    wanted = gpus_per_machine(launcher)
    product = gpu or next((device.product for device in installed()), "")
    if gpus is not None and gpus < wanted:
        raise UserError(
            f"gpus: {gpus}: launch {name!r} gives each run {wanted} GPUs (legal: {wanted} or more)"
        )
    count = (gpus or (0 if gpu else len(visible())) or wanted) if wanted else 0
    room = memory_mb()
    if gpu:  # its CPU and memory are not known: they are taken to be enough
        cores, room = max(cores, count * config.runs_per_gpu * config.threads), 10**9
    fixed = processor(), os.cpu_count() or 1, version("torch"), config.threads, cores
    return Machine(*fixed, str(launch), room, (product,) * count, config.runs_per_gpu)


def dry_run(given: list[str]) -> Jobs:
    """Ask Snakemake what it would do.

    Raises:
        UserError: there is no Snakefile here, or Snakemake refuses, with its reason.
    """
    snakefile = own_or_shipped("Snakefile")
    if not snakefile.is_file():
        raise UserError("no Snakefile here: run this in the repository's folder")
    command = [sys.executable, "-m", "loraudit.tools.dry_run", "--snakefile", str(snakefile)]
    command += ["--config", *given] if given else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # Snakemake says in which line of a file it happened after it has said what
        where = '  File "'
        said = done.stderr.splitlines()
        lines = [line for line in said if line.strip() and not line.startswith(where)]
        raise UserError(f"snakemake can't plan this: {lines[-1] if lines else 'no reason given'}")
    return parse_jobs(done.stdout)


def parse_jobs(lines: str) -> Jobs:
    """Read the jobs that dry_run.py prints, one a line."""
    jobs = [json.loads(line) for line in lines.splitlines()]
    names: dict[str, set[str]] = {rule: set() for rule in ("train", "crosscheck", *BESIDE)}
    for job in jobs:
        if job["rule"] in names:
            wildcards = dict(job["wildcards"])
            seed = [f"s{wildcards.pop('seed')}"] if "seed" in wildcards else []
            parts = [wildcards[name] for name in ("task", "model", "variant")]
            names[job["rule"]].add("/".join(parts + seed))
        elif job["rule"].startswith(PACKED):
            names["train"].update(job["runs"])
            job["rule"] = PACKED
    counts = Counter(job["rule"] for job in jobs if job["rule"] not in TARGETS)
    beside = {rule: names[rule] for rule in BESIDE}
    return Jobs(dict(counts), names["train"], names["crosscheck"], beside)


def cost_key(spec: RunSpec) -> str:
    """Return what decides a run's cost, as JSON: all fields but the seed and the optimizer's."""
    exact = ("train_rows", "validation_rows", "epochs", "rank")
    dropped = {name for name in FREE if name not in exact}
    return _without(spec, dropped)


def class_key(spec: RunSpec) -> str:
    """Return what decides a step's cost: model, method, targets, batch, lengths, precision."""
    return _without(spec, set(FREE))


def _without(spec: RunSpec, dropped: set[str]) -> str:
    """Return a run's fields as JSON text, some of them left out."""
    return json.dumps({key: value for key, value in spec.flat().items() if key not in dropped})


def finished_costs(study: Study, machine: Machine) -> dict[str, dict]:
    """Return {cost key: means over the study's finished runs on this machine}."""
    seen: dict[str, list[dict]] = {}
    for run in study.all_runs:
        folder = paths.RESULTS / study.name / "runs" / run.id
        try:
            record = read_record(folder / "record.json")
        except UserError:  # there is none, or a damaged one, which `verify` names
            continue
        train = record.train
        asked = record.spec.planned() == run.spec
        whole = train.diverged is None  # what diverged ended early
        alone = "packed" not in record.environment  # a pack's time is no run's own
        if asked and whole and alone and _same_machine(record.environment, machine):
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            memory = train.peak_memory_mib, train.peak_device_memory_mib
            cost: dict = {"seconds": train.seconds["total"], "memory": memory, "bytes": size}
            cost["step"] = train.seconds["train"] / train.steps
            cost["evaluate"] = train.seconds["evaluate"]
            cost["ready"] = train.seconds["total"] - train.seconds["train"]
            cost["ready"] -= cost["evaluate"]
            seen.setdefault(cost_key(run.spec), []).append(cost)
    return {key: _mean(costs) for key, costs in seen.items()}


def _mean(costs: list[dict]) -> dict:
    names = ("seconds", "step", "bytes", "evaluate", "ready")
    means = {name: sum(c[name] for c in costs) / len(costs) for name in names}
    return {**means, "memory_mib": max(cost["memory"][0] for cost in costs), "runs": len(costs)}


def _same_machine(environment: dict, machine: Machine) -> bool:
    here = machine.processor, machine.cpus, machine.threads, machine.profile()["num_processes"]
    names = ("processor", "cpus", "threads", "processes")
    device = str(environment.get("device")).partition(":")[0]
    if device != machine.device or tuple(environment.get(name) for name in names) != here:
        return False
    return device == "cpu" or set(environment.get("gpus", ())) <= set(machine.gpus)


class Calibration(NamedTuple):
    """What was measured: {class key: cost}, {model: seconds of a cross-check}, launch seconds.

    `notes` are sentences for the reader: what could not be measured, and why.
    """

    classes: dict[str, dict]
    crosschecks: dict[str, float]
    launch_seconds: float | None
    notes: list[str]


class Task(NamedTuple):
    """A measurement to make: its key in the cache, what it measures in words, and the call."""

    key: str
    what: str
    call: Callable
    arguments: tuple


def calibrated(runs: list[Run], study: Study, jobs: Jobs, machine: Machine) -> Calibration:
    """Measure what the cache lacks, in as many processes at once as there will be runs at once."""
    lacking: dict[str, list[str]] = {}
    named: dict[str, str] = {}
    tasks: list[Task] = []
    for run in sorted(runs, key=lambda run: -_rank(run.spec)):
        key = class_key(run.spec)
        if key not in named:
            task = _class_task(run, machine, lacking)
            named[key] = task.key if task else ""
            tasks += [task] if task else []
    checks = _crosscheck_tasks(study, jobs, machine)
    launch = _launch_task(machine)
    wanted = [*tasks, *checks.values(), *([launch] if jobs.runs else [])]
    busy = os.getloadavg()[0] > BUSY * machine.cpus
    busy = busy and any(task.key not in _cache() for task in wanted)
    at_once = machine.room.times(machine.run_room())
    cache, failed = _measured(wanted, at_once)
    for task in wanted:
        if task.key in failed:
            lacking.setdefault(failed[task.key], []).append(task.what)
    notes = ["the machine was busy with other work while it was measured"] if busy else []
    notes += [f"{some_of(whats)}: {reason}" for reason, whats in lacking.items()]
    return Calibration(
        {key: cache[name] for key, name in named.items() if name in cache},
        {model: cache[task.key] for model, task in checks.items() if task.key in cache},
        cache.get(launch.key),
        notes,
    )


def _class_task(run: Run, machine: Machine, lacking: dict[str, list[str]]) -> Task | None:
    """Return the measurement of a kind of run; if there can be none, note it by the reason."""
    spec, folders = run.spec, _folders(run.spec)
    model = folders["model"]
    source = calibrate.model_source(spec, model)
    what = f"{spec.task.name} {spec.model.name} {spec.method} {targets_name(spec)}".strip()
    if source is None:
        reason = (
            "no estimate: the model is not here; `snakemake --cores 1 "
            f"{model}/manifest.json --config ...` fetches it"
        )
        lacking.setdefault(reason, []).append(what)
        return None
    code = training_code(spec.method)
    folders["model"] = source
    key = _cache_key(machine, code, class_key(spec), calibrate.readable(folders), source)
    start = machine.profile(), machine.threads, machine.runs_per_gpu
    arguments = spec.model_dump(mode="json"), folders, *start
    return Task(key, what, calibrate.measure, arguments)


def _folders(spec: RunSpec) -> dict[str, Path]:
    task, model, resources = spec.task.name, spec.model.name, paths.RESOURCES
    return {
        "task": resources / "tasks" / task,
        "tokens": paths.tokens_folder(spec),
        "model": resources / "models" / model,
    }


def _rank(spec: RunSpec) -> int:
    return spec.adapter.rank if spec.adapter else 0


def _crosscheck_tasks(study: Study, jobs: Jobs, machine: Machine) -> dict[str, Task]:
    """Return a cross-check to time for each model: the cell with the most matrices and ranks."""
    todo = [spec for cell, spec in study.cells().items() if cell in jobs.cells]
    largest: dict[str, RunSpec] = {}
    for spec in sorted(todo, key=lambda spec: (len(spec.lora.targets), _rank(spec))):
        folders = _folders(spec)
        if calibrate.readable(folders) and (folders["model"] / "model.safetensors").is_file():
            largest[spec.model.name] = spec
    code = code_digest("scripts/crosscheck.py")
    tasks = {}
    for name, spec in largest.items():
        arguments = spec.model_dump(mode="json"), _folders(spec), machine.threads
        key = _cache_key(machine, code, class_key(spec), "cross-check")
        tasks[name] = Task(key, f"cross-check {name}", calibrate.measure_crosscheck, arguments)
    return tasks


def _launch_task(machine: Machine) -> Task:
    code = code_digest("scripts/train.py")
    key = _cache_key(machine, code, "launch")
    settings = machine.launch, machine.threads, machine.runs_per_gpu
    return Task(key, "launch", measure_launch, settings)


def measure_launch(profile: str, threads: int, per_gpu: int = 1) -> float:
    """Return the seconds from the launch of a run until the training modules are imported.

    It takes a place on a GPU, of which there are `per_gpu` on each, as a run does.

    Raises:
        UserError: the launch failed, or the profile starts processes on several machines.
    """
    if read_launcher(profile)["num_machines"] > 1:
        raise UserError("a launch on several machines can't be timed on this one")
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write("import loraudit.training.run\n")
        file.flush()
        launcher = str(shipped("scripts/launch.py"))
        command = [sys.executable, launcher, "--quiet", "--config_file", profile]
        command += ["--num_cpu_threads_per_process", str(threads), file.name]
        started = time.monotonic()
        places = {**os.environ, PER_GPU: str(per_gpu)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=places)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise UserError(f"the launch failed: {lines[-1]}")
        return time.monotonic() - started


def _cache_key(machine: Machine, *parts: object) -> str:
    return hashlib.sha256(
        json.dumps([machine, machine.profile(), *parts], default=str).encode()
    ).hexdigest()


def _cache() -> dict:
    """Return what was measured before; a damaged file counts as none and is written again."""
    try:
        cache = read_json(CACHE)
    except (OSError, ValueError, RecursionError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _measured(tasks: list[Task], slots: int) -> tuple[dict, dict[str, str]]:
    """Return the cache with the tasks' results, and for each task without one the reason."""
    cache = _cache()
    missing = {task.key: task for task in tasks if task.key not in cache}
    failed: dict[str, str] = {}
    if not missing:
        return cache, failed
    context = get_context("forkserver")
    context.set_forkserver_preload(["loraudit.training.run", "loraudit.crosscheck.whole_model"])
    workers = min(slots, len(missing))
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        futures: dict[Future, Task] = {
            pool.submit(task.call, *task.arguments): task for task in missing.values()
        }
        for future in progress(as_completed(futures), len(futures), "calibrate"):
            key = futures[future].key
            try:
                cache[key] = future.result()
            except UserError as error:
                failed[key] = f"no estimate: {error}"
            except BrokenProcessPool:
                failed[key] = "no estimate: a calibration was killed (out of memory?)"
    write_json(CACHE, cache)
    return cache, failed


class Estimate(NamedTuple):
    """What one run takes, with None for what is unknown; `source` says where this comes from."""

    seconds: float | None
    step: float | None
    memory_mib: float | None
    bytes: float | None
    source: str


UNKNOWN = Estimate(None, None, None, None, "unknown")


def gpu_estimate(spec: RunSpec, speeds: pd.DataFrame, machine: Machine) -> Estimate:
    """Return what a run takes on a GPU of the table of measured speeds; memory is the GPU's."""
    processes = machine.profile()["num_processes"]
    found = speed(spec, speeds, machine.runs_per_gpu, processes)
    seconds, rows = None, _rows(spec)
    if rows is not None:
        cost = found._asdict() | {"ready_seconds": START_SECONDS, "ranks": 0}
        seconds = calibrate.run_seconds(spec, rows, cost)
    return Estimate(seconds, found.step_seconds, found.device_mib, None, found.source)


def estimate(spec: RunSpec, known: dict[str, dict], measured: Calibration) -> Estimate:
    """Return what a run takes, by finished runs of its kind or else by the calibration.

    `known` is `finished_costs`' answer.
    """
    launch = measured.launch_seconds or 0.0
    if (cost := known.get(cost_key(spec))) is not None:
        source = f"{cost['runs']} finished run" + "s" * (cost["runs"] > 1)
        seconds = cost["seconds"] + launch
        return Estimate(seconds, cost["step"], cost["memory_mib"], cost["bytes"], source)
    cost = measured.classes.get(class_key(spec))
    if cost is None:
        return UNKNOWN
    rows = _rows(spec)
    source = "calibration" if cost["real_rows"] else "calibration at max_length"
    if rows is None:
        return Estimate(None, cost["step_seconds"], cost["memory_mib"], None, source)
    scored = sum(count for split, count in rows.items() if split != "train")
    size = 4 * cost["saved_values"] + 2 * scored * PREDICTION_BYTES
    seconds = calibrate.run_seconds(spec, rows, cost) + launch
    return Estimate(seconds, cost["step_seconds"], cost["memory_mib"], size, source)


def _reading(
    spec: RunSpec, known: Mapping[str, dict], measured: Calibration, machine: Machine
) -> Reading | None:
    """Return what reading a run again takes on this machine's CPU; None where nothing tells.

    A run's own costs tell it where runs compute on the CPU.
    """
    rows = _rows(spec)
    if rows is None or machine.device != "cpu":
        return None
    validated = rows.get("validation", 0)
    if (cost := known.get(cost_key(spec))) is not None:
        scored = calibrate.scored_rows(spec, rows)
        return Reading(max(0.0, cost["ready"]), cost["evaluate"] / max(scored, 1), validated)
    if (cost := measured.classes.get(class_key(spec))) is not None:
        return Reading(cost["ready_seconds"], cost["evaluate_row_seconds"], validated)
    return None


def _rows(spec: RunSpec) -> dict[str, int] | None:
    """Return the rows that a run trains and scores, by split; None if nobody knows them yet."""
    return calibrate.row_counts(spec.task, _folders(spec)["task"], spec)


def _steps(spec: RunSpec) -> int:
    """Return the optimizer steps of a run; 0 if the size of its task is unknown."""
    rows = _rows(spec)
    return spec.epochs * math.ceil(rows["train"] / spec.global_batch) if rows else 0


def _timed_jobs(
    study: Study,
    jobs: Jobs,
    machine: Machine,
    estimates: dict[str, Estimate],
    checks: dict[str, float],
    readings: Mapping[str, Reading | None],
) -> list[list[tuple[Room, float | None]]]:
    """Return what the jobs that are to do take, and their seconds, in waves.

    A run with a warm start waits for the run that it starts from, so it is in the wave after it,
    and so is a job that reads a finished run.
    """
    cluster, own = read_cluster(), machine.run_room()
    processes = processes_per_machine(machine.profile())
    depths = study.depths()
    waves: list[list[tuple[Room, float | None]]] = [[] for _ in range(2 + max(depths.values()))]
    for run in study.all_runs:
        if run.id in jobs.runs:
            model, task = [run.spec.model.name], [run.spec.task.name]
            need = cluster.needs("train", model, task, 1, processes)
            took = own._replace(mem_mb=need.mem_mb), estimates[run.id].seconds
            waves[depths[run.id]].append(took)
    for name, spec in study.cells().items():
        if name in jobs.cells:
            need = cluster.needs("crosscheck", [spec.model.name], [spec.task.name], 1)
            took = Room(machine.threads, need.mem_mb), checks.get(spec.model.name)
            waves[0].append(took)
    specs = {run.id: run.spec for run in study.all_runs}
    for rule, names in jobs.beside.items():
        for name in sorted(names):
            tasks = [specs[one].task.name for one in study.chain(name)]
            need = cluster.needs(rule, [specs[name].model.name], tasks, 1)
            seconds = beside_seconds(rule, study, name, readings)
            waves[depths[name] + 1].append((Room(machine.threads, need.mem_mb), seconds))
    return waves


def _answer(
    study: Study,
    jobs: Jobs,
    machine: Machine,
    known: dict[str, dict],
    measured: Calibration,
    speeds: pd.DataFrame | None = None,
) -> dict:
    estimates = {
        run.id: estimate(run.spec, known, measured)
        if speeds is None
        else gpu_estimate(run.spec, speeds, machine)
        for run in study.all_runs
    }
    todo = [run for run in study.all_runs if run.id in jobs.runs]
    read = study.all_runs if any(jobs.beside.values()) else ()
    readings = {run.id: _reading(run.spec, known, measured, machine) for run in read}
    waves = _timed_jobs(study, jobs, machine, estimates, measured.crosschecks, readings)
    timed = [[(need, s) for need, s in wave if s is not None] for wave in waves]
    untimed = sum(map(len, waves)) - sum(map(len, timed))
    all_timed = [job for wave in timed for job in wave]
    biggest = max((need for wave in waves for need, _ in wave if need.gpus), default=None)
    biggest = biggest or max((need for wave in waves for need, _ in wave), default=Room(1))
    at_once = machine.room.times(biggest)
    memory = sorted((estimates[r.id].memory_mib or 0.0 for r in todo), reverse=True)
    sizes = [estimates[run.id].bytes for run in todo]
    return {
        "study": study.name,
        "machine": machine._asdict(),
        "runs": {
            "all": len(study.all_runs),
            "done": len(study.all_runs) - len(todo),
            "to do": len(todo),
        },
        "jobs": jobs.rules,
        "kinds": _kinds(study.all_runs, jobs.runs, estimates),
        "planned gpu": speeds is not None,
        "steps": sum(_steps(run.spec) for run in todo),
        "at once": at_once,
        "cpu_seconds": sum(need.cores * seconds for need, seconds in all_timed),
        "gpu_seconds": sum(need.gpus * seconds for need, seconds in all_timed)
        / machine.runs_per_gpu,
        "wall_seconds": sum(schedule(part, machine.room) for part in timed),
        "jobs_without_estimate": untimed,
        "other_jobs": sum(
            count
            for rule, count in jobs.rules.items()
            if rule not in ("train", PACKED, "crosscheck", *BESIDE)
        ),
        "memory_mib": sum(memory[:at_once]),
        "disk_bytes": sum(size for size in sizes if size is not None),
        "crosscheck_seconds": measured.crosschecks,
        "launch_seconds": measured.launch_seconds,
        "notes": [
            *measured.notes,
            *([UNTIMED] if PACKED in jobs.rules else []),
            *(idle_gpus(machine.profile()) if speeds is None else _assumed()),
            *_unknown_sizes(todo),
            *advice(study),
            *all_targets(study),
            *cautions(study),
        ],
    }


def cautions(study: Study) -> list[str]:
    """Say what is known of the study's tasks and models that changes what its results mean.

    What is odd about a task's rows, and which tasks have texts in common, is known once they are
    fetched.
    """
    tasks = dict.fromkeys(run.spec.task.name for run in study.runs)
    folders = {name: paths.RESOURCES / "tasks" / name for name in tasks}
    manifests = {name: folder / "manifest.json" for name, folder in folders.items()}
    fetched = {name: read_json(file) for name, file in manifests.items() if file.is_file()}
    odd = {name: manifest.get("remarks", ()) for name, manifest in fetched.items()}
    remarks = [f"task {name}: {said}" for name, sentences in odd.items() for said in sentences]
    return [*study.cautions(), *overlap_sentences(study, overlaps(folders)), *remarks]


def _require_manifests(study: Study) -> None:
    """Refuse a study of which a fetched task's manifest is damaged.

    Raises:
        UserError: it is, with its path and the way out.
    """
    for name in dict.fromkeys(run.spec.task.name for run in study.all_runs):
        file = paths.RESOURCES / "tasks" / name / "manifest.json"
        try:
            manifest = read_json(file) if file.is_file() else {"splits": {}}
            whole = all(isinstance(one["rows"], int) for one in manifest["splits"].values())
            whole = whole and isinstance(manifest.get("remarks", []), list)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise UserError(
                f"{file}: damaged; delete the folder {file.parent}, and the next "
                "`snakemake` fetches the task again"
            )


def planned_power(study: Study, spread: float | None = None) -> list[dict]:
    """Return what a study's seeds can show beside each published number: `verdicts.power`'s rows.

    Our spread is taken to be the published one unless it is given; what is not known is None.
    """
    table = power(study, select(study.compare), load_models(), spread)
    return json.loads(table.to_json(orient="records"))


def planned_pairs(study: Study, spread: float | None = None) -> list[dict]:
    """Return what a study's seeds can show of pairs of methods: `pair_power`'s rows.

    The spread is that of the runs that are finished unless it is given; what is not known is None.
    """
    folder = paths.RESULTS / study.name
    done, _ = complete(study, folder) if folder.is_dir() else (None, None)
    seen = spread_of(tidy(done, folder / "runs")) if done and done.runs else {}
    table = pair_power(study, seen if spread is None else spread)
    return json.loads(table.to_json(orient="records"))


def _unknown_sizes(todo: Iterable[Run]) -> list[str]:
    tasks = sorted({run.spec.task.name for run in todo if _rows(run.spec) is None})
    if len(tasks) < 2:
        return [f"task {name}: its size is unknown until it is fetched" for name in tasks]
    return [f"tasks {', '.join(tasks)}: their sizes are unknown until they are fetched"]


def some_of(items: Iterable[str], most: int = 3) -> str:
    """Join items, and count those beyond the first few: "a, b, c and 9 more"."""
    items = list(items)
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def _assumed() -> list[str]:
    """Say what an estimate by the table of measured speeds takes for granted."""
    return [
        "the times are arithmetic from speeds measured on another machine: inputs count as "
        "max_length tokens each, an evaluated row as a third of a trained one, a start as "
        f"{START_SECONDS:g} s; cross-checks are not counted; a GPU that was not measured is taken "
        "to be slower by the ratio of the peaks, but never faster"
    ]


def _kinds(runs: Iterable[Run], todo: set[str], estimates: dict[str, Estimate]) -> list[dict]:
    """Return a row per kind of run: equal task, model, method, targets and estimate.

    `ranks` and `labels` are those of the kind's runs, in their order.
    """
    kinds: dict[tuple, dict] = {}
    for run in runs:
        spec, cost = run.spec, estimates[run.id]
        named = {"task": spec.task.name, "model": spec.model.name, "method": spec.method}
        named["targets"] = targets_name(spec)
        kind = kinds.setdefault(
            (*named.values(), cost),
            {**named, "ranks": [], "labels": [], "runs": 0, "to do": 0, **cost._asdict()},
        )
        kind["runs"] += 1
        kind["to do"] += run.id in todo
        for name, value in (("ranks", _rank(spec)), ("labels", run.label)):
            kind[name] += [value] if value and value not in kind[name] else []
    return list(kinds.values())


def sections(answer: dict) -> list[tuple[str, list[str], list[list[object]]]]:
    """Turn `plan`'s answer into tables for the screen: title, columns, rows.

    A column in which nothing stands is left out.
    """
    kinds = [
        {
            **{name: kind[name] for name in ("task", "model", "method")},
            "rank": ", ".join(map(str, kind["ranks"])),
            "targets": kind["targets"],
            "label": some_of(kind["labels"]),
            **{name: kind[name] for name in ("runs", "to do")},
            "s per step": "" if kind["step"] is None else f"{kind['step']:.3g}",
            "per run": "" if kind["seconds"] is None else duration(kind["seconds"]),
            "memory": "" if kind["memory_mib"] is None else f"{kind['memory_mib']:,.0f} MiB",
            "from": kind["source"],
        }
        for kind in answer["kinds"]
    ]
    columns = [name for name in kinds[0] if any(kind[name] != "" for kind in kinds)]
    rows = [[kind[name] for name in columns] for kind in kinds]
    shown = [*_power_section(answer["power"]), *_pair_section(answer["pairs"])]
    shown += _claim_section(answer["claims"])
    return [(f"study {answer['study']}", columns, rows), *shown]


def _time(answer: dict) -> str:
    """Say how long a study takes, with what, and how much of one core or GPU that is."""
    gpus = len(answer["machine"]["gpus"])
    cores = answer["machine"]["cores"]
    least = "at least" if answer["jobs_without_estimate"] else "about"
    whole, busy = f"{cores} cores", f"{duration(answer['cpu_seconds'])} of one core"
    if gpus:
        name = answer["machine"]["gpus"][0] or "of unknown kind"
        whole = f"{gpus} GPU{'s' * (gpus > 1)} ({name})"
        busy = f"{duration(answer['gpu_seconds'])} of one GPU"
    at_once = answer["at once"]
    return (
        f"time: {least} {duration(answer['wall_seconds'])} with {whole} "
        f"({at_once} job{'s' * (at_once != 1)} at once), {busy}; the {answer['other_jobs']} other "
        "jobs are not counted"
    )


def _power_section(rows: list[dict]) -> list[tuple[str, list[str], list[list[object]]]]:
    """Return the table of what the seeds can show, in points and percent; nothing without rows."""
    columns = ["task", "cell", "published", "n (theirs)", "spread", "margin"]
    columns += ["reproduced if equal", "at most", "seeds for 80 %", "smallest difference"]
    lines = [
        [
            row["task"] if row["metric"] == row["headline"] else f"{row['task']} {row['metric']}",
            cell_name(row),
            row["published"],
            f"{row['n']} ({row['published_n']})",
            *(f"{100 * row[name]:.1f}" for name in ("sd", "margin")),
            *(f"{100 * row[name]:.0f} %" for name in ("chance", "at_most")),
            "none do" if row["seeds"] is None else f"{row['seeds']:.0f}",
            f"{100 * row['smallest']:.1f}",
        ]
        for row in rows
        if row["sd"] is not None
    ]
    title = "what these seeds can show, if our spread is the one in the column"
    return [(title, columns, lines)] if lines else []


def _pair_section(rows: list[dict]) -> list[tuple[str, list[str], list[list[object]]]]:
    """Return the table of what the seeds can show of pairs; nothing where no spread is known."""
    columns = ["task", "pair", "asks", "n", "spread", "margin", "tests"]
    columns += ["smallest difference", "seeds for the margin"]
    lines = [
        [
            row["task"],
            f"{row['left']} - {row['right']}",
            row["asks"],
            f"{row['n_left']} and {row['n_right']}",
            *(f"{100 * row[name]:.1f}" for name in ("sd", "margin")),
            row["family"],
            f"{100 * row['smallest']:.1f}",
            "none do" if row["seeds"] is None else f"{row['seeds']:.0f}",
        ]
        for row in rows
        if row["sd"] is not None
    ]
    title = "what these seeds can show of pairs, in points (80 % of studies, after Holm)"
    return [(title, columns, lines)] if lines else []


def _claim_section(rows: list[dict]) -> list[tuple[str, list[str], list[list[object]]]]:
    """Return the table of claims that the study lists and can't test; nothing without such."""
    columns = ["claim", "why not", "runs it needs", "in cells", "run time in all"]
    lines: list[list[object]] = [
        [
            row["claim"],
            row["why"],
            len(row["runs"]),
            ", ".join(row["cells"]),
            "unknown" if row["seconds"] is None else duration(row["seconds"]),
        ]
        for row in rows
    ]
    title = "claims that the planned runs can't test; the further runs' settings are to be chosen"
    return [(title, columns, lines)] if lines else []


def sentences(answer: dict) -> list[str]:
    """Say what a study will take, in sentences made from `plan`'s answer."""
    counts = answer["runs"]
    jobs = ", ".join(f"{count} {rule}" for rule, count in answer["jobs"].items()) or "none"
    lines = [
        f"runs: {counts['all']}, done {counts['done']}, to do {counts['to do']}",
        f"jobs to do: {jobs}",
    ]
    if answer["steps"]:
        lines.append(f"optimizer steps: {answer['steps']:,}")
    priced = sum(answer["jobs"].get(rule, 0) for rule in ("crosscheck", *BESIDE))
    timed = counts["to do"] + priced - answer["jobs_without_estimate"]
    if timed:
        lines.append(_time(answer))
        whose = "GPU memory" if answer["planned gpu"] else "memory"
        lines.append(f"{whose}: {answer['memory_mib']:,.0f} MiB at once")
    if timed and not answer["planned gpu"]:
        lines[-1] += f"; disk: {naturalsize(answer['disk_bytes'])} of runs"
    if answer["jobs_without_estimate"]:
        beside = " and jobs that read runs" if any(map(answer["jobs"].get, BESIDE)) else ""
        what = f"runs{',' if beside else ' and'} cross-checks{beside}"
        lines.append(f"no estimate for {answer['jobs_without_estimate']} {what}")
    known = [row for row in answer["power"] if row["chance"] is not None]
    if unknown := len(answer["power"]) - len(known):
        have = "1 published number has" if unknown == 1 else f"{unknown} published numbers have"
        lines.append(
            f"{have} no ±: what the seeds can show beside them depends on the spread of the runs"
        )
    if weak := [row for row in known if row["chance"] < POWER]:
        lines.append(
            f"{len(weak)} of {len(known)} comparisons would be called reproduced in less than "
            f"{100 * POWER:.0f} % of studies like this one even if cell and number were equal"
        )
    if unknown := sum(row["sd"] is None for row in answer["pairs"]):
        lines.append(
            f"what the seeds can show of {unknown} pairs of methods depends on the spread over "
            "seeds: give one (--spread, in points), or ask again when two seeds are finished"
        )
    lines += _coarse_claims(answer["coarse"])
    return lines + [f"note: {note}" for note in answer["notes"]]


def _coarse_claims(factors: Mapping[str, float]) -> list[str]:
    """Say which claims the grids of `tune` are too coarse to support."""
    return [
        f"{claim}: the values to be tried lie too far apart to support it; neighbours would have "
        f"to lie within a factor of {math.floor(100 * factor) / 100:g}"
        for claim, factor in factors.items()
    ]
