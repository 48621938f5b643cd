"""The table of looks: in every figure of every study a colour is a method, a marker a target set.

A filled marker is our code, an open one PEFT's. Cells of one method that differ in rank or label
have tints of its colour, from pale to full. Words of verdicts, matrices and layers are no methods:
they have colours of their own. The colours of methods are Okabe and Ito's, those of matrices Paul
Tol's "muted"; both are told apart by colour-blind readers.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from loraudit.analysis.cells import cell_name, label_text
from loraudit.studies.entries import MATRICES
from loraudit.studies.methods import METHODS

BLACK, GREY = "#000000", "#777777"
METHOD_COLOURS = {
    "lora": "#0072B2",
    "alora": "#009E73",
    "adalora": "#E69F00",
    "full": "#D55E00",
    "full_saved": "#D55E00",
    "bitfit": "#CC79A7",
    "head": "#555555",
    "probe": "#999999",
}
"""Colours of methods; PEFT's twin has that of ours."""
OTHER_COLOURS = ("#56B4E9", "#882255", "#117733", "#332288", "#AA4499", "#999933")
"""Colours of methods without one in `METHOD_COLOURS`, by their place in the methods table."""
LINES = (
    *("-", "--", (0, (6, 1)), (0, (1, 1)), "-.", (0, (5, 1, 1, 1, 1, 1)), ":"),
    *((0, (3, 1, 1, 1)), (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (10, 1, 1, 1)), (0, (2, 3))),
)
"""Lines of the methods, in the order of the methods table."""

TARGET_MARKERS = {
    "q": "^",
    "k": "<",
    "v": "v",
    "o": ">",
    "q+k": "P",
    "q+v": "o",
    "q+k+v+o": "D",
    "up": "d",
    "down": "p",
    "up+down": "h",
    "all": "s",
}
"""Markers of target sets, from the smallest set to all matrices."""
OTHER_MARKERS = ("X", "H", "8", "*")
"""Markers of target sets without one in `TARGET_MARKERS`, by their names."""
METHOD_MARKERS = {"full": "D", "full_saved": "d", "bitfit": "P", "head": "X", "probe": "*"}
"""Markers of methods without target set."""

MUTED = (
    *("#332288", "#88CCEE", "#44AA99", "#117733"),
    *("#999933", "#CC6677", "#882255", "#AA4499"),
)
"""Colours of series that are no methods."""
MATRIX_COLOURS: dict[str, str] = dict(zip(MATRICES, MUTED, strict=False))

GOOD, BAD, OPEN, SIZE_OPEN = "#009E73", "#D55E00", "#737373", "#0072B2"
WORDS = {
    "supported": (GOOD, "o"),
    "contradicted": (BAD, "s"),
    "reproduced": (GOOD, "o"),
    "not reproduced": (BAD, "s"),
    "different, by how much is open": (SIZE_OPEN, "^"),
    "undecided": (OPEN, "D"),
}
"""Colour and marker of each word of a verdict."""


@dataclass(frozen=True)
class Look:
    """How a cell is drawn: `filled` is our code, not filled PEFT's; `line` joins its means."""

    colour: str
    marker: str
    filled: bool = True
    line: str | tuple = "-"

    @property
    def face(self) -> str:
        """The colour inside of a marker."""
        return self.colour if self.filled else "none"

    def marks(self) -> dict:
        """Return the keywords of `plot` for means; an open mark is a ring around a filled one.

        So both are seen where twins agree.
        """
        return {
            "color": self.colour,
            "marker": self.marker,
            "markerfacecolor": self.face,
            "markersize": 4 if self.filled else 6.5,
            "markeredgewidth": 0.8,
        }

    def dots(self) -> dict:
        """Return the keywords of `scatter` for the seeds."""
        sizes = {"linewidths": 0.5, "marker": "o"}
        return {"facecolors": self.face, "edgecolors": self.colour, **sizes}


def line_of(method: str) -> str | tuple:
    """Return the line by which figures draw a method; twelve are all different."""
    return LINES[list(METHODS).index(method) % len(LINES)]


def look_of(method: str, targets: object = "") -> Look:
    """Return the look of a method and target set (none: "" or a missing value)."""
    name = "" if pd.isna(targets) else str(targets)
    ours = METHODS[method].twin if method == "peft" else method
    place = list(METHODS).index(method)
    colour = METHOD_COLOURS.get(str(ours), OTHER_COLOURS[place % len(OTHER_COLOURS)])
    if name:
        other = OTHER_MARKERS[zlib.crc32(name.encode()) % len(OTHER_MARKERS)]
        marker = TARGET_MARKERS.get(name, other)
    else:
        marker = METHOD_MARKERS.get(method, OTHER_MARKERS[place % len(OTHER_MARKERS)])
    return Look(colour, marker, filled=method != "peft", line=line_of(method))


def tint(colour: str, share: float) -> str:
    """Mix a colour with white: a share of 1 is the colour itself."""
    return to_hex([1 - share * (1 - part) for part in to_rgb(colour)])


PALEST, DARKEST = 0.5, 0.45
"""The shares of a colour, mixed with white and with black, that cells of one look have at least."""
HALF = 0.45
"""The shade up to which labels are darker than the colour itself."""
LABEL_LINES = (
    "-",
    (0, (5, 1)),
    (0, (1, 1)),
    (0, (4, 1, 1, 1)),
    (0, (9, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
"""Lines of cells that differ in the label, after the first."""


def lines_apart(looks: Sequence[Look]) -> list[Look]:
    """Tell lines of one colour apart by its shade, from dark (the smallest target set) to pale.

    Args:
        looks: of each line of a figure, such as those of one method's target sets.

    Returns:
        The looks in their order. PEFT's twins are shaded as ours; one or two markers of a colour
        are as they were.
    """
    order = [*TARGET_MARKERS.values(), *OTHER_MARKERS, *METHOD_MARKERS.values()]
    shaded = []
    for look in looks:
        alike = {other.marker for other in looks if other.colour == look.colour}
        if len(alike) > 2:
            place = _place(order.index(look.marker), sorted(map(order.index, alike)))
            look = replace(look, colour=_shaded(look.colour, place))
        shaded.append(look)
    return shaded


_STUDY: ContextVar[Mapping[str, Look]] = ContextVar("the looks of a study's cells")


@contextmanager
def study_looks(cells: Iterable[Mapping]) -> Iterator[None]:
    """Draw each of a study's cells alike in all figures within, whichever cells a figure shows."""
    token = _STUDY.set(_told_apart(cells))
    try:
        yield
    finally:
        _STUDY.reset(token)


def cell_looks(cells: Iterable[Mapping]) -> dict[str, Look]:
    """Return each cell's look by its name (`cells.cell_name`).

    Within `study_looks` it is that of the study's cell of the same name. Otherwise cells of one
    method and target set are told apart as they come: by their label, the first of which, the base
    or none, has the colour itself, and by their rank, the lowest being the palest.

    Args:
        cells: rows with the columns of a cell; a cell may come many times.
    """
    looks, study = _told_apart(cells), _STUDY.get({})
    return {name: study.get(name, look) for name, look in looks.items()}


def _told_apart(cells: Iterable[Mapping]) -> dict[str, Look]:
    """Return each cell's look by its name, told apart from the others of its method and targets.

    A label has a line and a shade of its own: from dark to pale, and, where cells of any label
    differ in rank and are tinted by that, from dark to the colour itself: no cell is pale twice.
    """
    named = {cell_name(dict(cell)): cell for cell in cells}
    ranks: dict[tuple, list[float]] = {}
    labels: dict[tuple, list[str]] = {}
    for cell in named.values():
        group, label = _group(cell), label_text(cell["label"])
        ranks.setdefault((*group, label), []).append(_rank(cell))
        labels.setdefault(group, []).append(label)
    looks = {}
    for name, cell in named.items():
        group, label = _group(cell), label_text(cell["label"])
        look = look_of(cell["method"], cell["targets"])
        mine, others = sorted(set(ranks[*group, label])), list(dict.fromkeys(labels[group]))
        if place := others.index(label):
            shade = _place(place, range(1, len(others)))
            tinted = any(len(set(ranks[*group, other])) > 1 for other in others)
            colour = _shaded(look.colour, shade * HALF if tinted else shade)
            look = replace(look, colour=colour, line=LABEL_LINES[place % len(LABEL_LINES)])
        rank = _place(_rank(cell), mine)
        if rank < 1:
            look = replace(look, colour=tint(look.colour, PALEST + (1 - PALEST) * rank))
        looks[name] = look
    return looks


def _place(value: float, of: Sequence[float]) -> float:
    """Return where a value stands among several, from 0 (the first) to 1 (the last or only one)."""
    return of.index(value) / (len(of) - 1) if len(of) > 1 else 1.0


def _shaded(colour: str, place: float) -> str:
    """Return a colour from dark (place 0) to pale (1)."""
    if place < 0.5:
        dark = DARKEST + (1 - DARKEST) * 1.6 * place
        return to_hex([dark * part for part in to_rgb(colour)])
    return tint(colour, 1 - (1 - PALEST) * (place - 0.2) / 0.8)


def _rank(cell: Mapping) -> float:
    return 0.0 if pd.isna(cell["rank"]) else float(cell["rank"])


def _group(cell: Mapping) -> tuple:
    """Return what a look says without tint: PEFT's twins are tinted as ours."""
    look = look_of(cell["method"], cell["targets"])
    return look.colour, look.marker
