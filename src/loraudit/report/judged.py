"""A folder for scores that others made, beside published numbers: table, figure and page."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from loraudit.analysis.judging import CELL, published_verdicts
from loraudit.base.errors import UserError
from loraudit.base.files import folder_atomic, write_text
from loraudit.report.formatting import cell_text
from loraudit.report.page import shown_table
from loraudit.report.published import verdict_page, write_verdicts
from loraudit.studies.reference import Published

PAGE = "report.html"
FILES = ("verdicts.csv", "verdicts.md", "verdicts.svg", "verdicts.png", PAGE)
"""What a folder of a judgement holds, and nothing else."""


def write_judged(
    ours: Sequence[Published],
    theirs: Sequence[Published],
    margin: float | None,
    reading: str,
    out: Path,
    command: str,
) -> pd.DataFrame:
    """Judge scores, and write the folder with all of `FILES` or nothing.

    Args:
        ours: scores by seed (`score_files.as_published`).
        theirs, margin, reading: as in `published_verdicts`, whose rows are returned.
        out: a new folder, or one of an earlier judgement, which is replaced.
        command: what the page shows as the way to make it again.

    Raises:
        UserError: nothing can be compared, or `out` holds something else.
    """
    if out.is_file():
        raise UserError(f"out: {out} is a file; name a folder")
    others = sorted(path.name for path in out.glob("*") if path.name not in FILES)
    if others:
        raise UserError(f"out: {out} holds other files ({others[0]}); name a new folder")
    rows = published_verdicts(ours, theirs, margin, reading)
    keys = tuple(dict.fromkeys(number.key for number in theirs))
    read = score_table(ours)
    scores = {
        "id": "scores",
        "title": "Scores as they were read",
        "tables": [shown_table(read, "scores", "Scores by seed", first=10)],
    }
    facts = {
        "runs": f"Scores read: {len(read)}; tasks: {rows.task.nunique()}.",
        "comparison": "The scores are taken as their file gives them: no run of loraudit is "
        "behind them, and nothing here shows how they were made.",
    }
    with folder_atomic(out) as folder:
        table, text, figure = (folder / f"verdicts{suffix}" for suffix in (".csv", ".md", ".svg"))
        write_verdicts(rows, table, text, figure)
        page = verdict_page(
            rows, ours[0].key, keys, keys, reading, figure, facts, command, [scores]
        )
        write_text(folder / PAGE, page)
    return rows


def score_table(ours: Sequence[Published]) -> pd.DataFrame:
    """List the scores that count, a row per cell, epoch choice and seed."""
    names = [name for name in CELL if any(getattr(number, name) is not None for number in ours)]
    rows = []
    for number in ours:
        scale = 1.0 if number.unit == "percent" else 100.0
        cell = {name: cell_text(getattr(number, name)) for name in names}
        for seed, score in zip(number.seeds or {}, number.scores(), strict=True):
            of = {"seed": seed, "epoch": number.selection, "score, %": f"{scale * score:.2f}"}
            rows.append({**cell, **of})
    return pd.DataFrame(rows)
