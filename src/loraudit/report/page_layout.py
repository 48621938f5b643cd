"""How a table for readers is laid out on the page: few columns, aligned, with a line for the rest.

The names of a cell become one column, columns that say the same in every row become a sentence, and
columns that only some readers need stand in a second table, which is folded.
"""

import re
from collections.abc import Collection
from typing import TypedDict

import pandas as pd

CELL_NAMES = ("method", "rank", "targets", "variant")
"""Columns that together name a cell."""

NAMES = ("task", "model", "cell", "claim", "pair", "switch", "check", "metric", "field")
"""Columns that tell what a row is of: a table of details repeats them."""

ALWAYS = ("verdict", "effect")
"""Columns that are shown even where every row has the same value: the page draws them."""

MARKS = {
    "reproduced": "●",
    "not reproduced": "■",
    "different, by how much is open": "◧",
    "undecided": "◆",
    "not comparable": "○",
    "supported": "●",
    "contradicted": "■",
    "not tested": "○",
}
"""The words of verdicts, each with the mark that stands before it."""

NUMBER = re.compile(
    r"[<\[]?[+-]?\d[\d,.]*(e[+-]?\d+)?[\d\s,.%±+\-\[\]]*(kB|MB|GB|points|MiB|ms|s)?"
)
"""What a cell of a column of numbers looks like: a number, ±, an interval or a unit."""

LONGEST = 60
"""Characters of a value that the sentence on equal columns repeats."""


class Layout(TypedDict):
    """A table as the template shows it: `numbers` tells of each column whether it is of numbers.

    `same` is the sentence on columns that are left out because every row says the same; `first` how
    many rows are seen before a reader asks for all.
    """

    columns: list[str]
    numbers: list[bool]
    rows: list[list[str]]
    same: str
    first: int


def layout(table: pd.DataFrame, first: int = 0) -> Layout:
    """Lay a table out; `first` is how many rows are seen at first (0: all)."""
    texts = verdict_ahead(with_one_name(as_text(table)))
    shown, same = without_constants(texts)
    rows = shown.to_numpy().tolist()
    numbers = [_of_numbers(shown[name]) for name in shown]
    return Layout(
        columns=list(shown), numbers=numbers, rows=rows, same=same, first=first or len(rows)
    )


def split(table: pd.DataFrame, details: Collection[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a table without its details, and the details beside what names each row.

    Args:
        table: for readers.
        details: columns that only some readers need; those it lacks are ignored.
    """
    found = [name for name in table if name in details]
    if not found:
        return table, pd.DataFrame()
    names = [name for name in table if name in (*NAMES, *CELL_NAMES) and name not in found]
    return table.drop(columns=found), table[[*names, *found]]


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table's values as text: missing ones are empty, fractions have three digits."""
    return pd.DataFrame(
        [["" if pd.isna(v) else _value(v) for v in row] for row in table.itertuples(index=False)],
        columns=list(table),
    )


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def with_one_name(table: pd.DataFrame) -> pd.DataFrame:
    """Join the columns that name a cell into one: "LoRA (ours) r8 q+v"."""
    found = [name for name in CELL_NAMES if name in table]
    if "method" not in found:
        return table
    ranked = table.assign(
        rank=[f"r{r}" if r else "" for r in table["rank"]] if "rank" in table else ""
    )
    names = [" ".join(filter(None, row)) for row in ranked[found].to_numpy().tolist()]
    place = list(table).index(found[0])
    rest = table.drop(columns=found)
    rest.insert(place, "cell", names)
    return rest


def verdict_ahead(table: pd.DataFrame) -> pd.DataFrame:
    """Put the column `verdict` right behind what names a row: a narrow screen shows it too."""
    if "verdict" not in table:
        return table
    others = [name for name in table if name != "verdict"]
    names = (*NAMES, *CELL_NAMES)
    place = next((at for at, name in enumerate(others) if name not in names), len(others))
    return table[[*others[:place], "verdict", *others[place:]]]


def without_constants(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Leave out empty columns, and those that say the same in all of several rows.

    Returns:
        The other columns, and the sentence on those that were left out ("": none).
    """
    shown = table.loc[:, [bool((table[name] != "").any()) for name in table]]
    if len(table) < 2:
        return shown, ""
    alike = [name for name in shown if name not in ALWAYS and shown[name].nunique() == 1]
    alike = [name for name in alike if len(shown[name].iloc[0]) <= LONGEST]
    if len(alike) == shown.shape[1]:
        alike = alike[1:]
    said = "; ".join(f"{name} {shown[name].iloc[0]}" for name in alike)
    return shown.drop(columns=alike), f"The same for all rows: {said}." if said else ""


def _of_numbers(column: pd.Series) -> bool:
    filled = [text for text in column if text]
    return bool(filled) and all(NUMBER.fullmatch(text) for text in filled)


def word(verdict: str) -> str:
    """Return the word that a verdict starts with, without what it is about; "" if there is none."""
    return next((known for known in MARKS if re.match(rf"{known}\b", verdict)), "")
