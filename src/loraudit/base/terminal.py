"""Print tables whole, fitted to the width of a terminal, or in wide lines to a pipe."""

import json
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

WIDE = 200
"""Characters in a line to a pipe, where no terminal's width folds the lines."""


def console() -> Console:
    """Return a console on stdout; in a pipe its lines are wide unless COLUMNS says how wide."""
    fitted = Console(highlight=False)
    return fitted if _fitted(fitted) else Console(highlight=False, width=WIDE)


def _fitted(console: Console) -> bool:
    """Tell whether lines are to be fitted to the screen's width."""
    return console.is_terminal or os.environ.get("COLUMNS", "").isdigit()


def say(lines: Iterable[str]) -> None:
    """Print sentences, a line each; on a screen, words that don't fit go on below, indented."""
    screen = Console(highlight=False)
    folds = textwrap.TextWrapper(
        width=screen.width if _fitted(screen) else sys.maxsize,
        subsequent_indent="  ",
        break_long_words=False,  # names, paths and commands stay whole
        break_on_hyphens=False,
    )
    for line in lines:
        print(folds.fill(line), flush=True)


@dataclass(frozen=True)
class Grid:
    """A table whose cells are shown whole and as they are, without markup.

    Where the screen is too narrow for the longest word of every column, the rows are stacked below
    each other instead, each cell behind its column's name, as many in a line as fit.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give rich what fits into the width that it has."""
        widths = column_widths([self.columns, *self.rows], options.max_width)
        if widths is None:
            yield Text(self.title, style="table.title")
            yield Text("\n".join(self._listed(options.max_width)), overflow="fold")
            return
        table = Table(title=self.title, title_justify="left")
        for name, width in zip(self.columns, widths, strict=True):
            table.add_column(name, width=width, overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        yield table

    def _listed(self, width: int) -> Iterator[str]:
        if len(self.columns) == 2:  # the first column names the second
            yield from (": ".join(row) for row in self.rows)
            return
        for row in self.rows:
            line = ""
            for name, cell in zip(self.columns, row, strict=True):
                part = f"{name}: {cell}" if cell else ""
                if line and part and cell_len(line) + 3 + cell_len(part) > width:
                    yield line
                    line = ""
                line = " · ".join(filter(None, [line, part]))
            yield from (line, "")


def column_widths(rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Share a screen's width out among a table's columns, so that no word is broken.

    Args:
        rows: the cells of the table, its header included.
        width: of the screen in characters, of which each column takes three more, and the table
            one, for its frame.

    Returns:
        The width of each column, at most that of its longest cell; None if the words don't fit.
    """
    columns = list(zip(*rows, strict=True))
    least = [_longest(word for cell in cells for word in cell.split()) for cells in columns]
    most = [_longest(line for cell in cells for line in cell.splitlines()) for cells in columns]
    widths, left = least, width - 1 - sum(size + 3 for size in least)
    if left < 0:
        return None
    while left and any(size < full for size, full in zip(widths, most, strict=True)):
        narrow = [number for number, size in enumerate(widths) if size < most[number]]
        number = min(narrow, key=lambda number: widths[number])
        widths[number] += 1
        left -= 1
    return widths


def _longest(parts: Iterable[str]) -> int:
    return max(map(cell_len, parts), default=1)


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Grid:
    """Make a table of values; None is shown as nothing."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return Grid(title, list(map(str, columns)), texts)


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


def roughly(seconds: float) -> str:
    """Write an estimate no finer than it is known: 40 s, 6 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    if (minutes := round(seconds / 60)) < 60:
        return f"{minutes} min"
    return duration(300 * round(seconds / 300))


def print_json(value: object) -> None:
    """Print a value as JSON; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False), flush=True)


def _plain(value: object) -> object:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
