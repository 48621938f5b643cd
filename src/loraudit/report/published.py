"""Set scores by seed beside published numbers: table, figure and page. No run of ours is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from loraudit.analysis.judging import published_verdicts
from loraudit.base.files import write_atomic, write_text
from loraudit.base.written_yaml import read_written
from loraudit.report.figure_style import save
from loraudit.report.forest_figures import describe_published, published
from loraudit.report.formatting import markdown
from loraudit.report.page import captions, fill, picture, shown_table, sources
from loraudit.report.page_answer import published_answer
from loraudit.report.page_facts import verdict_fact
from loraudit.report.table_registry import TABLES
from loraudit.report.tables import published_table
from loraudit.studies.reference import select
from loraudit.studies.study_file import PublishedFile
from loraudit.studies.values import validated

REMAKE = "snakemake --cores 1 published"
"""The command that makes the comparison of config/published.yaml again."""


def write_published(numbers: Path, table: Path, text: Path, figure: Path, page: Path) -> None:
    """Compare published numbers and write the verdicts.

    Args:
        numbers: config/published.yaml, which says what is compared with what.
        table, text, page: the CSV, Markdown and HTML files to write.
        figure: the SVG file to write; PNG and CSV go beside it.

    Raises:
        UserError: a key or a published table that does not exist.
    """
    asked = validated(PublishedFile, read_written(numbers), str(numbers))
    ours = select(asked.ours)
    rows = published_verdicts(ours, select(asked.compare), asked.margin, asked.reading)
    write_verdicts(rows, table, text, figure)
    names = " and ".join(dict.fromkeys(rows.ours))
    facts = {
        "runs": f"Numbers that were compared: {len(rows)}; tasks: {rows.task.nunique()}.",
        "comparison": "All of them are as their sources print them: no run of loraudit is behind "
        "them.",
    }
    keys = (*dict.fromkeys(rows.ours), *asked.compare)
    write_text(page, verdict_page(rows, names, asked.compare, keys, asked.reading, figure, facts))


def write_verdicts(verdicts: pd.DataFrame, table: Path, text: Path, figure: Path) -> None:
    """Write the rows of `published_verdicts` as CSV and Markdown, and as a figure."""
    write_atomic(table, lambda path: verdicts.to_csv(path, index=False))
    write_text(text, markdown(published_table(verdicts)))
    save(published(verdicts), verdicts, figure.with_suffix(""))


def verdict_page(
    rows: pd.DataFrame,
    name: str,
    beside: Sequence[str],
    keys: tuple[str, ...],
    reading: str,
    figure: Path,
    facts: dict[str, str],
    remake: str = REMAKE,
    further: Sequence[dict[str, Any]] = (),
) -> str:
    """Return a page of verdicts in the layout of a study's report.

    Args:
        rows: of `published_verdicts`.
        name: what the scores are called.
        beside: the keys of the numbers that they are set beside.
        keys: the published tables to cite.
        reading: what an unexplained ± was taken to be.
        figure: an SVG file of the verdicts with its CSV beside it.
        facts: `runs` and `comparison`, which say what was compared.
        remake: the command that makes the page again.
        further: sections behind the verdicts'.
    """
    others = " and ".join(beside)
    cited = [*{entry["key"]: {**entry, "note": ""} for entry in sources(keys)}.values()]
    called = {entry["key"]: f"{entry['authors']} {entry['year']}" for entry in cited}
    theirs = dict.fromkeys(called.get(key, key) for key in beside)
    drawn = picture(
        figure,
        f"{name}-verdicts.csv",
        id="verdicts",
        title="Difference to published numbers",
        alt=describe_published(rows),
        caption=captions()["published"],
        remake=remake,
    )
    verdicts = {
        "id": "verdicts",
        "title": "Beside published numbers",
        "fact": verdict_fact(reading, rows),
        "tables": [_shown(rows)],
    }
    return fill(
        name=f"{name} beside {others}",
        title=f"{called.get(name, name)} beside {' and '.join(theirs)}",
        question=f"Do the scores in {name} agree with the numbers of {others}?",
        facts=facts,
        answer=[published_answer(rows)],
        hero=drawn,
        sections=[verdicts, *further],
        sources=cited,
    )


FIRST = ("mean ± SD, %", "n", "published", "difference", "95 % interval")
"""The columns that stand right after what names a row and its verdict."""


def _shown(rows: pd.DataFrame) -> dict:
    """Return what the page shows of the verdicts: the scores and the word first."""
    table = published_table(rows)
    place = list(table).index("source")
    order = [*table.columns[:place], *FIRST]
    order += [name for name in table if name not in order]
    details = (*TABLES["verdicts"].details, "median", "remarks")
    title = "Verdict per cell and published number"
    return shown_table(table[order], "verdicts", title, first=12, details=details)
