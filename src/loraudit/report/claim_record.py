"""All claims with the verdicts on record: of finished studies, and of published results."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from loraudit.analysis.claims import claim_verdicts
from loraudit.analysis.evidence import of_published
from loraudit.analysis.tidy_files import read_table
from loraudit.base.shipped import own_or_shipped
from loraudit.base.written_yaml import read_written
from loraudit.report.claim_tables import (
    allowed_text,
    claim_table,
    effect_text,
    unseen_text,
    verdict_text,
    with_sources,
)
from loraudit.report.formatting import cell_text, markdown
from loraudit.studies.claims import Claim, Source, load_all_claims
from loraudit.studies.paths import CONFIG
from loraudit.studies.reference import select
from loraudit.studies.study_file import PublishedFile
from loraudit.studies.values import validated


def published_claims(numbers: Path = CONFIG / "published.yaml") -> pd.DataFrame:
    """Test all claims on the published results by seed that config/published.yaml names as `ours`.

    The claims of the source itself are the family of Holm's correction. Any other claim, which no
    study asked together with them, is a family of its own.
    """
    path = own_or_shipped(numbers)
    asked: PublishedFile = validated(PublishedFile, read_written(path), str(path))
    claims = [claim for _, found in load_all_claims().values() for claim in found]
    by_source: dict[str, list[str]] = {}
    for key in asked.ours:
        by_source.setdefault(key.partition(".")[0], []).append(key)
    tables = []
    for name, keys in by_source.items():
        listed = [claim.id for claim in claims if claim.id.startswith(f"{name}.")]
        made = of_published(name, select(tuple(keys)), asked.margin, asked.reading)
        own = [claim for claim in claims if claim.id in listed]
        found = [claim_verdicts(made, own, listed)]
        others = [claim for claim in claims if claim.id not in listed]
        found += [claim_verdicts(made, [claim]) for claim in others]
        table = pd.concat([part for part in found if len(part)], ignore_index=True)
        tables.append(table[table.verdict != "not tested"].assign(study=f"published: {name}"))
    return with_sources(pd.concat(tables, ignore_index=True)) if tables else pd.DataFrame()


def study_claims(files: Iterable[Path], untested: bool = False) -> pd.DataFrame:
    """Read verdicts of finished studies: <study>/tables/claims.csv or <study>/claims.csv.

    Claims that a study could not test are left out, but with `untested`.
    """
    tables = []
    for file in files:
        folder = file.parent.parent if file.parent.name == "tables" else file.parent
        table = read_table(file)
        if len(table):
            shown = table if untested else table[table.verdict != "not tested"]
            tables.append(shown.assign(study=folder.name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"claim": []})


def claim_files(results: Path, own: bool = True) -> dict[str, Path]:
    """Return each study's table of claims by the study's name; arguments as for `on_record`."""
    committed = {path.parent.name: path for path in results.glob("committed/*/claims.csv")}
    here = {path.parts[-3]: path for path in results.glob("*/tables/claims.csv")} if own else {}
    return {**committed, **here}


def on_record(results: Path, own: bool = True) -> pd.DataFrame:
    """Return every verdict on record, a row each, with the study or source that it is of.

    Args:
        results: the folder results/. A study's own results there hide the committed ones.
        own: whether to take the studies that ran here, and not only those that are committed.
    """
    files = [path for _, path in sorted(claim_files(results, own).items())]
    both = published_claims(), study_claims(files)
    tables = [table for table in both if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"claim": []})


HEAD = """# Claims, and what was found of them

<!-- Made by scripts/claims_docs.py from config/claims and results/committed. -->

Each claim is an entry of a file of config/claims
(such as [hu2022.yaml](../config/claims/hu2022.yaml)):
what a paper or page says, in our words, and the test of it.
[How a claim is added, and what the words mean](adding_claims.md). "At scale" is the model, tasks
and training rows that the claim was made for. "In small" is another model, task or a subset: it
says nothing of the claim's own setting. "Another protocol" is beside a printed score that was made
otherwise, "scope not known" where the source's models or tasks were not seen. A source marked as
not seen could not be read itself.

n is the number of seeds. One seed has no spread of its own: where it has an interval all the same,
the remark says from which other cells the spread is borrowed. A claim about several cells makes
several comparisons; the one that fits least is that which speaks most against the claim.
"""


def page(results: Path) -> str:
    """Return the text of docs/claims.md: every claim, and every verdict that is committed."""
    record = on_record(results, own=False)
    files = load_all_claims()
    count = sum(len(claims) for _, claims in files.values())
    tested = record.claim.nunique()
    said = f"{count} claims of {len(files)} sources; {tested} of them have a verdict on record."
    parts = [HEAD, f"{said}\n", *_first(record)]
    for source, claims in files.values():
        parts.append(f"\n## {source.title}\n\n{source.authors} {source.year}, <{source.url}>\n")
        parts += [_entry(source, claim, record[record.claim == claim.id]) for claim in claims]
    return "\n".join(parts)


def _first(record: pd.DataFrame) -> list[str]:
    """Return a table of the verdicts on record, to stand before all claims; none if there are none.

    Args:
        record: `on_record`'s answer.
    """
    if record.empty:
        return []
    rows = record.to_dict("records")
    shown = pd.DataFrame(
        {
            "claim": [f"[{row['claim']}](#{row['claim'].replace('.', '')})" for row in rows],
            "study": [row["study"] for row in rows],
            "task": [cell_text(row["task"]) for row in rows],
            "n": [_seeds(row) for row in rows],
            "effect": [effect_text(row) for row in rows],
            "verdict": [verdict_text(row) for row in rows],
        }
    )
    return ["## The verdicts on record\n", f"{markdown(shown)}\n"]


def _seeds(row: dict) -> str:
    """Say n, and of a single seed that is tested all the same that its spread is not its own."""
    borrowed = "borrowed" in cell_text(row["how"])
    return f"{row['n']:g}, spread borrowed" if borrowed else f"{row['n']:g}"


def _entry(source: Source, claim: Claim, verdicts: pd.DataFrame) -> str:
    """Return one claim's part of the page."""
    where = f"{claim.where}{unseen_text(claim.confidence)}"
    models, tasks = claim.scope.models, claim.scope.tasks
    scope = _scope(models, tasks)
    lines = [
        f"### {claim.id}",
        "",
        f"**{claim.statement}** ({where}; read in: {claim.source})",
        "",
        f"{scope} Seen: {claim.seen}.",
    ]
    if claim.note:
        lines[-1] += f" Note: {claim.note}."
    if verdicts.empty:
        return "\n".join([*lines, "", "Not tested yet.", ""])
    records = verdicts.to_dict("records")
    told = claim_table(verdicts.assign(note=""))  # the note stands above the table
    shown = told[["task", "model"]].assign(
        n=[f"{row['n']:g}" for row in records],
        effect=[effect_text(row) for row in records],
        **{"holds if": [allowed_text(row) for row in records]},
        verdict=[verdict_text(row) for row in records],
    )
    shown.insert(0, "study", verdicts.study.tolist())
    shown["remarks"] = told.remarks.tolist()
    return "\n".join([*lines, "", markdown(shown)])


def _scope(models: tuple[str, ...] | None, tasks: tuple[str, ...] | None) -> str:
    """Say which models and tasks a claim was made for."""
    if models and tasks:
        return f"Made for {', '.join(models)} on {', '.join(tasks)}."
    if not models and not tasks:
        return "Which models and tasks it was made for is not known."
    known, other = (models, "tasks") if models else (tasks, "models")
    return f"Made for {', '.join(known or ())}; on which {other} is not known."
