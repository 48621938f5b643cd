"""How far a study is, from its files only: records, and the logs of rule train.

Shared files are enough, so this works on a cluster's front end while jobs run elsewhere. Nothing is
kept per finished run, so that it also watches 10,000.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from loraudit.base.errors import unknown
from loraudit.studies import paths

STATES = ("done", "running", "silent", "failed", "waiting")
SILENT_SECONDS = 300
"""A running job whose log is older may have been killed; a log line comes every 20 s or so."""

TAIL_BYTES = 8192
SHOWN = 20
"""Runs that are listed per state; the rest is counted."""

RAISED = re.compile(r"^(\w+\.)*\w*(Error|Exception|Interrupt|Warning|Killed)\b.*")

ENDED = re.compile(r"epoch (\d+)/\1:")
"""The last line of a run that went through; without its record, the log is of an earlier result."""


class Place(NamedTuple):
    """What is needed of a run to look for it."""

    id: str
    task: str
    method: str


class RunState(NamedTuple):
    """A run's state; `line` is its log's last word, `age` the seconds since."""

    id: str
    state: str
    line: str = ""
    age: float | None = None


def places(name: str) -> list[Place]:
    """Return the runs of a study: of its study.json, or of its file where nothing ran yet.

    Raises:
        UserError: no such study.
    """
    path = paths.RESULTS / name / "study.json"
    if path.is_file():
        runs = json.loads(path.read_text())["runs"]
        return [Place(r["id"], r["spec"]["task"]["name"], r["spec"]["method"]) for r in runs]
    config = paths.settings(name)
    if config is None:
        raise unknown("study", name, paths.study_names())
    from loraudit.studies.expand import load_configured

    runs = load_configured(config).runs
    return [Place(run.id, run.spec.task.name, run.spec.method) for run in runs]


def states(name: str, runs: list[Place]) -> Iterator[RunState]:
    """Look at every run of a study.

    done: its record is there. failed: its log ends in an error. running: it has a log. silent: so,
    but nothing was written for `SILENT_SECONDS`. waiting: no log, or a deleted result's.
    """
    for run in runs:
        if (paths.RESULTS / name / "runs" / run.id / "record.json").is_file():
            yield RunState(run.id, "done")
        else:
            yield _unfinished(run.id, log_file(name, run.id))


def log_file(study: str, run: str) -> Path:
    """Return the log of a run's training job."""
    cell, _, seed = run.rpartition("/")
    return paths.LOGS / study / "train" / f"{cell}-{seed}.log"


def _unfinished(run: str, log: Path) -> RunState:
    try:
        age = time.time() - log.stat().st_mtime
        lines = tail(log)
    except FileNotFoundError:
        return RunState(run, "waiting")
    error = error_line(lines)
    if error:
        return RunState(run, "failed", error, age)
    last = lines[-1] if lines else "starting"
    if age < SILENT_SECONDS:
        return RunState(run, "running", last, age)
    return RunState(run, "waiting" if ENDED.match(last) else "silent", last, age)


def tail(path: Path) -> list[str]:
    """Return the last lines of a file that are not blank, from its last 8 KiB."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def error_line(lines: list[str]) -> str:
    """Return the error that a log ends with, "" if none: our own line, or what Python raised.

    The launcher prints a traceback of its own after the program's.
    """
    own = [line for line in lines if line.startswith("error: ")]
    if own:
        return own[-1]
    raised = [number for number, line in enumerate(lines) if line.startswith("Traceback ")]
    after = lines[raised[0] :] if raised else []
    return next((line for line in after if RAISED.match(line)), "a traceback" if raised else "")


def summary(name: str, runs: list[Place]) -> dict:
    """Count a study's runs by state, in all and per task and method, and list those not at rest."""
    cells: dict[tuple[str, str], Counter] = {}
    listed: dict[str, list[dict]] = {state: [] for state in ("failed", "silent", "running")}
    for run, found in zip(runs, states(name, runs), strict=True):
        cells.setdefault((run.task, run.method), Counter())[found.state] += 1
        if found.state in listed and len(listed[found.state]) < SHOWN:
            listed[found.state].append(found._asdict())
    total = sum(cells.values(), Counter())
    return {
        "study": name,
        "runs": len(runs),
        **{state: total[state] for state in STATES},
        "cells": [
            {"task": task, "method": method, **{state: counts[state] for state in STATES}}
            for (task, method), counts in cells.items()
        ],
        "listed": listed,
    }


def renderable(found: dict):
    """Turn `summary`'s answer into a table with the runs that need a look below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from loraudit.base.terminal import duration, grid

    rows = [
        [cell["task"], cell["method"], *(cell[s] or "" for s in STATES)] for cell in found["cells"]
    ]
    if len(rows) > 1:
        rows.append(["all", "", *(found[state] or "" for state in STATES)])
    title = f"{found['study']}: {found['done']} of {found['runs']} runs done"
    parts: list[Table | Text] = [grid(title, ["task", "method", *STATES], rows)]
    for state, runs in found["listed"].items():
        for run in runs:
            line = f"{state}: {run['id']}, {duration(run['age'])} ago: {run['line']}"
            parts.append(Text(line, style="red" if state == "failed" else ""))
        if found[state] > len(runs):
            parts.append(Text(f"{state}: and {found[state] - len(runs)} more"))
    return Group(*parts)


def watch(name: str, runs: list[Place], every: float) -> None:
    """Show a study until it is done: live on a terminal, a line per change in a pipe.

    Args:
        every: seconds between looks.
    """
    from rich.live import Live

    from loraudit.base.terminal import console

    screen = console()
    found = summary(name, runs)
    if not screen.is_terminal:
        _lines(name, runs, every, found)
        return
    with Live(renderable(found), console=screen, auto_refresh=False) as live:
        while found["done"] < found["runs"]:
            time.sleep(every)
            found = summary(name, runs)
            live.update(renderable(found), refresh=True)


def _lines(name: str, runs: list[Place], every: float, found: dict) -> None:
    said = ""
    while True:
        line = ", ".join(f"{found[state]} {state}" for state in STATES)
        if line != said:
            print(f"{name}: {line}", flush=True)
        said = line
        if found["done"] == found["runs"]:
            return
        time.sleep(every)
        found = summary(name, runs)
