"""Judge scores that others made against published numbers, for `loraudit judge`."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pandas as pd

from loraudit.analysis.judging import telling
from loraudit.base.errors import Misuse, UserError, unknown
from loraudit.base.shipped import own_or_shipped
from loraudit.report.formatting import JUDGED, cell_words, interval, percent, points
from loraudit.report.judged import write_judged
from loraudit.report.tables import worded
from loraudit.studies.accounts import FOLDER as PROTOCOLS
from loraudit.studies.reference import select
from loraudit.studies.run_logs import log_files, read_log, seed_in_name
from loraudit.studies.score_files import (
    CELL,
    COLUMNS,
    PER_ROW,
    Legal,
    Score,
    as_published,
    legal_names,
    read_table,
)
from loraudit.studies.study_file import Reading

GIVEN = tuple(name for name in COLUMNS if name not in PER_ROW)
"""Fields whose value may be given once for all rows."""


class Asked(NamedTuple):
    """What is asked of `judge`: the options of `loraudit judge`."""

    files: Sequence[Path]
    against: Sequence[str]
    given: Mapping[str, Any]
    protocol: str | None
    margin: float | None
    reading: str
    out: Path | None


def judge(asked: Asked) -> tuple[pd.DataFrame, Path]:
    """Read the scores, judge them and write the folder; return the rows and the folder.

    Raises:
        UserError: see `score_files`, `run_logs`, `judging.published_verdicts` and `write_judged`.
    """
    for name, value in asked.given.items():
        if name not in GIVEN:
            raise Misuse(str(unknown("set", name, GIVEN)))
        if value is None and name in (*CELL, "epoch_choice"):
            raise Misuse(f"set: {name}: expected {name}=VALUE, got no value")
    if asked.reading not in get_args(Reading):
        raise unknown("reading", asked.reading, get_args(Reading))
    if asked.protocol and not own_or_shipped(PROTOCOLS / f"{asked.protocol}.yaml").is_file():
        legal = (path.stem for path in own_or_shipped(PROTOCOLS).glob("*.yaml"))
        raise unknown("protocol", asked.protocol, legal)
    theirs = select(tuple(dict.fromkeys(asked.against)), asked_as="against")
    name = called(asked.files)
    protocol = (asked.protocol,) if asked.protocol else ()
    ours = as_published(read(asked.files, asked.given, legal_names(theirs)), name, protocol)
    out = asked.out or Path("judged") / called(asked.files, short=True)
    return write_judged(ours, theirs, asked.margin, asked.reading, out, _command(asked)), out


def called(files: Sequence[Path], short: bool = False) -> str:
    """Name the scores: the file's or folder's name, and how many more there are.

    Args:
        files: as they are given.
        short: leave out what a file's name says of its kind: "results" of results.csv.
    """
    first = files[0].resolve()
    name = first.stem if short and first.is_file() else first.name
    return name if len(files) == 1 else f"{name} and {len(files) - 1} more"


def read(files: Sequence[Path], given: Mapping[str, Any], legal: Legal) -> list[Score]:
    """Read tables (CSV) and logs (JSON, or folders of them).

    Raises:
        UserError: a file is not there, is there twice, or can't be read as what it is.
    """
    scores: list[Score] = []
    seeds: dict[Path, int | None] = {}
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: there is no such file or folder")
        found = log_files(file) if file.is_dir() else [file]
        for path in found:
            if path in seeds:
                raise UserError(f"{path}: this file is named twice")
            seeds[path] = seed_in_name(path, within=file, alone=len(found) == 1)
    free = (seed for seed in count() if seed not in seeds.values())
    for path, seed in seeds.items():
        if path.suffix == ".json":
            scores += read_log(path, next(free) if seed is None else seed, given, legal)
        else:
            scores += read_table(path, given, legal)
    return scores


def _command(asked: Asked) -> str:
    words = ["loraudit", "judge", *map(str, asked.files)]
    for key in asked.against:
        words += ["--against", key]
    for key, value in asked.given.items():
        words += ["--set", f"{key}={value}"]
    words += ["--protocol", asked.protocol] if asked.protocol else []
    words += [] if asked.margin is None else ["--margin", f"{100 * asked.margin:g}"]
    words += [] if asked.reading == "sd" else ["--reading", asked.reading]
    return shlex.join(words)


def sections(rows: pd.DataFrame) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the table that the command prints."""
    shown = telling(rows)
    columns = ["cell", "n", "mean ± SD, %", "published", "difference", "95 % interval", "verdict"]
    lines = [
        [
            cell_words(row._asdict(), shown),
            f"{row.n}",
            percent(row.mean, row.sd, digits=2),
            percent(row.published_value, row.published_sd) if row.published else "",
            points(row.difference, JUDGED),
            interval(row.low, row.high, JUDGED),
            worded(row),
        ]
        for row in rows.itertuples()
    ]
    return [("scores beside published numbers", columns, lines)]


def sentences(rows: pd.DataFrame, out: Path) -> list[str]:
    """Return each row's remarks, and what was written."""
    shown = telling(rows)
    remarks = [f"{cell_words(row, shown)}: {row['reason']}" for row in rows.to_dict("records")]
    return [*remarks, f"wrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}"]


def as_data(rows: pd.DataFrame, out: Path, against: Sequence[str]) -> dict[str, Any]:
    """Return the answer as data, for `--json`."""
    return {"out": str(out), "against": list(against), "rows": rows.to_dict("records")}
