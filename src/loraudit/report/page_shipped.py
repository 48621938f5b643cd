"""A study's scores beside those of the shipped run of the same study, cell by cell."""

from collections.abc import Sequence

import pandas as pd

from loraudit.analysis.cells import CELL, choices_of
from loraudit.analysis.finished import Finished, read_finished, unlike
from loraudit.analysis.statistics import MARGIN
from loraudit.report.formatting import counted, percent
from loraudit.report.page_tables import processors
from loraudit.report.table_registry import shipped_files
from loraudit.report.tables import cell_columns

NOT_SHIPPED, OTHER = "not shipped", "other settings"
"""The words of cells that can't be compared."""


def read_shipped(study: str) -> Finished | None:
    """Return the shipped run of a study; None where there is none."""
    files = shipped_files(study)
    return read_finished(*files) if files else None


def beside_shipped(here: Finished, there: Finished | None) -> pd.DataFrame:
    """Set each cell beside its shipped value.

    Returns:
        A row per cell of ours: how many runs of it both have, means and standard deviations (n - 1)
        of all its runs here and there (fractions, at the first choice of an epoch that both made),
        the largest difference of one run's score, and in words whether they agree. Empty where
        nothing is shipped, or where the shipped run is this one.
    """
    if there is None or _seals(here) == _seals(there):
        return pd.DataFrame()
    choices = [c for c in choices_of(here.runs) if c in choices_of(there.runs)]
    if not choices:
        return pd.DataFrame()
    score, mine, theirs = choices[0], here.specs(), there.specs()
    known = there.runs.set_index("run")[score]
    cells = there.runs.assign(cell=there.runs.run.str.rpartition("/")[0]).groupby("cell")[score]
    rows = []
    for key, part in here.runs.groupby(CELL, dropna=False, sort=False):
        cell = part.run.iloc[0].rpartition("/")[0]
        scores = cells.get_group(cell) if cell in cells.groups else pd.Series(dtype=float)
        common = [run for run in part.run if run in theirs]
        gaps = part.set_index("run")[score][common] - known[common]
        fields = dict.fromkeys(name for run in common for name in unlike(mine[run], theirs[run]))
        rows.append(
            {
                **dict(zip(CELL, key, strict=True)),
                **{"n": len(common), "mean": part[score].mean(), "sd": part[score].std()},
                **{"shipped_mean": scores.mean(), "shipped_sd": scores.std()},
                "largest": gaps.abs().max(),
                "agrees": agreement_word(gaps, tuple(fields)),
            }
        )
    return pd.DataFrame(rows)


def _seals(study: Finished) -> list[str | None]:
    return [record.get("record_sha256") for record in study.records]


def agreement_word(gaps: pd.Series, fields: Sequence[str]) -> str:
    """Say whether a cell's runs agree with the shipped ones.

    Args:
        gaps: differences of scores, as fractions, by run; only runs that both have.
        fields: of the specs, that differ.
    """
    if gaps.empty:
        return NOT_SHIPPED
    if fields:
        return f"{OTHER}: {', '.join(field.replace('_', ' ') for field in fields)}"
    largest = gaps.abs().max()
    if not largest > 0:
        return "the same scores"
    if largest <= MARGIN:
        return f"agrees, within {100 * largest:.1f} points"
    return f"differs, by up to {100 * largest:.1f} points"


def _any_compared(rows: pd.DataFrame) -> bool:
    return len(rows) > 0 and not rows.agrees.str.startswith((NOT_SHIPPED, OTHER)).all()


def shipped_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn `beside_shipped`'s rows into a table for readers; none if no cell can be compared."""
    if not _any_compared(rows):
        return pd.DataFrame()
    there = zip(rows.shipped_mean, rows.shipped_sd, strict=True)
    columns = {
        **cell_columns(rows),
        "here: mean ± SD, %": [percent(m, sd) for m, sd in zip(rows["mean"], rows.sd, strict=True)],
        "shipped: mean ± SD, %": [percent(m, sd) if m == m else "" for m, sd in there],
        "runs in both": list(rows.n),
        "agrees": list(rows.agrees),
    }
    return pd.DataFrame(columns)


def shipped_fact(rows: pd.DataFrame, here: Finished, there: Finished | None) -> dict[str, str]:
    """Count the cells that agree with the shipped run, and name the machines of both.

    Where no cell can be compared, that is a sentence on where the runs are from (`provenance`).
    """
    if there is None or rows.empty:
        return {}
    words = rows.agrees.str.replace(r"[,:].*", "", regex=True)
    counts = counted(words, in_order=True)
    if not _any_compared(rows):
        why = f"no cell of it can be compared with these: {counts}"
        return {"provenance": f"A run of this study is shipped too, but {why}."}
    machines = [" and ".join(processors(study.records)) for study in (here, there)]
    same = "Both were made on" if machines[0] == machines[1] else f"Made on {machines[0]}, shipped:"
    text = (
        f"{len(rows)} cells, run by run beside the run that is shipped: {counts}. "
        f"{same} {machines[1]}. A cell differs where one run's score is more than "
        f"{100 * MARGIN:g} point from its shipped one."
    )
    return {"shipped": text}
