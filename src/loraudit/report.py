"""One self-contained report.html per study."""

import base64
import re
from pathlib import Path

import jinja2
import pandas as pd

from loraudit.errors import unknown
from loraudit.reference import load_all, select
from loraudit.statistics import SIGNIFICANCE
from loraudit.study import Study
from loraudit.tables import interval, p_value, points

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"


def facts(study: Study, tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Write the page's sentences from the numbers."""
    runs, checks = tables["runs"], tables["crosscheck"]
    subjects = runs[["model", "task", "rows_train", "rows_validation"]].drop_duplicates()
    shown = "; ".join(
        f"{row.model} on {row.task}, {row.rows_train} training and {row.rows_validation} "
        "validation rows"
        for row in subjects.itertuples()
    )
    unlike = "" if len(tables["verdicts"]) else "Not set beside published numbers: "
    out = {
        "runs": f"{len(runs)} runs, {runs.seconds.sum() / 60:.0f} minutes of run time in all",
        "comparison": f"{unlike}{shown}.",
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
        )
    if "amplification" in tables:
        out["updates"] = _update_fact(tables["amplification"])
    return out


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
        f"{counts}. Margin of equivalence: {100 * study.margin:g} points; a published ± of "
        f"unstated meaning is read as {study.reading}. Differences are ours minus published."
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
        entry = {"key": number.key, "title": cited.title, "authors": cited.authors}
        entry |= {"year": cited.year, "url": cited.url, "where": number.where}
        entry |= {"source": number.source, "confidence": number.confidence, "note": number.note}
        found.setdefault(tuple(entry.values()), entry)
    return list(found.values())


def render(
    study: Study,
    tables: dict[str, pd.DataFrame],
    figures: dict[str, Path],
    facts: dict[str, str],
    data: dict[str, dict],
) -> str:
    """Fill the page: tables, figures (inlined), captions and facts come from the study's files."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    html = {
        name: table.to_html(index=False, border=0, na_rep="")
        for name, table in tables.items()
        if len(table)
    }
    captions = {path.stem: path.read_text().strip() for path in CAPTIONS.glob("*.rst")}
    pictures = {
        name: {"data": base64.b64encode(path.read_bytes()).decode(), "caption": captions[name]}
        for name, path in figures.items()
    }
    template = environment.get_template("report.html.jinja")
    return template.render(
        study=study,
        tables=html,
        figures=pictures,
        facts=facts,
        data=data,
        captions=captions,
        sources=sources(study.compare),
    )
