"""The tables of what runs have forgotten: of earlier tasks, and of the pretraining."""

import pandas as pd

from loraudit.analysis.cells import CELL
from loraudit.report import units
from loraudit.report.tables import name_columns
from loraudit.studies.study import Study


def forgetting_rows(study: Study, runs: pd.DataFrame, forgetting: pd.DataFrame) -> pd.DataFrame:
    """Summarise over seeds what each cell has forgotten of each earlier task.

    Args:
        study, runs: are not needed.
        forgetting: `collect.forgetting`'s rows; their headline metrics are shown.

    Returns:
        A row per cell and earlier task: CELL, earlier_task, distance, metric, n, the means of
        `before` and `after`, and the mean and standard deviation (n - 1) of `forgotten`.
    """
    shown = forgetting[forgetting.headline.astype(bool)]
    return _over_seeds(shown, [*CELL, "earlier_task", "distance", "metric"], "forgotten")


def _over_seeds(rows: pd.DataFrame, keys: list[str], change: str) -> pd.DataFrame:
    """Return a row per group of `keys`: n, means of before, after and `change`, and its sd."""
    if rows.empty:
        return pd.DataFrame(columns=[*keys, "n", "before", "after", change, "sd"])
    groups = rows.groupby(keys, dropna=False, sort=False)
    found = groups[["before", "after", change]].mean()
    return found.assign(n=groups.size(), sd=groups[change].std()).reset_index()


def forgetting_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn `forgetting_rows` into a table for readers."""
    records = rows.to_dict("records")
    return pd.DataFrame(
        {
            "after": list(rows.task),
            "model": list(rows.model),
            **name_columns(rows),
            "earlier task": [row["earlier_task"] for row in records],
            "runs ago": [row["distance"] for row in records],
            "metric": [row["metric"] for row in records],
            "n": [row["n"] for row in records],
            "before, %": [units.score(row["metric"], row["before"]) for row in records],
            "after, %": [units.score(row["metric"], row["after"]) for row in records],
            "forgotten: mean ± SD, points": [
                units.score(row["metric"], row["forgotten"], row["sd"]) for row in records
            ],
        }
    )


def language_rows(study: Study, runs: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Summarise over seeds what each cell did to its base as a language model.

    Args:
        study, runs: are not needed.
        losses: `collect.language_loss`'s rows.

    Returns:
        A row per cell and text: CELL, text, kind, rows, tokens, why, n, the means of `before` and
        `after` in nats per token, and the mean and standard deviation (n - 1) of `rise`.
    """
    return _over_seeds(losses, [*CELL, "text", "kind", "rows", "tokens", "why"], "rise")


def language_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn `language_rows` into a table for readers."""
    records = rows.to_dict("records")
    return pd.DataFrame(
        {
            "after": list(rows.task),
            "model": list(rows.model),
            **name_columns(rows),
            "text of": [row["text"] for row in records],
            "kind": [row["kind"] or row["why"] for row in records],
            "tokens": [row["tokens"] or "" for row in records],
            "n": [row["n"] for row in records],
            "loss before": [_nats(row["before"]) for row in records],
            "loss after": [_nats(row["after"]) for row in records],
            "rise: mean ± SD, nats per token": [_rise(row["rise"], row["sd"]) for row in records],
        }
    )


def _nats(value: float) -> str:
    return f"{value:.3f}" if value == value else ""


def _rise(mean: float, sd: float) -> str:
    if mean != mean:
        return ""
    return f"{mean:+.3f}" + (f" ± {sd:.3f}" if sd == sd else "")
