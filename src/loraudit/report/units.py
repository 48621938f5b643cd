"""Scores and their differences in the unit of their metric: percent, nats per token, or none.

Numbers in percent or percentage points are written without their unit, which the column or axis
names. Others have it beside them: one column may have tasks of both kinds.
"""

from typing import Any

import pandas as pd

from loraudit.report import formatting
from loraudit.report.formatting import percent, points
from loraudit.studies.scores import unit_of


def _own(metric: str) -> str:
    return f" {unit}" if (unit := unit_of(metric)) else ""


def score(metric: str, mean: float, sd: float = float("nan"), digits: int = 1) -> str:
    """Write a score with its standard deviation if it is known: "81.2 ± 0.4", "3.214 nats"."""
    if unit_of(metric) == "points" or mean != mean:
        return percent(mean, sd, digits)
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if sd == sd else "") + _own(metric)


def with_unit(metric: str, mean: float, sd: float = float("nan")) -> str:
    """Write a score with its unit, percent too: "81.2 %", "81.2 ± 0.4 %", "3.214 nats"."""
    return score(metric, mean, sd) + (" %" if unit_of(metric) == "points" else "")


def metric_of(rows: pd.DataFrame) -> str:
    """Return the headline metric of rows of one task; rows that do not say it are of labels."""
    return str(rows.metric.iloc[0]) if "metric" in rows else "accuracy"


def difference(metric: str, value: float, unit: bool = True) -> str:
    """Write a signed difference of scores: "+1.2", "-0.031 nats"."""
    if unit_of(metric) == "points" or value != value:
        return points(value)
    return f"{value:+.3f}" + (_own(metric) if unit else "")


def difference_with_unit(metric: str, value: float) -> str:
    """Write a signed difference with its unit, points too: "+1.2 points", "-0.031 nats"."""
    return difference(metric, value) + (" points" if unit_of(metric) == "points" else "")


def interval(metric: str, low: float, high: float) -> str:
    """Write an interval of a difference, without its unit; nothing where it is not known."""
    if low != low:
        return ""
    return f"[{difference(metric, low, unit=False)}, {difference(metric, high, unit=False)}]"


def interval_or_why(metric: str, low: float, high: float, n: float) -> str:
    """Write an interval, or why there is none, as `formatting.interval_or_why` does."""
    if unit_of(metric) == "points":
        return formatting.interval_or_why(low, high, n)
    return interval(metric, low, high)


def of_row(row: Any) -> str:
    """Return the headline metric of one row; one that does not say it is of labels."""
    return str(getattr(row, "metric", "accuracy"))


def axis_name(name: str, metric: str) -> str:
    """Name an axis of scores, with the unit and the better side where that is not percent."""
    if unit_of(metric) == "points":
        return name
    unit = "nats per token; " if unit_of(metric) == "nats" else ""
    return f"{name} ({unit}lower is better)"
