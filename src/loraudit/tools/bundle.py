"""A study as one RO-Crate: specs, records, tables, figures and report, to archive or hand on.

The crate (https://w3id.org/ro/crate) is a zip with ro-crate-metadata.json, which names every file,
its hash, the code's commit and the licence. By the profile Process Run Crate it also says which
program made which files from what (a CreateAction), and it has the study's verdicts on claims of
papers (crate_verdicts.py). It needs the package rocrate (extra "bundle").
"""

import mimetypes
import os
from datetime import UTC, datetime
from importlib.metadata import metadata
from pathlib import Path

import pandas as pd

from loraudit.analysis.tidy_files import read_table
from loraudit.base.errors import UserError
from loraudit.base.files import sha256, write_atomic
from loraudit.base.progress import progress
from loraudit.base.provenance import git_state
from loraudit.base.shipped import ROOT, own_or_shipped, shipped
from loraudit.studies import paths
from loraudit.studies.record import read_record
from loraudit.studies.study import Run, Study, read_study
from loraudit.tools.crate_verdicts import PROFILE, SCHEMA, TERMS, entities

RUN_FILES = ("spec.json", "record.json", "history.csv", "predictions.parquet")
KINDS = {".parquet": "application/vnd.apache.parquet", ".jsonl": "application/jsonl"}
KINDS |= {
    ".md": "text/markdown",
    ".yaml": "application/yaml",
    ".safetensors": "application/octet-stream",
}


def bundle(study: str, out: Path, weights: bool = False) -> dict:
    """Write a study's RO-Crate.

    Args:
        study: the study's name.
        out: the zip to write, which must not exist.
        weights: whether to include the runs' adapters.

    Returns:
        The numbers of files, bytes and runs in it, and the ids of runs that are not finished.

    Raises:
        UserError: there is no such study or no finished run, `out` exists or is not named .zip, or
            rocrate is not installed.
    """
    if out.suffix != ".zip":
        raise UserError(f"out: {str(out)!r} is not the name of a zip file (legal: NAME.zip)")
    if out.exists():
        raise UserError(f"out: {out} exists already; name a new file")
    folder = paths.study_folder(study)
    content = read_study(folder / "study.json")
    done = [run for run in content.all_runs if (folder / "runs" / run.id / "record.json").is_file()]
    if not done:
        raise UserError(f"study: {study!r} has no finished run to bundle")
    files = study_files(content, folder, done, weights)
    crate = _crate(content, folder, done)
    for path in progress(files, len(files), "bundle"):
        _add(crate, path, _name(path, folder))
    _add_action(crate, content, folder, done)
    _add_verdicts(crate, content.name, folder / "tables" / "claims.csv")
    write_atomic(out, lambda temporary: crate.write_zip(temporary))
    missing = [run.id for run in content.all_runs if run not in done]
    size = sum(path.stat().st_size for path in files)
    return {"files": len(files), "bytes": size, "runs": len(done), "missing": missing}


def study_files(study: Study, folder: Path, done: list[Run], weights: bool) -> list[Path]:
    """List the files of a study that a bundle holds."""
    wanted = [folder / "study.json", folder / "report.html", shipped("LICENSE")]
    config = paths.settings(study.name)
    if config:
        wanted.append(own_or_shipped(paths.CONFIG / "studies" / f"{config['study']}.yaml"))
    for run in done:
        own = folder / "runs" / run.id
        wanted += [own / name for name in RUN_FILES]
        wanted += sorted((own / "adapter").rglob("*")) if weights else []
    for part in ("crosscheck", "forgetting", "language_loss", "tidy", "tables"):
        wanted += sorted((folder / part).rglob("*"))
    wanted += sorted((_root(folder) / paths.FIGURES / study.name).glob("*"))
    return [path for path in wanted if path.is_file() and not path.name.startswith(".")]


def _crate(study: Study, folder: Path, done: list[Run]):
    """Make a crate that says what the study is, which code made it, and under which licence."""
    try:
        from rocrate.model import ContextEntity, SoftwareApplication
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise UserError("bundle needs rocrate: pip install 'loraudit[bundle]'") from None

    project = metadata("loraudit")
    commits = _commits(folder, done)
    crate = ROCrate(version="1.1")  # the one that the profile extends
    crate.metadata.extra_terms.update({term: SCHEMA + term for term in TERMS})
    profile = {"@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    crate.root_dataset["conformsTo"] = crate.add(ContextEntity(crate, PROFILE, profile))
    crate.name = f"loraudit study {study.name}"
    crate.description = f"{study.question} {len(done)} of {len(study.all_runs)} runs are finished."
    crate.keywords = ["LoRA", "reproducibility", study.name]
    licence = project["License-Expression"]
    terms = ContextEntity(
        crate, f"https://spdx.org/licenses/{licence}", {"@type": "CreativeWork", "name": licence}
    )
    crate.license = crate.add(terms)
    code = SoftwareApplication(crate, "#code", {"name": "loraudit", "version": project["Version"]})
    code = crate.add(code)
    code["softwareVersion"] = ", ".join(commits) or "unknown"
    code["description"] = project["Summary"]
    crate.root_dataset["isBasedOn"] = code
    return crate


def _add_action(crate, study: Study, folder: Path, done: list[Run]) -> None:
    """Say that the code made the crate's results from the study's file, and when it ended."""
    from rocrate.model import ContextEntity

    records = [folder / "runs" / run.id / "record.json" for run in done]
    last = datetime.fromtimestamp(max(path.stat().st_mtime for path in records), UTC)
    asked = crate.get(_name(folder / "study.json", folder))
    made = [entity for entity in crate.data_entities if entity not in (asked, crate.get("LICENSE"))]
    config = paths.settings(study.name) or {"study": study.name}
    given = ((key, config.get(key)) for key in ("study", "model", "task"))
    switches = " ".join(f"{key}={value}" for key, value in given if value is not None)
    action = {
        "@type": "CreateAction",
        "name": f"Study {study.name}: {len(done)} runs, their tables and figures",
        "description": f"snakemake --cores 2 --config {switches}",
        "endTime": last.isoformat(timespec="seconds"),
        "instrument": {"@id": "#code"},
        "object": [{"@id": asked.id}],
        "result": [{"@id": entity.id} for entity in made],
    }
    crate.root_dataset["mentions"] = [crate.add(ContextEntity(crate, "#study", action))]


def _add_verdicts(crate, study: str, file: Path) -> None:
    """Add a study's verdicts on claims, if it has any."""
    from rocrate.model import ContextEntity

    table = read_table(file) if file.is_file() else pd.DataFrame()
    if table.empty:
        return
    reviews = []
    for entity in entities(table, study):
        added = crate.add(ContextEntity(crate, entity.pop("@id"), entity))
        if entity["@type"] == "ClaimReview":
            reviews.append(added)
    crate.root_dataset["mentions"] = [*crate.root_dataset["mentions"], *reviews]


def _commits(folder: Path, done: list[Run]) -> list[str]:
    """Return the commits that made the runs, and today's, and say which had uncommitted changes."""
    states = [
        read_record(folder / "runs" / run.id / "record.json").environment["git"] for run in done
    ]
    marked = {
        f"{state['commit']}{' with uncommitted changes' if state['dirty'] else ''}"
        for state in (*states, git_state())
        if state["commit"]
    }
    return sorted(marked)


def _add(crate, path: Path, name: str) -> None:
    kind = KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    facts = {"sha256": sha256(path), "contentSize": str(path.stat().st_size)}
    facts |= {"encodingFormat": kind} if kind else {}
    crate.add_file(path, name, properties=facts)


def _root(folder: Path) -> Path:
    """Return the folder in which the results lie that have a study's folder."""
    return Path(os.path.abspath(folder)).parents[1]


def _name(path: Path, folder: Path) -> str:
    """Return a file's name in the crate of the study in `folder`.

    It is as the file is called where the results lie, in the repository or in the working folder.
    """
    path = Path(os.path.abspath(path))
    places = (_root(folder), ROOT, Path.cwd())
    place = next(place for place in places if path.is_relative_to(place))
    return path.relative_to(place).as_posix()
