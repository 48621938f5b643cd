"""The registry of tables: one entry for each.

An entry names its code by strings, which are looked up when the table is made: the Snakefile reads
the entries when it is parsed, and must not import pandas or torch for them.
"""

from dataclasses import dataclass
from pathlib import Path

from loraudit.base.named_code import module_of
from loraudit.base.shipped import shipped

TIDY = (
    *("runs", "crosscheck", "twins", "history", "ranks", "tuning", "row_errors", "forgetting"),
    "language_loss",
)
"""The tidy tables that are collected from the runs' records and from jobs beside them."""

SECTION7 = ("spectra", "amplification", "intruders", "subspaces")
"""The tidy tables of section 7, which are measured on the saved adapters."""


@dataclass(frozen=True)
class Table:
    """One table of a study's page.

    With `make`, it is also one of the study's files, tables/<name>.csv and .md: `make(study, runs)`
    returns its rows from the tidy runs (and from further tidy tables, `tidy`, as further
    arguments), and `readable(rows)` the form for readers. One that is `late` is made after
    section 7 and gets all tidy tables that there are, by name, in their place. Without `make`
    it is on the page only, and `readable(source)` makes it from one thing that the page knows
    (`page.evidence`); "" takes that as it is. Functions are named as "module:function". A note from
    workflow/report/<name>.rst stands above it on the page, if there is that file. `scores` tells
    that each row is of a model's scores on a task, or on all tasks of the study.

    On the page `first` rows are seen before a reader asks for all (0: all are), the columns
    `details` stand in a second table that is folded, and one that is `folded` is so as a whole.
    """

    name: str
    title: str
    section: str
    readable: str = ""
    make: str = ""
    source: str = ""
    tidy: tuple[str, ...] = ()
    scores: bool = False
    late: bool = False
    first: int = 0
    details: tuple[str, ...] = ()
    folded: bool = False


STUDY = "loraudit.report.tables"
PAGE = "loraudit.report.page_tables"

TESTED = ("asks", "p (Holm)", "correlation by seed", "family")
"""Columns on how a difference was tested."""

_TABLES = (
    Table(
        name="claims",
        title="What papers claim, and what this study shows of it",
        section="claims",
        make="loraudit.report.claim_tables:claim_rows",
        readable="loraudit.report.claim_tables:claim_table",
        scores=True,
        late=True,
        first=6,
        details=("holds if", "epoch", "could have shown", "remarks"),
    ),
    Table(
        name="missing",
        title="Runs and cross-checks without a result",
        section="missing",
        source="missing",
    ),
    Table(
        name="switched",
        title="What each switch sets",
        section="protocol",
        source="study",
        readable=f"{PAGE}:switched_table",
        folded=True,
    ),
    Table(
        name="protocol",
        title="Every field of a run",
        section="protocol",
        source="study",
        readable=f"{PAGE}:protocol_table",
        folded=True,
    ),
    Table(
        name="verdicts",
        title="Verdict per cell and published number",
        section="verdicts",
        make=f"{STUDY}:verdict_rows",
        readable=f"{STUDY}:verdict_table",
        scores=True,
        first=8,
        details=(
            *("metric", "90 % interval", "margin", "p different (Holm)", "p equivalent"),
            *("p beyond the margin (Holm)", "chance of reproduced if equal"),
            *("smallest difference found (80 %)", "why"),
        ),
    ),
    Table(
        name="switches",
        title="Effect of each switch",
        section="switches",
        make=f"{STUDY}:switch_rows",
        readable=f"{STUDY}:switch_table",
        scores=True,
        first=8,
        details=TESTED,
    ),
    Table(
        name="summary",
        title="Scores per cell",
        section="scores",
        make=f"{STUDY}:summary_rows",
        readable=f"{STUDY}:summary_table",
        scores=True,
        first=12,
        details=("adapter parameters",),
    ),
    Table(
        name="pairs",
        title="Methods compared",
        section="scores",
        make=f"{STUDY}:contrast_rows",
        tidy=("row_errors",),
        readable=f"{STUDY}:contrast_table",
        scores=True,
        first=6,
        details=(*TESTED, "task: p (Holm)", "task: finding"),
    ),
    Table(
        name="aggregates",
        title="Methods compared over all tasks",
        section="scores",
        make=f"{STUDY}:aggregate_rows",
        readable=f"{STUDY}:aggregate_table",
        scores=True,
        first=6,
    ),
    Table(
        name="shipped",
        title="Each cell beside its shipped value",
        section="shipped",
        source="shipped",
        readable="loraudit.report.page_shipped:shipped_table",
        first=5,
    ),
    Table(
        name="forgetting",
        title="What was forgotten of earlier tasks",
        section="scores",
        make="loraudit.report.forgetting_table:forgetting_rows",
        readable="loraudit.report.forgetting_table:forgetting_table",
        tidy=("forgetting",),
        scores=True,
    ),
    Table(
        name="language_loss",
        title="What training did to the base as a language model",
        section="scores",
        make="loraudit.report.forgetting_table:language_rows",
        readable="loraudit.report.forgetting_table:language_table",
        tidy=("language_loss",),
        scores=True,
    ),
    Table(
        name="tuning",
        title="What each cell takes of what was tried",
        section="tuning",
        make=f"{STUDY}:tuning_rows",
        readable=f"{STUDY}:tuning_table",
        tidy=("tuning",),
        scores=True,
        first=8,
        details=("of so many tried", "lead, points", "over", "at the edge", "rate / full's"),
    ),
    Table(
        name="cost",
        title="Cost per cell",
        section="cost",
        make=f"{STUDY}:cost_rows",
        readable=f"{STUDY}:cost_table",
        first=5,
        details=("head", "share of the model", "disk per task", "padded / real tokens"),
    ),
    Table(
        name="crosscheck",
        title="The largest difference of each check over all cells",
        section="crosscheck",
        source="tidy/crosscheck",
        readable=f"{PAGE}:crosscheck_table",
        first=5,
        details=("tolerance", "within", "largest in"),
    ),
    Table(
        name="twins",
        title="Trained twins on the same validation rows",
        section="crosscheck",
        source="tidy/twins",
        readable=f"{PAGE}:twins_table",
        first=4,
        folded=True,
    ),
    Table(
        name="data",
        title="Rows and labels per split",
        section="data",
        source="data",
        readable=f"{PAGE}:data_table",
        folded=True,
    ),
    Table(
        name="overlaps",
        title="Texts that tasks have in common",
        section="data",
        source="overlaps",
        readable=f"{PAGE}:overlap_table",
        folded=True,
    ),
    Table(
        name="provenance",
        title="Code, versions, hardware, fingerprints",
        section="provenance",
        source="records",
        readable=f"{PAGE}:provenance_table",
        folded=True,
    ),
)

TABLES = {table.name: table for table in _TABLES}
"""All tables of the page by name; within a section they stand in this order."""


def study_tables() -> dict[str, Table]:
    """Return the tables that every study has as files; one without rows is empty."""
    return {name: table for name, table in TABLES.items() if table.make}


def early_tables() -> dict[str, Table]:
    """Return those of the study's tables that are made from the collected runs."""
    return {name: table for name, table in study_tables().items() if not table.late}


def late_tables() -> dict[str, Table]:
    """Return those that also need section 7's tables, where there are any."""
    return {name: table for name, table in study_tables().items() if table.late}


READ_LATE = ("runs", "tuning", "forgetting", "language_loss")
"""The collected tidy tables that late tables are made from."""


def read_by_tables() -> list[str]:
    """Return the tidy tables that the study's early tables are made from."""
    further = {name for table in early_tables().values() for name in table.tidy}
    return ["runs", *sorted(further)]


def table_modules(tables: dict[str, Table]) -> list[str]:
    """Return the modules behind tables: `code_digest` must be told of them."""
    names = [name for table in tables.values() for name in (table.make, table.readable)]
    return sorted({module_of(name) for name in names if name})


def shipped_files(study: str) -> list[Path]:
    """Return the runs and the records of a study that is shipped; none if it is not."""
    folder = Path("results/committed") / study
    files = [shipped(folder / name) for name in ("runs.csv", "records.jsonl")]
    return files if all(file.is_file() for file in files) else []
