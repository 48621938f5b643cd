"""One self-contained report.html per study: text and tables come from the study's files."""

import base64
import json
import re
from collections.abc import Collection, Iterable
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
from loraudit.report.page_answer import Answer, answer, belief
from loraudit.report.page_facts import data_facts, facts, machine_facts
from loraudit.report.page_layout import MARKS, NAMES, layout, split, word
from loraudit.report.page_shipped import Finished, beside_shipped, read_shipped, shipped_fact
from loraudit.report.page_tables import processors, protocol_rest
from loraudit.report.table_registry import TABLES, Table, study_tables
from loraudit.report.tables import readable
from loraudit.studies.reference import FOLDER, load_reference, select
from loraudit.studies.study import Study

CAPTIONS = ROOT / "workflow" / "report"

SECTIONS = {
    "claims": "Claims",
    "missing": "Missing",
    "verdicts": "Beside published numbers",
    "switches": "Which switch matters",
    "scores": "Scores",
    "shipped": "Beside the run that is shipped",
    "tuning": "Settings that were tried",
    "curves": "Learning curves",
    "ranks": "Where the ranks go",
    "cost": "Cost",
    "crosscheck": "Cross-check against PEFT",
    "updates": "Section 7: what the update looks like",
    "protocol": "Protocol",
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
    `answer` and `belief` stand first (page_answer.py).
    """

    study: Study
    tables: dict[str, pd.DataFrame]
    figures: dict[str, Path]
    facts: dict[str, str]
    remake: dict[str, str]
    pictures: dict[str, list[str]] = field(default_factory=dict)
    answer: list[Answer] = field(default_factory=list)
    belief: list[tuple[str, str]] = field(default_factory=list)


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
    made_on = processors(records)
    here, there = Finished(tidy["runs"], records), read_shipped(study.name)
    evidence["shipped"] = beside_shipped(here, there)
    known = {**tidy, **tables, "missing": missing}
    said = joined_facts(
        facts(study, known),
        {section: " ".join(sentences) for section, sentences in said_of_others.items()},
        machine_facts(made_on),
        shipped_fact(evidence["shipped"], here, there),
        data_facts(study, data, shared),
    )
    return Page(
        study=study,
        tables=_readable_tables(tables, evidence),
        figures={name: paths[name] for name in FIGURES if name in paths},
        facts=said,
        remake=remake,
        answer=answer(study, known),
        belief=belief(study, known, made_on),
        pictures={"claims": [effect_picture(row) for row in tables["claims"].to_dict("records")]},
    )


def joined_facts(*parts: dict[str, str]) -> dict[str, str]:
    """Join sentences by section: those of a later part stand behind an earlier one's."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: " ".join(part[name] for part in parts if part.get(name)) for name in names}


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


def first_sentence(text: str) -> tuple[str, str]:
    """Return a text's first sentence, and the rest: a full stop in brackets ends none."""
    found = re.match(r"(?:\((?:[^()]|\([^()]*\))*\)|[^(])*?\.(?=\s|$)", text)
    end = found.end() if found else len(text)
    first, rest = text[:end], text[end:].strip()
    return first if first.endswith(".") else f"{first}.", rest


def picture(path: Path, file: str, **texts: str) -> dict:
    """Return what the template shows of a figure, all of it inline.

    Args:
        path: an SVG file with its CSV beside it.
        file: the name under which a reader saves the CSV.
        texts: `id`, `title`, `alt`, `caption` and `remake`.
    """
    first, rest = first_sentence(texts["caption"])
    texts |= {"caption": first, "more": rest}
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


def title_of(study: Study) -> str:
    """Name a study for readers: "Frozen head: LoRA on mrpc (minilm)"."""
    specs = [run.spec for run in study.runs]
    name = re.sub(r"[-_]+", " ", study.name)
    if not specs:
        return f"{name[:1].upper()}{name[1:]}"
    what = "LoRA" if any(spec.adapter for spec in specs) else specs[0].facts.label
    tasks = dict.fromkeys(spec.task.name for spec in specs)
    models = dict.fromkeys(spec.model.name for spec in specs)
    return f"{name[:1].upper()}{name[1:]}: {what} on {', '.join(tasks)} ({', '.join(models)})"


def captions() -> dict[str, str]:
    """Return the text below each figure and table, by its name."""
    return {path.stem: path.read_text().strip() for path in CAPTIONS.glob("*.rst")}


AT_FIRST = 2
"""Figures of a section that are seen at first; the others are folded, and all where a table of the
section has small pictures of the same."""

NARROW = 5
"""Columns up to which a table may stand beside a figure."""


def render(page: Page) -> str:
    """Fill a study's page."""
    texts, hero = captions(), hero_of(page)
    sections = []
    for name, (figures, tables) in _sections(page).items():
        drawn = [_picture(page, key, texts) for key in figures if key != hero]
        laid = [
            _laid_out(TABLES[key], page, "" if key in FIGURES else texts.get(key, ""))
            for key in tables
        ]
        fact = page.facts.get(name)
        if drawn or laid or fact:
            sections.append({"id": name, "title": SECTIONS[name], "fact": fact, "tables": laid})
            seen = 0 if any(table["pictures"] for table in laid) else AT_FIRST
            sections[-1] |= {"figures": drawn[:seen], "more": drawn[seen:]}
    return fill(
        name=page.study.name,
        title=title_of(page.study),
        question=page.study.question,
        facts=page.facts,
        incomplete="missing" in page.tables,
        answer=page.answer,
        belief=page.belief,
        hero=_picture(page, hero, texts) if hero else None,
        sections=sections,
        sources=sources(page.study.compare) if "verdicts" in page.tables else [],
    )


FIRST_SEEN = ("scores", "verdicts", "switches", "tuning", "claims")
"""Sections whose first figure may stand beside the answer, in this order."""


def hero_of(page: Page) -> str | None:
    """Return the figure that stands beside the answer: the first of these sections."""
    for section in FIRST_SEEN:
        for name in page.figures:
            if FIGURES[name].section == section:
                return name
    return None


def _laid_out(entry: Table, page: Page, note: str) -> dict:
    """Return what the template shows of a table, its folded details with it."""
    pictures = [Markup(one) for one in page.pictures.get(entry.name, ())]
    rest = protocol_rest(page.study) if entry.name == "protocol" else ""
    return shown_table(
        page.tables[entry.name],
        entry.name,
        entry.title,
        note,
        first=entry.first,
        details=entry.details,
        folded=entry.folded,
        pictures=pictures,
        after=f"The same for all runs: {rest}." if rest else "",
    )


def shown_table(
    table: pd.DataFrame,
    name: str,
    title: str,
    note: str = "",
    first: int = 0,
    details: Collection[str] = (),
    **more: Any,
) -> dict:
    """Return what the template shows of a table.

    Args:
        table: for readers.
        name, title: what it is called, by programs and by readers.
        note: how it is read.
        first, details: as in `table_registry.Table`.
        more: `folded`, `pictures` for its column `effect`, and a sentence to stand `after` it.
    """
    main, others = split(table, details)
    laid, beside = layout(main, first), layout(others) if len(others) else None
    if beside and set(beside["columns"]) <= {*NAMES, "cell"}:  # names alone tell nothing more
        laid["same"] = " ".join(filter(None, [laid["same"], beside["same"]]))
        beside = None
    return {
        **{"id": name, "title": title, "note": note, "folded": False, "pictures": []},
        **more,
        "main": laid,
        "narrow": len(laid["columns"]) <= NARROW,
        "details": beside,
    }


def fill(**parts: Any) -> str:
    """Fill the template: everything is inline, and every text from data is escaped.

    Args:
        parts: what report.html.jinja names: name, question, facts and sections; title (the name
            for readers), incomplete, answer, belief, hero and sources where there are any.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["word"] = word
    template = environment.get_template("report.html.jinja")
    nothing = {"incomplete": False, "answer": [], "belief": [], "hero": None, "sources": []}
    nothing["title"] = parts["name"]
    return template.render(marks=MARKS, **{**nothing, **parts})


def _sections(page: Page) -> dict[str, tuple[list[str], list[str]]]:
    """Return each section's figures and tables, of sections that have something to show."""
    contents = {}
    for section in SECTIONS:
        figures = [name for name in page.figures if FIGURES[name].section == section]
        tables = [name for name in page.tables if TABLES[name].section == section]
        said = page.facts.get(section) if section != "missing" else None  # why nothing is drawn
        if figures or tables or said:
            contents[section] = (figures, tables)
    return contents
