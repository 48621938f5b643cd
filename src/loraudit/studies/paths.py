"""Find studies and runs on this disk by name.

The shell's completion runs this at each press of Tab, so neither torch nor pandas is imported.
"""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from loraudit.base.errors import UserError, unknown

if TYPE_CHECKING:
    from loraudit.studies.spec import RunSpec

RESULTS = Path("results")
FIGURES = Path("figures")
LOGS = Path("logs")
RESOURCES = Path("resources")
CONFIG = Path("config")


def tokens_folder(spec: "RunSpec") -> Path:
    """Return the folder of the tokens that a run or cross-check reads."""
    return RESOURCES / "tokens" / spec.task.name / f"{spec.model.name}-{spec.max_length}"


def training_log(logs: Path, run: str) -> Path:
    """Return the log of a run's training job; `logs` is the study's folder of logs."""
    cell, _, seed = run.rpartition("/")
    return logs / "train" / f"{cell}-{seed}.log"


def study_names() -> list[str]:
    """Return the studies that have results here or a file in config/studies, own or shipped."""
    from loraudit.base.shipped import own_and_shipped

    with_results = {path.parent.name for path in RESULTS.glob("*/study.json")}
    return sorted(with_results | {path.stem for path in own_and_shipped(CONFIG / "studies")})


def run_names() -> list[str]:
    """Return the finished runs on this disk as STUDY/TASK/MODEL/VARIANT/sSEED."""
    records = RESULTS.glob("*/runs/*/*/*/s*/record.json")
    return sorted("/".join((p.parts[1], *p.parts[3:-1])) for p in records)


def study_folder(name: str) -> Path:
    """Return the folder of a study's results.

    Args:
        name: a study's name, or the path of its folder.

    Raises:
        UserError: no study of that name has results here.
    """
    folder = _study_folder(name)
    if folder is None:
        with_results = sorted(path.parent.name for path in RESULTS.glob("*/study.json"))
        if not with_results:
            raise UserError(f"study: {name!r} has no results here; run it with snakemake first")
        raise unknown("study", name, with_results)
    return folder


def is_study(name: str) -> bool:
    """Tell whether a name, or a folder's path, is that of a study with results."""
    return _study_folder(name) is not None


def _study_folder(name: str) -> Path | None:
    folders = RESULTS / name, Path(name)
    return next((folder for folder in folders if (folder / "study.json").is_file()), None)


def study_name(given: str) -> str:
    """Return the name of a study that is given by its name, or by its folder below results/."""
    path = Path(given)
    return path.name if path.resolve().parent == RESULTS.resolve() else given


def run_folder(name: str) -> Path:
    """Return the folder of a run.

    Args:
        name: a path, or STUDY/RUN, or RUN if only one study has such a run.

    Raises:
        UserError: there is no such run, or several studies have one.
    """
    path = Path(name)
    if path.name == "record.json":
        path = path.parent
    if (path / "record.json").is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path}: no run here (record.json is missing)")
    known = run_names()
    fitting = [full for full in known if name in (full, full.partition("/")[2])]
    if len(fitting) > 1:
        raise UserError(f"run: {name!r} is in several studies; say which: {', '.join(fitting)}")
    if not fitting:
        near = [full.partition("/")[2] for full in known] if name.count("/") == 3 else known
        raise _unknown_run(name, near)
    study, _, run = fitting[0].partition("/")
    return RESULTS / study / "runs" / run


def _unknown_run(name: str, known: list[str]) -> UserError:
    if not known:
        return UserError(f"run: {name!r}: no finished run in {RESULTS}/*/runs")
    error = unknown("run", name, dict.fromkeys(known))
    head, _, _ = str(error).partition(" (legal:")
    return UserError(f"{head} (a folder with record.json, or one of {len(known)} run names)")


def settings(name: str, glue: str = "hub", models: str = "hub") -> dict | None:
    """Return the configuration that gives a study this name; None if there is none.

    A study with switches is called <file>[-<model>][-<task>]. Model and task are found by trying
    all, since their names may have hyphens too.
    """
    from loraudit.base.shipped import own_and_shipped, read_table

    files = {path.stem for path in own_and_shipped(CONFIG / "studies")}
    switches: tuple[str, str | None, str | None] | None
    if name in files:
        switches = (name, None, None)
    else:
        known = (
            [None, *read_table(CONFIG / "models.yaml", "models").get("models", {})],
            [None, *read_table(CONFIG / "tasks.yaml")],
        )
        candidates = itertools.product(sorted(files), *known)
        switches = next((s for s in candidates if "-".join(filter(None, s)) == name), None)
    if switches is None:
        return None
    study, model, task = switches
    changes = {"study": study, "model": model, "task": task, "glue": glue, "models": models}
    return {**configuration(), **changes}


def configuration() -> dict:
    """Return the keys of config.yaml; one that the own file leaves out is as in the shipped file.

    Raises:
        UserError: there is no such file.
    """
    from loraudit.base.shipped import read_table

    return read_table(CONFIG / "config.yaml")
