"""Studies and runs on this disk, found by name. Neither torch nor pandas: completion asks too."""

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


def study_names() -> list[str]:
    """Return the studies that have results here, and those of config/studies."""
    made = {path.parent.name for path in RESULTS.glob("*/study.json")}
    return sorted(made | {path.stem for path in (CONFIG / "studies").glob("*.yaml")})


def run_names() -> list[str]:
    """Return the finished runs here as STUDY/TASK/MODEL/VARIANT/sSEED."""
    found = RESULTS.glob("*/runs/*/*/*/s*/record.json")
    return sorted("/".join((p.parts[1], *p.parts[3:-1])) for p in found)


def study_folder(name: str) -> Path:
    """Return results/<name>.

    Raises:
        UserError: no study of that name has results here.
    """
    folder = RESULTS / name
    if not (folder / "study.json").is_file():
        made = sorted(path.parent.name for path in RESULTS.glob("*/study.json"))
        if not made:
            raise UserError(f"study: {name!r} has no results here; run it with snakemake first")
        raise unknown("study", name, made)
    return folder


def run_folder(name: str) -> Path:
    """Return the folder of a run: a path, STUDY/RUN, or RUN where one study alone has it.

    Raises:
        UserError: no such run, or several.
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
    """Return the configuration that gives a study this name, None if no study file does.

    A switched study is called <file>[-<model>][-<task>]: task= and model= are read back from it.
    """
    from loraudit.base.yaml_file import read_yaml

    files = {path.stem for path in (CONFIG / "studies").glob("*.yaml")}
    switches: tuple[str, str | None, str | None] | None
    if name in files:
        switches = (name, None, None)
    else:
        known = (
            [None, *read_yaml(CONFIG / "models.yaml").get("models", {})],
            [None, *read_yaml(CONFIG / "tasks.yaml")],
        )
        found = itertools.product(sorted(files), *known)
        switches = next((s for s in found if "-".join(filter(None, s)) == name), None)
    if switches is None:
        return None
    study, model, task = switches
    changes = {"study": study, "model": model, "task": task, "glue": glue, "models": models}
    return {**read_yaml(CONFIG / "config.yaml"), **changes}
