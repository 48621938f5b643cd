"""How numbers and tables are written for readers: rounded, with units, as Markdown."""

import json
import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from loraudit.analysis.cells import cell_name, label_text
from loraudit.studies.methods import METHODS


def percent(mean: float, sd: float, digits: int = 1) -> str:
    """Write a score as percent with its standard deviation, or without where n = 1.

    A score that is not defined (NaN) is said to be so.
    """
    if mean != mean:
        return "undefined"
    return f"{100 * mean:.{digits}f}" + (f" ± {100 * sd:.{digits}f}" if sd == sd else "")


def cell_text(value: object) -> str:
    """Write a field of a cell: nothing where it has none, and a whole number without a point."""
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


LABELS = {
    r"alpha-?times_sqrt_rank([\d.]+)": r"alpha = \1√r",
    r"alpha-?times_rank([\d.]+)": r"alpha = \1r",
    r"alpharank\b": "alpha = r",
    r"base_bits(\d+)": r"\1 bits",
    r"\bpeft-(?:use_)?(\w+?)(?:True)?(?=[- ]|$)": r"\1",
}
"""Labels that a study's axes make, and what readers see in their place."""


def label_words(label: str) -> str:
    """Write a label for readers: "alpha = 2√r"."""
    for made, words in LABELS.items():
        label = re.sub(made, words, label)
    return label


def shown_name(name: str) -> str:
    """Write a cell's name (`cells.cell_name`) for readers: "full fine-tuning"."""
    method, _, rest = name.partition(" ")
    return f"{METHODS[method].label} {label_words(rest)}".strip() if method in METHODS else name


def shown_cell(cell: dict) -> str:
    """Name a cell for readers: "LoRA (ours) r8 q+v"."""
    return shown_name(cell_name(cell))


def shown_set(method: str, targets: object, label: object = None) -> str:
    """Name cells that differ in their rank alone, for readers: "LoRA (ours) q+v alpha = r"."""
    words = (method, label_text(targets), label_text(label))
    return shown_name(" ".join(filter(None, words)))


def shown_cells(text: str) -> str:
    """Write all cells that a text names for readers: "full fine-tuning minus head only"."""
    return "".join(map(shown_name, re.split(r"( minus | over |; )", text)))


def cell_words(row: dict[str, Any], shown: Iterable[str]) -> str:
    """Name a cell by its task and the fields that are shown: "mrpc lora r=8 q+v"."""
    texts = [(name, cell_text(row[name])) for name in ("task", *shown)]
    return " ".join(f"r={text}" if name == "rank" else text for name, text in texts if text)


def points(value: float, digits: int = 1) -> str:
    """Write a difference of scores in percentage points, signed."""
    return "" if value != value else f"{100 * value:+.{digits}f}"


def in_points(text: str) -> str:
    """Write the unit behind a number, or several: "1 point", "1.5 points"."""
    return f"{text} point" if text == "1" else f"{text} points"


def of_which(count: float, n: float, what: str = "collapsed") -> str:
    """Say how many of n runs are sick: "1 of 5 collapsed"."""
    return f"{count:g} of {n:g} {what}"


def counted(words: pd.Series, in_order: bool = False) -> str:
    """Count words: "3 supported, 1 undecided", the most frequent first, or in their own order."""
    counts = words.value_counts(sort=not in_order)
    return ", ".join(f"{n} {word}" for word, n in counts.items())


def interval(low: float, high: float, digits: int = 1) -> str:
    """Write an interval of a difference in percentage points; nothing where n = 1."""
    return "" if low != low else f"[{points(low, digits)}, {points(high, digits)}]"


JUDGED = 2
"""Digits of a difference that is judged by a margin: with one, -0.97 would read as the margin."""


def interval_or_why(low: float, high: float, n: float, digits: int = 1) -> str:
    """Write an interval of a difference, or why there is none: "n = 2: no interval".

    One that reaches beyond ±100 points leaves out nothing that can be, and is none.

    Args:
        low, high: as fractions; NaN where there is none.
        n: the seeds of the smaller side.
    """
    if low == low and (low <= -1 or high >= 1):
        return f"n = {n:g}: no interval"
    return interval(low, high, digits)


def p_value(p: float) -> str:
    """Write a p-value with two digits, small ones as a power of ten."""
    return "" if p != p else f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown, numbers to the right."""
    if table.empty:
        return "No rows.\n"
    table = table.rename(columns=_escaped).map(_escaped)
    align = ["right" if str(value)[:1] in "0123456789+-[" else "left" for value in table.iloc[0]]
    return table.to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"


def _escaped(value: Any) -> Any:
    """Keep text from breaking a Markdown table or being taken for HTML."""
    if not isinstance(value, str):
        return value
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", " ".join(value.split())).replace("|", r"\|")


def values_text(values: str, without: str = "") -> str:
    """Write the values of a trial for readers: "learning rate 0.001, alpha 16".

    Args:
        values: a JSON object, or "".
        without: a field to leave out.
    """
    content = json.loads(values) if values else {}
    numbers = {k: f"{v:g}" if isinstance(v, int | float) else str(v) for k, v in content.items()}
    return ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in numbers.items() if name != without
    )
