"""One self-contained report.html per study."""

import base64
from pathlib import Path

import jinja2
import pandas as pd

from loraudit.study import Study

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"


def facts(study: Study, tidy: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Write the page's sentences from the numbers."""
    runs, checks = tidy["runs"], tidy["crosscheck"]
    subjects = runs[["model", "task", "rows_train", "rows_validation"]].drop_duplicates()
    shown = "; ".join(
        f"{row.model} on {row.task}, {row.rows_train} training and {row.rows_validation} "
        "validation rows"
        for row in subjects.itertuples()
    )
    out = {
        "runs": f"{len(runs)} runs, {runs.seconds.sum() / 60:.0f} minutes of run time in all",
        "comparison": f"Not set beside published numbers: {shown}.",
        "scores": "n is the number of seeds, SD is over seeds (n - 1). The best epoch is chosen on "
        "the validation split itself and so is optimistic; the last epoch is not.",
    }
    if len(checks):
        worst = checks.groupby("dtype", sort=False).difference.max()
        text = ", ".join(f"{value:.2g} in {name}" for name, value in worst.items())
        out["crosscheck"] = (
            f"{int(checks.ok.sum())} of {len(checks)} checks in {checks.cell.nunique()} cells are "
            f"within tolerance. Largest absolute difference: {text}."
        )
    return out


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
    pictures = {
        name: {
            "data": base64.b64encode(path.read_bytes()).decode(),
            "caption": (CAPTIONS / f"{name}.rst").read_text().strip(),
        }
        for name, path in figures.items()
    }
    template = environment.get_template("report.html.jinja")
    return template.render(study=study, tables=html, figures=pictures, facts=facts, data=data)
