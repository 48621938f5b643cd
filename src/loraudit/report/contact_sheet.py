"""All figures of a project on one page, so that what should look alike can be compared."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from loraudit.base.errors import UserError
from loraudit.base.files import write_atomic

COLUMNS, GAP = 4, 24
"""Columns of the page, and pixels between figures."""


def contact_sheet(files: Sequence[Path], out: Path) -> None:
    """Write a page of PNG files, every one at half its size below its study's and its own name.

    Each goes into the column that is shortest so far.

    Raises:
        UserError: there are no files.
    """
    if not files:
        raise UserError("no figures to tile: there is no PNG in the folders of --figures")
    pictures = [plt.imread(file)[::2, ::2, :3] for file in files]
    wide = max(picture.shape[1] for picture in pictures) + GAP
    ends, places = [0] * COLUMNS, []
    for picture in pictures:
        column = int(np.argmin(ends))
        places.append((column * wide, ends[column] + GAP))
        ends[column] += picture.shape[0] + 2 * GAP
    page = np.full((max(ends) + GAP, COLUMNS * wide, 3), 0.85)
    for (x, y), picture in zip(places, pictures, strict=True):
        page[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    figure = plt.figure(figsize=(page.shape[1] / 100, page.shape[0] / 100), dpi=100)
    figure.figimage(page)
    for (x, y), file in zip(places, files, strict=True):
        at = (x / page.shape[1], 1 - (y - 4) / page.shape[0])
        figure.text(*at, f"{file.parent.name}/{file.stem}", fontsize=9, va="bottom")
    write_atomic(out, lambda path: figure.savefig(path, dpi=100))
    plt.close(figure)
