"""How far a study is, from its files only: records, and the logs of rule train.

Only files are read, so this works on a cluster's front end while jobs run elsewhere. It keeps
nothing in memory for finished runs, so that it can watch 10,000 of them.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from loraudit.base.errors import UserError, unknown
from loraudit.base.files import cached_by_file
from loraudit.base.pipes import reader_left
from loraudit.base.shipped import own_or_shipped
from loraudit.base.yaml_file import read_yaml
from loraudit.studies import paths

STATES = ("done", "running", "silent", "failed", "waiting")
SICK = ("collapsed", "unmoved", "diverged")
"""What is counted of runs that are done: their scores are in the means."""

SILENT_SECONDS = 300
"""A job whose log is older may have been killed: while it runs, a line comes every 20 s or so."""

TAIL_BYTES = 8192
SHOWN = 20
"""The most runs that are listed per state; further ones are only counted."""

# The last line of a Python traceback: "torch.OutOfMemoryError: ...", "KeyboardInterrupt".
RAISED = re.compile(r"^(\w+\.)*\w*(Error|Exception|Interrupt|Warning|Killed)\b.*")

ENDED = re.compile(r"epoch (\d+)/\1:")
"""The last line of a run that was completed: epoch n of n. If such a run has no record, its result
was deleted after the log was written."""


class Place(NamedTuple):
    """A run as `status` needs it: where its files are, its spec, and the row that it counts in."""

    id: str
    task: str
    method: str
    spec_sha256: str


class RunState(NamedTuple):
    """A run's state, the last line of its log, its age in seconds, and what of `SICK` it is."""

    id: str
    state: str
    line: str = ""
    age: float | None = None
    sick: tuple[str, ...] = ()


def places(name: str) -> list[Place]:
    """Return the runs of a study, from its study.json or, if nothing ran yet, from its file.

    Raises:
        UserError: there is no such study.
    """
    path = paths.RESULTS / name / "study.json"
    if path.is_file():
        return _planned(path)[1]
    config = paths.settings(name)
    if config is None:
        raise unknown("study", name, paths.study_names())
    from loraudit.studies.expand import load_configured

    runs = load_configured(config).all_runs
    return [_place(run.model_dump(mode="json")) for run in runs]


def _place(run: dict) -> Place:
    """Return what `status` needs of a run as study.json has it."""
    spec = run["spec"]
    text = json.dumps(spec, sort_keys=True)  # as `spec.digest` does
    sha = hashlib.sha256(text.encode()).hexdigest()
    return Place(run["id"], spec["task"]["name"], spec["method"], sha)


def overview() -> list[dict]:
    """Return each study's name, question, runs and runs done; counts are None if none began."""
    found: list[dict] = []
    for name in paths.study_names():
        path = paths.RESULTS / name / "study.json"
        counts: dict[str, int | None] = {"runs": None, "done": None}
        try:
            if path.is_file():
                study, runs = _planned(path)
                done = sum(_finished(name, run) is not None for run in runs)
                counts = {"runs": len(runs), "done": done}
            else:
                study = read_yaml(own_or_shipped(paths.CONFIG / f"studies/{name}.yaml"))
        except UserError as error:
            study = {"question": str(error)}
        found.append({**_asked(name, study), **counts})
    return found


def _planned(path: Path) -> tuple[dict, list[Place]]:
    """Read a study.json: the study and its runs.

    Raises:
        UserError: it is damaged.
    """
    try:
        study = json.loads(path.read_text())
        runs = study["tuning"] + study["runs"]
        return study, [_place(run) for run in runs]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: can't be read ({said}); Snakemake makes it again") from None


def _asked(name: str, study: dict) -> dict:
    return {"study": name, "question": " ".join(str(study.get("question", "")).split())}


def states(name: str, runs: list[Place]) -> Iterator[RunState]:
    """Yield the state of every run of a study.

    done: it has a record of the spec that is planned. failed: its log ends in an error. running: it
    has a log. silent: it has a log to which nothing was written for `SILENT_SECONDS`. waiting: it
    has no log, or the log of a result that was deleted or was made from another spec.
    """
    for run in runs:
        sick = _finished(name, run)
        if sick is None:
            yield _unfinished(run.id, log_file(name, run.id))
        else:
            yield RunState(run.id, "done", sick=sick)


def _finished(study: str, run: Place) -> tuple[str, ...] | None:
    """Return what of `SICK` a run that is done is; None if it has no record of its spec."""
    record = paths.RESULTS / study / "runs" / run.id / "record.json"
    if not record.is_file():
        return None
    spec, sick = _read(record)
    return sick if spec in (run.spec_sha256, None) else None


@cached_by_file
def _read(record: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return the digest of the spec, as planned, of a record, and what of `SICK` the run is.

    A damaged record, which is `verify`'s to name, gives None and nothing.
    """
    try:
        content = json.loads(record.read_text())
        spec, train = content["spec_sha256"], content["train"]
        if content["spec"]["tuned"]:  # it has the values that were chosen
            from loraudit.studies.spec import RunSpec, digest

            spec = digest(RunSpec(**content["spec"]).planned())
        first = next(iter(train["epochs"]), None)  # the choice that is shown first
        found = first in train["collapsed"], train["unmoved"], train["diverged"] is not None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, ()
    return spec, tuple(name for name, sick in zip(SICK, found, strict=True) if sick)


def log_file(study: str, run: str) -> Path:
    """Return the log of a run's training job."""
    return paths.training_log(paths.LOGS / study, run)


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
    """Return the lines in the last 8 KiB of a file, without blank ones."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def error_line(lines: list[str]) -> str:
    """Return the error that a log ends with, or "" if it ends without one.

    This is our own line "error: ..." or else what Python raised. The launcher prints a traceback of
    its own after the program's, so the first traceback counts.
    """
    own = [line for line in lines if line.startswith("error: ")]
    if own:
        return own[-1]
    raised = [number for number, line in enumerate(lines) if line.startswith("Traceback ")]
    after = lines[raised[0] :] if raised else []
    return next((line for line in after if RAISED.match(line)), "a traceback" if raised else "")


def summary(name: str, runs: list[Place]) -> dict:
    """Count a study's runs by state, in all and per task and method; and of those done, the sick.

    Runs that failed, are silent, are running or are sick are also listed one by one, up to `SHOWN`
    each.
    """
    cells: dict[tuple[str, str], Counter] = {}
    listed: dict[str, list[dict]] = {state: [] for state in ("failed", "silent", "running", *SICK)}
    for run, now in zip(runs, states(name, runs), strict=True):
        cells.setdefault((run.task, run.method), Counter()).update((now.state, *now.sick))
        for state in (now.state, *now.sick):
            if state in listed and len(listed[state]) < SHOWN:
                listed[state].append({**now._asdict(), "sick": list(now.sick)})
    total = sum(cells.values(), Counter())
    return {
        "study": name,
        "runs": len(runs),
        **{state: total[state] for state in (*STATES, *SICK)},
        "cells": [
            {"task": task, "method": method, **{s: counts[s] for s in (*STATES, *SICK)}}
            for (task, method), counts in cells.items()
        ],
        "listed": listed,
    }


def renderable(counts: dict):
    """Turn `summary`'s answer into a table of counts, with the listed runs below it."""
    from rich.console import Group
    from rich.text import Text

    from loraudit.base.terminal import Grid, duration, grid

    columns = _columns(counts)
    rows = [
        [cell["task"], cell["method"], *(cell[s] or "" for s in columns)]
        for cell in counts["cells"]
    ]
    if len(rows) > 1:
        rows.append(["all", "", *(counts[state] or "" for state in columns)])
    title = f"{counts['study']}: {counts['done']} of {counts['runs']} runs done"
    parts: list[Grid | Text] = [grid(title, ["task", "method", *columns], rows)]
    for state, runs in counts["listed"].items():
        for run in runs:
            when = f", {duration(run['age'])} ago: {run['line']}" if state not in SICK else ""
            line = f"{state}: {run['id']}{when}"
            parts.append(Text(line, style="red" if state == "failed" else ""))
        if counts[state] > len(runs):
            parts.append(Text(f"{state}: and {counts[state] - len(runs)} more"))
    return Group(*parts)


def _columns(counts: dict) -> list[str]:
    """Return the states, and of the kinds of sick runs those that there are."""
    return [*STATES, *(kind for kind in SICK if counts[kind])]


def watch(name: str, runs: list[Place], every: float) -> None:
    """Show a study until it is done, live on a terminal and as one line per change in a pipe.

    Args:
        name: the study's name.
        runs: its runs, from `places`.
        every: seconds between updates.
    """
    from rich.live import Live

    from loraudit.base.terminal import console

    screen = console()
    counts = summary(name, runs)
    if not screen.is_terminal:
        _lines(name, runs, every, counts)
        return
    with Live(renderable(counts), console=screen, auto_refresh=False) as live:
        while counts["done"] < counts["runs"]:
            time.sleep(every)
            counts = summary(name, runs)
            live.update(renderable(counts), refresh=True)


def _lines(name: str, runs: list[Place], every: float, counts: dict) -> None:
    last = ""
    while True:
        line = ", ".join(f"{counts[state]} {state}" for state in _columns(counts))
        if line != last:
            print(f"{name}: {line}", flush=True)
        last = line
        if counts["done"] == counts["runs"] or reader_left():
            return
        time.sleep(every)
        counts = summary(name, runs)
