"""Compare a study's files with the same files made again from the evidence.

What is copied from records is compared character by character, what is computed up to rounding,
since the study may have been made on another kind of CPU. A picture drawn by another version of
Matplotlib can't be compared; that is a note and no problem.
"""

import base64
import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from loraudit.report.table_registry import SECTION7

MANY = 3
"""Cells of a table that are named before the rest is counted."""


class Finding(NamedTuple):
    """What is wrong with an artefact ("problem"), or could not be checked ("note")."""

    kind: Literal["problem", "note"]
    artefact: str
    text: str


Findings = Iterator[Finding]


def guarded(artefact: Path | str, findings: Findings) -> Findings:
    """Pass findings on; a file that can't be read ends them with a problem, and not with an error.

    The problem is the artefact's, unless the error names the file.
    """
    try:
        yield from findings
    except Exception as error:  # a damaged file can fail anywhere in its reader
        named = getattr(error, "filename", None) or artefact
        yield Finding("problem", str(named), f"can't be read: {reason(error)}")


def reason(error: Exception) -> str:
    """Return an error's message as one line; one that says little gets the error's kind before."""
    text = " ".join(str(error).split())
    told = isinstance(error, OSError | ValueError) and text
    return text if told else f"{type(error).__name__} {text}".strip()


def _missing_or(check: Callable[[Path, Path], Findings]) -> Callable[[Path, Path], Findings]:
    """Return a comparison of files that first asks whether the file is there."""

    def checked(path: Path, wanted: Path) -> Findings:
        if path.is_file():
            yield from guarded(path, check(path, wanted))
        else:
            yield Finding("problem", str(path), "missing")

    return checked


def _same_parquet(path: Path, wanted: Path) -> Findings:
    yield from same_text(path, _csv(path), _csv(wanted))


def _csv(path: Path) -> str:
    return pd.read_parquet(path).to_csv(index=False)


def _same_csv(path: Path, wanted: Path) -> Findings:
    yield from same_text(path, path.read_text(errors="replace"), wanted.read_text())


def same_text(path: Path, text: str, wanted: str) -> Findings:
    """Compare two CSV texts; name the first values that differ, beyond rounding if computed."""
    if text == wanted:
        return
    have, want = (list(csv.reader(io.StringIO(lines))) for lines in (text, wanted))
    if have[:1] != want[:1]:
        yield Finding("problem", str(path), "other columns than the records give")
        return
    if len(have) != len(want):
        count = f"{len(have) - 1} rows, the records give {len(want) - 1}"
        yield Finding("problem", str(path), count)
        return
    if have == want:
        yield Finding("problem", str(path), "other line ends than it was written with")
    differences = [
        f"row {number}, {column}: {one!r}, the records give {two!r}"
        for number, (left, right) in enumerate(zip(have[1:], want[1:], strict=True), 1)
        for column, one, two in zip(want[0], left, right, strict=False)
        if one != two and not (_computed(path) and not one.isdigit() and rounded(one, two))
    ]
    if not differences:
        return
    more = f"; and {len(differences) - MANY} more cells" if len(differences) > MANY else ""
    yield Finding("problem", str(path), "; ".join(differences[:MANY]) + more)


def _computed(path: Path) -> bool:
    """Tell whether a table is computed; tidy ones but section 7's copy what the records say."""
    return path.parent.name != "tidy" or path.stem in SECTION7


def rounded(one: str | float, two: str | float, most: float = 1e-12) -> bool:
    """Tell whether two numbers are equal up to rounding.

    Sums, logarithms and decompositions in float64 (2e-16) may round otherwise on another kind of
    CPU or with other threads; an edit that matters is larger than 1e-9. `most` is the largest
    difference between numbers near zero.
    """
    try:
        return math.isclose(float(one), float(two), rel_tol=1e-9, abs_tol=most)
    except ValueError:
        return False


def _same_lines(path: Path, wanted: Path) -> Findings:
    """Compare a text file line by line; name the first line that differs."""
    what = "records" if path.suffix == ".jsonl" else "table"
    yield from _same_line(path, path.read_text(errors="replace"), wanted.read_text(), what)


def _same_line(path: Path, text: str, wanted: str, what: str) -> Findings:
    if text != wanted:
        lines = zip_longest(text.splitlines(), wanted.splitlines())
        number = next((n for n, (one, two) in enumerate(lines, 1) if one != two), 1)
        yield Finding("problem", str(path), f"line {number} is not what the {what} give")


NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")

NAME_BY_CONTENT = re.compile(r"\b[a-z]+[0-9a-f]{10}\b")
"""What Matplotlib calls a marker or clipping path in an SVG: a hash of its coordinates."""

DRAWN_BY = re.compile(r"Matplotlib v[\w.]+")

POINTS = 2e-5
"""The largest difference of a coordinate in an SVG (1/72 inch, printed with six decimals)."""

SHADES = 32
"""The largest difference of a pixel's colours (of 255) where a coordinate was rounded otherwise."""


def _other_matplotlib(text: str, wanted: str) -> str:
    """Return the version of Matplotlib that drew an SVG, if it is not the one that drew it now."""
    was, now = (DRAWN_BY.findall(svg)[:1] for svg in (text, wanted))
    return was[0] if was and was != now else ""


def _same_svg(path: Path, wanted: Path) -> Findings:
    had, want = path.read_text(errors="replace"), wanted.read_text()
    if other := _other_matplotlib(had, want):
        yield Finding("note", str(path), f"drawn by {other} and not compared with today's")
    elif not _same_drawing(had, want):
        yield Finding("problem", str(path), "not the picture of the rows that it is drawn from")


def _same_drawing(text: str, wanted: str) -> bool:
    """Tell whether two SVGs are equal, up to the rounding of coordinates."""
    return text == wanted or _same_numbers(_renamed(text), _renamed(wanted), POINTS)


def _renamed(svg: str) -> str:
    """Give an SVG's parts that are named by their content names in order of appearance."""
    names: dict[str, str] = {}
    return NAME_BY_CONTENT.sub(lambda name: names.setdefault(name[0], f"n{len(names)}"), svg)


def _same_numbers(text: str, wanted: str, most: float) -> bool:
    """Tell whether two texts are equal but for fractions, and these up to rounding."""
    if NUMBER.split(text) != NUMBER.split(wanted):
        return False
    numbers = zip(NUMBER.findall(text), NUMBER.findall(wanted), strict=True)
    return all(rounded(one, two, most) for one, two in numbers)


def _same_png(path: Path, wanted: Path) -> Findings:
    """Compare two pictures; a rounded coordinate may shade a pixel otherwise, an edit paints it."""
    if path.read_bytes() == wanted.read_bytes():
        return
    svgs = path.with_suffix(".svg"), wanted.with_suffix(".svg")
    if svgs[0].is_file() and _other_matplotlib(*(svg.read_text(errors="replace") for svg in svgs)):
        return  # said of the SVG
    had, want = (np.asarray(Image.open(file).convert("RGBA"), int) for file in (path, wanted))
    if had.shape != want.shape or abs(had - want).max() > SHADES:
        yield Finding("problem", str(path), "not the picture of the rows that it is drawn from")


EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,([\w/+=]+)")


def _same_page(path: Path, wanted: Path) -> Findings:
    """Compare two pages: their text line by line, and what is embedded in them up to rounding."""
    had, want = path.read_text(errors="replace"), wanted.read_text()
    said, say = (EMBEDDED.sub("", page) for page in (had, want))
    yield from _same_line(path, said, say, "tables")
    parts, wanted_parts = (
        [base64.b64decode(part).decode() for part in EMBEDDED.findall(page)] for page in (had, want)
    )
    if len(parts) != len(wanted_parts):
        return  # a line of text differs then
    pairs = list(zip(parts, wanted_parts, strict=True))
    if other := next(filter(None, (_other_matplotlib(one, two) for one, two in pairs)), ""):
        text = f"its figures were drawn by {other} and are not compared with today's"
        yield Finding("note", str(path), text)
        return
    for number, (one, two) in enumerate(pairs, 1):
        same = _same_drawing(one, two) if "<svg" in two else _same_numbers(one, two, 1e-12)
        if not same:
            text = f"embedded file {number} of {len(pairs)} is not the figure or its numbers"
            yield Finding("problem", str(path), text)


PICTURES = {".svg": _same_svg, ".png": _same_png, ".html": _same_page}

COMPARE: dict[str, Callable[[Path, Path], Findings]] = {
    suffix: _missing_or(check)
    for suffix, check in {
        ".csv": _same_csv,
        ".parquet": _same_parquet,
        ".md": _same_lines,
        ".jsonl": _same_lines,
        **PICTURES,
    }.items()
}
"""How a file is compared with the one made again, by its suffix."""
