"""Print tables, fitted to the width of a terminal, or in wide lines to a pipe."""

import json
import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 200
"""Characters in a line to a pipe, where no terminal's width folds the lines."""


def console() -> Console:
    """Return a console on stdout; in a pipe its lines are wide."""
    fitted = Console(highlight=False)
    return fitted if fitted.is_terminal else Console(highlight=False, width=WIDE)


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Make a table whose cells are shown as they are, without markup."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return table


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    console().print(grid(title, columns, rows))


def duration(seconds: float) -> str:
    """Write a time span in the two units that fit: 12 s, 3 min 20 s, 2 h 05 min, 3 d 4 h.

    humanize has no short form for a table's column: it writes "2 hours and 5 minutes".
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def print_json(value: object) -> None:
    """Print a value as JSON; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
