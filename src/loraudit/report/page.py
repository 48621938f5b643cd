"""One self-contained report.html per study: text and tables come from the study's files."""

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from loraudit.analysis.adapter_pairs import lora_runs
from loraudit.analysis.statistics import SIGNIFICANCE
from loraudit.analysis.tidy_files import read_table
from loraudit.base.errors import unknown
from loraudit.report.alt_text import describe
from loraudit.report.products import FIGURES, TABLES, UPDATES
from loraudit.report.tables import (
    METHOD_NAMES,
    READABLE,
    crosscheck_table,
    data_table,
    interval,
    p_value,
    points,
    processors,
    protocol_table,
    provenance_table,
    switched_table,
)
from loraudit.studies.names import targets_name
from loraudit.studies.reference import load_all, select
from loraudit.studies.study import Study

CAPTIONS = Path(__file__).parents[3] / "workflow" / "report"

FIGURE_NAMES = {
    "verdicts": "Differences to published numbers",
    "switches": "What each switch changes",
    "score_vs_rank": "Score over rank",
    "score_vs_parameters": "Score over trainable parameters",
    "score_vs_rows": "Score over training rows",
    "score_vs_bits": "Score over the bits of the base",
    "learning_curves": "Learning curves",
    "ranks": "Ranks by layer, matrix and step",
    "cost": "Disk, memory and time",
    "pareto": "Score against its price",
    "crosscheck": "Our LoRA beside PEFT and loralib",
    "spectra": "Singular values of the update",
    "stable_rank": "Stable rank of the update",
    "amplification": "The paper's Table 7 per layer",
    "subspace_ranks": "Directions of two ranks",
    "subspace_seeds": "Directions of two seeds",
    "subspace_weights": "Directions of the update and of W",
}

TABLE_NAMES = {
    "missing": "Runs and cross-checks without a result",
    "protocol": "Every field of a run",
    "switched": "What each switch sets",
    "verdicts": "Verdict per cell and published number",
    "switches": "Effect of each switch",
    "summary": "Scores per cell",
    "pairs": "Methods on the same seeds",
    "cost": "Cost per cell",
    "crosscheck": "Checks, the largest difference over all cells",
    "twins": "Trained twins, on the same validation rows",
    "data": "Rows and labels per split",
    "provenance": "Code, versions, hardware, fingerprints",
}

SECTIONS = {
    "missing": ("Missing", [], ["missing"]),
    "protocol": ("Protocol", [], ["switched", "protocol"]),
    "verdicts": ("Beside published numbers", ["verdicts"], ["verdicts"]),
    "switches": ("Which switch matters", ["switches"], ["switches"]),
    "scores": (
        "Scores",
        ["score_vs_rank", "score_vs_parameters", "score_vs_rows", "score_vs_bits"],
        ["summary", "pairs"],
    ),
    "curves": ("Learning curves", ["learning_curves"], []),
    "ranks": ("Where the ranks go", ["ranks"], []),
    "cost": ("Cost", ["pareto", "cost"], ["cost"]),
    "crosscheck": ("Cross-check against PEFT", ["crosscheck"], ["crosscheck", "twins"]),
    "updates": ("Section 7: what the update looks like", UPDATES, []),
    "data": ("Data", [], ["data"]),
    "provenance": ("Provenance", [], ["provenance"]),
}
"""The page's sections in order: title, figures, tables. One with nothing in it is left out."""


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    `study` is as planned. `tables` are readable ones by the keys of TABLE_NAMES, `figures` SVG
    files by the keys of FIGURE_NAMES, each with its CSV beside it, `facts` the sentences by the
    keys of SECTIONS, `remake` the command that makes one figure again, by figure.
    """

    study: Study
    tables: dict[str, pd.DataFrame]
    figures: dict[str, Path]
    facts: dict[str, str]
    remake: dict[str, str]


def read_page(
    folder: Path,
    study: Study,
    figures: Iterable[Path],
    data: dict[str, dict],
    remake: dict[str, str],
    missing: pd.DataFrame | None = None,
) -> Page:
    """Read a study's tables and write its page's sentences.

    Args:
        folder: holds tidy/ and tables/.
        study: as planned.
        figures: SVG files, each with its CSV beside it; one without rows is left out.
        data: manifests of the fetched tasks.
        remake: the command that makes each figure again.
        missing: what has no result, as `collect.missing` lists it; None: everything has.
    """
    found = {
        name: pd.read_parquet(folder / "tidy" / f"{name}.parquet")
        for name in ("runs", "crosscheck", "twins")
    }
    lines = (folder / "tidy" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    updates = folder / "tidy" / "amplification.parquet"
    if lora_runs(study) and updates.is_file():
        found["amplification"] = pd.read_parquet(updates)
    found |= {name: read_table(folder / "tables" / f"{name}.csv") for name in TABLES}
    found["missing"] = pd.DataFrame() if missing is None else missing
    shown = {**READABLE, "crosscheck": crosscheck_table}
    tables = {name: make(found[name]) for name, make in shown.items() if len(found[name])}
    tables |= {
        "missing": found["missing"],
        "switched": switched_table(study),
        "twins": found["twins"],
        "protocol": protocol_table(study),
        "data": data_table(data),
        "provenance": provenance_table(records),
    }
    paths = {path.stem: path for path in figures if len(read_table(path.with_suffix(".csv")))}
    return Page(
        study=study,
        tables={name: tables[name] for name in TABLE_NAMES if len(tables.get(name, ()))},
        figures={name: paths[name] for name in FIGURES if name in paths},
        facts=facts(study, found) | machine_facts(processors(records)),
        remake=remake,
    )


def facts(study: Study, tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Write the page's sentences from the numbers, by section."""
    runs, checks = tables["runs"], tables["crosscheck"]
    subjects = runs[["model", "task", "rows_train", "rows_validation"]].drop_duplicates()
    shown = "; ".join(
        f"{row.model} on {row.task}, {row.rows_train:,} training and {row.rows_validation:,} "
        "validation rows"
        for row in subjects.itertuples()
    )
    unlike = "" if len(tables["verdicts"]) else "Not set beside published numbers: "
    out = {
        "runs": _run_fact(study, runs, tables["missing"]),
        "comparison": f"{unlike}{shown}.",
        "missing": "Section 7 needs every adapter: it is made when the study is complete.",
        "protocol": _protocol_fact(study),
        "scores": "n is the number of seeds, SD is over seeds (n - 1). The best epoch is chosen on "
        "the validation split itself and so is optimistic; the last epoch is not.",
    }
    if len(tables["verdicts"]):
        out["verdicts"] = _verdict_fact(study, tables["verdicts"])
    if len(tables["switches"]):
        out["switches"] = _switch_fact(tables["switches"])
    if len(checks):
        worst = checks.groupby("dtype", sort=False).difference.max()
        text = ", ".join(f"{value:.2g} in {name}" for name, value in worst.items())
        out["crosscheck"] = (
            f"{int(checks.ok.sum())} of {len(checks)} checks in {checks.cell.nunique()} cells are "
            f"within tolerance. Largest absolute difference: {text}."
        ) + _untwinned(study)
    if "amplification" in tables:
        out["updates"] = _update_fact(tables["amplification"])
    return out


def machine_facts(counts: dict[str, int]) -> dict[str, str]:
    """Say on which processors the runs were made; more than one kind is said at the top too."""
    text = (
        "On another kind of processor the same specs give other bits, and for an unstable setting "
        "another result."
    )
    if len(counts) == 1:
        return {"provenance": f"All runs were made on {next(iter(counts))}. {text}"}
    names = "; ".join(f"{name}: {n} run{'' if n == 1 else 's'}" for name, n in counts.items())
    text = (
        f"The runs were made on {len(counts)} kinds of processor ({names}). {text} A difference "
        "between runs of different kinds may be the processors'."
    )
    return {"provenance": text, "processors": text} if counts else {}


def _untwinned(study: Study) -> str:
    """Name the runs that PEFT alone has: they have nothing to be checked against."""
    names = dict.fromkeys(run.label for run in study.runs if run.spec.peft)
    text = f" Not checked, for PEFT alone has them: {', '.join(names)}."
    return text if names else ""


def _run_fact(study: Study, runs: pd.DataFrame, missing: pd.DataFrame) -> str:
    minutes = f"{runs.seconds.sum() / 60:.0f} minutes of run time in all"
    if missing.empty:
        return f"All {len(study.runs)} runs of the study are here, {minutes}."
    counts = missing.what.value_counts().items()
    lost = ", ".join(f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in counts)
    return (
        f"Incomplete: {len(runs)} of {len(study.runs)} runs are here, {minutes}; without a result: "
        f"{lost}. Every number below is of the runs that are here."
    )


def _protocol_fact(study: Study) -> str:
    """Say in words what is trained, from the runs' specs."""
    specs = [run.spec for run in study.runs]
    methods = ", ".join(METHOD_NAMES[name] for name in dict.fromkeys(s.method for s in specs))
    out = [f"Trained by {methods} on {_values(s.task.name for s in specs)}"]
    out[0] += f" from {_values(s.model.name for s in specs)}"
    adapters = [s for s in specs if s.adapter]
    if adapters:
        targets = _values(targets_name(s) for s in adapters)
        ranks, alphas = (_values(getattr(s, key) for s in adapters) for key in ("rank", "alpha"))
        out.append(f"Adapters of rank {ranks} on {targets} with alpha {alphas}")
    words = {"epochs": "epochs", "global_batch": "rows per step", "learning_rate": "learning rate"}
    words |= {"head": "head", "seed": "seeds"}
    shown = [f"{word} {_values(getattr(s, key) for s in specs)}" for key, word in words.items()]
    text = f"{'. '.join([*out, ', '.join(shown).capitalize()])}."
    return f"{text} Settings from: {study.protocol}" if study.protocol else text


def _values(values: Iterable) -> str:
    return ", ".join(dict.fromkeys(f"{v:g}" if isinstance(v, float) else str(v) for v in values))


def _update_fact(updates: pd.DataFrame) -> str:
    rank = updates["rank"].max()
    updates = updates[updates["rank"] == rank]
    parts = []
    for matrix, rows in updates.groupby("matrix", sort=False):
        middle = rows[["stable_rank", "amplification"]].median()
        size = (rows.update_norm / rows.weight_norm).median()
        parts.append(
            f"{matrix}: stable rank {middle.stable_rank:.2f}, amplification "
            f"{middle.amplification:.2g}, norm {100 * size:.2g} % of W's"
        )
    adapters, layers = updates.run.nunique(), updates.layer.nunique()
    subject = f"{adapters} in-house adapters of rank {rank} and {layers} layers"
    return f"Medians over {subject}. {'; '.join(parts)}."


def _verdict_fact(study: Study, verdicts: pd.DataFrame) -> str:
    counts = ", ".join(f"{n} {word}" for word, n in verdicts.verdict.value_counts().items())
    return (
        f"{counts[0].upper()}{counts[1:]}. Margin of equivalence: {100 * study.margin:g} points; a "
        f"published ± of unstated meaning is read as {study.reading}. Differences are ours minus "
        "published."
    )


def _switch_fact(effects: pd.DataFrame) -> str:
    best = effects[(effects.epoch == "best") & effects.p_holm.notna()]
    if best.empty:
        return "Too few common seeds to test a switch."
    largest = best.loc[best.difference.abs().idxmax()]
    return (
        f"Largest effect: {largest.switch} on {largest.task} ({largest.model}), "
        f"{points(largest.difference)} points {interval(largest.low, largest.high)} "
        f"(best epoch, n={largest.n}, Holm-adjusted p {p_value(largest.p_holm)}). "
        f"{int((best.p_holm < SIGNIFICANCE).sum())} of {len(best)} differences have an adjusted "
        f"p below {SIGNIFICANCE:g}."
    )


def fill_blocks(text: str, root: Path) -> str:
    """Fill a page's blocks between `<!-- from FILE -->` and `<!-- end -->`, if there is a FILE.

    `<!-- from FILE: column | column -->` takes these columns of FILE's table only.
    """

    def fill(block: re.Match) -> str:
        file = root / block[2]
        if not file.is_file():
            return block[0]
        return block[1] + _columns(file.read_text(), block[3]) + block[4]

    pattern = r"(<!-- from (\S+?)(?:: (.*?))? -->\n).*?(<!-- end -->)"
    return re.sub(pattern, fill, text, flags=re.S)


def _columns(table: str, names: str | None) -> str:
    """Keep the named columns ("a | b") of a Markdown table; all without names.

    Raises:
        UserError: a name that is no column.
    """
    if names is None:
        return table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    places = []
    for name in names.split(" | "):
        if name not in rows[0]:
            raise unknown("column", name, rows[0])
        places.append(rows[0].index(name))
    return "".join(f"| {' | '.join(row[place] for place in places)} |\n" for row in rows)


def sources(keys: tuple[str, ...]) -> list[dict]:
    """Return a citation per published table: title, authors, place, how it was read, notes."""
    files = {name: reference for name, (reference, _) in load_all().items()}
    found: dict[tuple, dict] = {}
    for number in select(keys):
        cited = files[number.reference]
        entry: dict = {"key": number.key, "title": cited.title, "authors": cited.authors}
        entry |= {"year": cited.year, "url": cited.url, "where": number.where}
        entry |= {"source": number.source, "confidence": number.confidence, "note": number.note}
        found.setdefault(tuple(entry.values()), entry)
    return list(found.values())


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _picture(page: Page, name: str, captions: dict[str, str]) -> dict:
    """Return what the template shows of a figure, all of it inline."""
    path = page.figures[name]
    table = path.with_suffix(".csv")
    return {
        "title": FIGURE_NAMES[name],
        "image": _data_uri(path, "image/svg+xml"),
        "alt": describe(name, read_table(table)),
        "caption": captions[name],
        "csv": _data_uri(table, "text/csv"),
        "file": f"{page.study.name}-{name}.csv",
        "remake": page.remake[name],
    }


def render(page: Page) -> str:
    """Fill the page: everything is inline, and every text from data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    captions = {path.stem: path.read_text().strip() for path in CAPTIONS.glob("*.rst")}
    sections = [
        {
            "id": name,
            "title": title,
            "fact": page.facts.get(name),
            "figures": [_picture(page, key, captions) | {"id": key} for key in figures],
            "tables": [
                {
                    "id": key,
                    "title": TABLE_NAMES[key],
                    "note": captions.get(key) if key not in page.figures else None,
                }
                for key in tables
            ],
        }
        for name, (title, figures, tables) in _present(page).items()
    ]
    template = environment.get_template("report.html.jinja")
    return template.render(
        study=page.study,
        facts=page.facts,
        incomplete="missing" in page.tables,
        sections=sections,
        tables={name: _cells(table) for name, table in page.tables.items()},
        sources=sources(page.study.compare) if "verdicts" in page.tables else [],
    )


def _present(page: Page) -> dict[str, tuple[str, list[str], list[str]]]:
    """Return SECTIONS with the figures and tables that the page has."""
    found = {}
    for name, (title, figures, tables) in SECTIONS.items():
        drawn = [key for key in figures if key in page.figures]
        shown = [key for key in tables if key in page.tables]
        if drawn or shown:
            found[name] = (title, drawn, shown)
    return found


def _cells(table: pd.DataFrame) -> dict:
    """Return a table's header and its rows as text; missing values are empty."""
    rows = [["" if pd.isna(v) else _cell(v) for v in row] for row in table.itertuples(index=False)]
    return {"columns": list(table), "rows": rows}


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
