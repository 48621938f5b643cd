"""One self-contained report.html per study: text and tables come from the study's files."""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from loraudit.analysis.overlap import overlaps
from loraudit.analysis.section7_runs import lora_runs
from loraudit.analysis.tidy_files import read_table
from loraudit.base.files import read_json, write_text
from loraudit.base.named_code import resolve
from loraudit.base.shipped import ROOT, own_or_shipped
from loraudit.report.claim_tables import effect_picture
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figures import describe, told_apart
from loraudit.report.page_facts import data_facts, facts, machine_facts
from loraudit.report.page_tables import processors
from loraudit.report.table_registry import TABLES, study_tables
from loraudit.report.tables import readable
from loraudit.studies.reference import FOLDER, load_reference, select
from loraudit.studies.study import Study

CAPTIONS = ROOT / "workflow" / "report"

SECTIONS = {
    "claims": "Claims",
    "missing": "Missing",
    "protocol": "Protocol",
    "verdicts": "Beside published numbers",
    "switches": "Which switch matters",
    "scores": "Scores",
    "tuning": "Settings that were tried",
    "curves": "Learning curves",
    "ranks": "Where the ranks go",
    "cost": "Cost",
    "crosscheck": "Cross-check against PEFT",
    "updates": "Section 7: what the update looks like",
    "data": "Data",
    "provenance": "Provenance",
}
"""The page's sections in order, with their titles. One with nothing in it is left out."""


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    `study` is as planned. `tables` are readable ones by their names (table_registry.py), `figures`
    SVG files by their names (figure_registry.py), each with its CSV beside it. `facts` are the
    sentences by the names of SECTIONS, `remake` the command that makes a figure again, by figure.
    `pictures` are small SVGs for a table's column `effect`, one for each of its rows, by table.
    """

    study: Study
    tables: dict[str, pd.DataFrame]
    figures: dict[str, Path]
    facts: dict[str, str]
    remake: dict[str, str]
    pictures: dict[str, list[str]] = field(default_factory=dict)


def write_page(
    study: Study,
    results: Path,
    figures: Iterable[Path],
    manifests: Iterable[Path],
    remake: dict[str, str],
    missing: pd.DataFrame | None = None,
) -> None:
    """Write results/report.html.

    Args:
        study: as planned.
        results: holds tidy/ and tables/.
        figures: SVG files, each with its CSV beside it; one without rows is left out.
        manifests: those of the fetched tasks; one that is not there is left out.
        remake: the command that makes each figure again, by figure.
        missing: what has no result, as `collect.missing` lists it; None: everything has.
    """
    fetched = {path.parent.name: path.parent for path in manifests if path.is_file()}
    page = read_page(results, study, figures, fetched, remake, missing)
    write_text(results / "report.html", render(page))


def read_page(
    results: Path,
    study: Study,
    figures: Iterable[Path],
    fetched: dict[str, Path],
    remake: dict[str, str],
    missing: pd.DataFrame | None = None,
) -> Page:
    """Read a study's tables and write its page's sentences; `fetched` are the tasks' folders.

    The other arguments are those of `write_page`.
    """
    tidy = {
        name: pd.read_parquet(results / "tidy" / f"{name}.parquet")
        for name in ("runs", "crosscheck", "twins")
    }
    updates = results / "tidy" / "amplification.parquet"
    if lora_runs(study) and updates.is_file():
        tidy["amplification"] = pd.read_parquet(updates)
    lines = (results / "tidy" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    tables = {name: read_table(results / "tables" / f"{name}.csv") for name in study_tables()}
    missing = pd.DataFrame() if missing is None else missing
    data = {task: read_json(folder / "manifest.json") for task, folder in fetched.items()}
    shared = overlaps(fetched)
    evidence = {
        **{f"tidy/{name}": table for name, table in tidy.items()},
        **{"study": study, "missing": missing, "data": data, "records": records},
        "overlaps": shared,
    }
    shown = {path.stem: path for path in figures if len(read_table(path.with_suffix(".csv")))}
    paths, said_of_others = told_apart(shown)
    machines = machine_facts(processors(records))
    known = facts(study, {**tidy, **tables, "missing": missing})
    for section, sentences in said_of_others.items():
        known[section] = " ".join(filter(None, [known.get(section), *sentences]))
    return Page(
        study=study,
        tables=_readable_tables(tables, evidence),
        figures={name: paths[name] for name in FIGURES if name in paths},
        facts=known | machines | data_facts(study, data, shared),
        remake=remake,
        pictures={"claims": [effect_picture(row) for row in tables["claims"].to_dict("records")]},
    )


def _readable_tables(tables: dict[str, pd.DataFrame], evidence: dict) -> dict[str, pd.DataFrame]:
    """Make the page's tables for readers, from the study's own and from what else it knows."""
    made = {}
    for name, entry in TABLES.items():
        if entry.make:
            made[name] = readable(entry, tables[name], evidence["study"])
        else:
            source = evidence[entry.source]
            made[name] = resolve(entry.readable)(source) if entry.readable else source
    return {name: table for name, table in made.items() if len(table)}


def sources(keys: tuple[str, ...]) -> list[dict]:
    """Return a citation per published table: title, authors, place, how it was read, notes."""
    names = {key.partition(".")[0] for key in keys}
    paths = {name: own_or_shipped(FOLDER / f"{name}.yaml") for name in names}
    files = {name: load_reference(path)[0] for name, path in paths.items()}
    citations: dict[tuple, dict] = {}
    for number in select(keys):
        cited = files[number.reference]
        entry: dict = {"key": number.key, "title": cited.title, "authors": cited.authors}
        entry |= {"year": cited.year, "url": cited.url, "where": number.where}
        entry |= {"source": number.source, "confidence": number.confidence, "note": number.note}
        citations.setdefault(tuple(entry.values()), entry)
    return list(citations.values())


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def picture(path: Path, file: str, **texts: str) -> dict:
    """Return what the template shows of a figure, all of it inline.

    Args:
        path: an SVG file with its CSV beside it.
        file: the name under which a reader saves the CSV.
        texts: `id`, `title`, `alt`, `caption` and `remake`.
    """
    table = path.with_suffix(".csv")
    inline = {"image": _data_uri(path, "image/svg+xml"), "csv": _data_uri(table, "text/csv")}
    return {**texts, **inline, "file": file}


def _picture(page: Page, name: str, captions: dict[str, str]) -> dict:
    path = page.figures[name]
    return picture(
        path,
        f"{page.study.name}-{name}.csv",
        id=name,
        title=FIGURES[name].title,
        alt=describe(FIGURES[name], read_table(path.with_suffix(".csv"))),
        caption=captions[name],
        remake=page.remake[name],
    )


def captions() -> dict[str, str]:
    """Return the text below each figure and table, by its name."""
    return {path.stem: path.read_text().strip() for path in CAPTIONS.glob("*.rst")}


def render(page: Page) -> str:
    """Fill a study's page."""
    texts = captions()
    sections = [
        {
            "id": name,
            "title": SECTIONS[name],
            "fact": page.facts.get(name),
            "figures": [_picture(page, key, texts) for key in figures],
            "tables": [
                {
                    "id": key,
                    "title": TABLES[key].title,
                    "note": texts.get(key) if key not in page.figures else None,
                }
                for key in tables
            ],
        }
        for name, (figures, tables) in _sections(page).items()
    ]
    return fill(
        name=page.study.name,
        question=page.study.question,
        facts=page.facts,
        incomplete="missing" in page.tables,
        sections=sections,
        tables=page.tables,
        pictures={name: [Markup(one) for one in drawn] for name, drawn in page.pictures.items()},
        sources=sources(page.study.compare) if "verdicts" in page.tables else [],
    )


def fill(tables: dict[str, pd.DataFrame], **parts: Any) -> str:
    """Fill the template: everything is inline, and every text from data is escaped.

    Args:
        tables: readable ones by the names that `sections` have for them.
        parts: what report.html.jinja names: name, question, facts, incomplete, sections, sources,
            and pictures if there are any.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    template = environment.get_template("report.html.jinja")
    texts = {name: _as_text(table) for name, table in tables.items()}
    return template.render(tables=texts, **{"pictures": {}, **parts})


def _sections(page: Page) -> dict[str, tuple[list[str], list[str]]]:
    """Return each section's figures and tables, of sections that have any."""
    contents = {}
    for section in SECTIONS:
        figures = [name for name in page.figures if FIGURES[name].section == section]
        tables = [name for name in page.tables if TABLES[name].section == section]
        if figures or tables:
            contents[section] = (figures, tables)
    return contents


def _as_text(table: pd.DataFrame) -> dict:
    """Return a table's header and its rows as text; missing values are empty."""
    rows = [["" if pd.isna(v) else _value(v) for v in row] for row in table.itertuples(index=False)]
    return {"columns": list(table), "rows": rows}


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
