"""Tables in words, and one self-contained report.html per study."""

import base64
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pandas as pd

from loraudit.figures import NAMES
from loraudit.record import read_record
from loraudit.spec import Study

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"


def percent(mean: float, sd: float) -> str:
    """Write a score as percent with its standard deviation, or without where n = 1."""
    return f"{100 * mean:.1f}" + (f" ± {100 * sd:.1f}" if sd == sd else "")


def summary_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Turn `statistics.aggregate`'s rows into a table for readers."""
    columns: dict[str, list] = {
        "task": list(summary.task),
        "method": [NAMES[method] for method in summary.method],
        "rank": ["" if rank != rank else f"{rank:g}" for rank in summary["rank"]],
        "targets": ["" if pd.isna(name) else name for name in summary.targets],
        "adapter parameters": [f"{count:,}" for count in summary.parameters_adapter],
        "trainable": [f"{count:,}" for count in summary.parameters_trainable],
        "n": list(summary.n),
    }
    if summary.label.fillna("").any():
        columns["variant"] = list(summary.label.fillna(""))
    for epoch in ("best", "last"):
        means, sds = summary[f"{epoch}_mean"], summary[f"{epoch}_sd"]
        columns[f"{epoch} epoch: mean ± SD, %"] = [
            percent(mean, sd) for mean, sd in zip(means, sds, strict=True)
        ]
        columns[f"{epoch}: median"] = [f"{100 * value:.1f}" for value in summary[f"{epoch}_median"]]
    return pd.DataFrame(columns)


def protocol_table(study: Study) -> pd.DataFrame:
    """List every run field and the values it takes in the study."""
    rows = []
    for field in type(study.runs[0].spec).model_fields:
        values = [getattr(run.spec, field) for run in study.runs]
        shown = [getattr(value, "name", value) for value in values]
        distinct = dict.fromkeys(
            "+".join(value) if isinstance(value, tuple) else str(value)
            for value in shown
            if value is not None
        )
        rows.append({"field": field, "value": ", ".join(distinct) or "none"})
    return pd.DataFrame(rows)


def provenance_table(study: Study, folder: Path) -> pd.DataFrame:
    """List what the runs' records say of code, versions and machine; differing values all show."""
    found: dict[str, dict[str, None]] = {}
    for run in study.runs:
        for key, value in _flat(read_record(folder / run.id / "record.json").environment):
            found.setdefault(key, {})[str(value)] = None
    return pd.DataFrame(
        [{"fact": key, "value": ", ".join(values)} for key, values in found.items()]
    )


def _flat(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, value


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
