"""A table shows every name and number whole, at every width of the screen."""

import io

import pytest
from rich.console import Console

from loraudit.base.terminal import column_widths, grid

COLUMNS = ["cell, last epoch", "n", "left, %", "difference", "95 % interval", "p (Holm)"]
ROWS = [
    ["snippets/minilm/lora-r8-q+v accuracy", 5, "81.25", "+1.0234", "[+0.1, +2.0]", "0.012"],
    ["snippets/minilm/full accuracy", 5, "7.5", "-0.5", "", None],
]


def shown(columns, rows, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(grid("title", columns, rows))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [28, 40, 50, 79, 80, 100, 200])
def test_no_word_is_cut_or_broken(width):
    lines = shown(COLUMNS, ROWS, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for row in ROWS:
        for cell in row:
            assert all(word in text for word in str(cell or "").split())


@pytest.mark.parametrize("width", [10, 50, 80])
def test_what_is_longer_than_a_line_is_folded_and_not_cut(width):
    lines = shown(["fact", "value"], [["sha256", "0123456789abcdef" * 8]], width)
    assert "0123456789abcdef" * 8 in "".join(line.strip() for line in lines)


def test_a_wide_screen_has_a_frame_and_a_narrow_one_a_list():
    assert "│" in "".join(shown(COLUMNS, ROWS, 100))
    narrow = shown(COLUMNS, ROWS, 50)
    assert "difference: +1.0234" in narrow and "p (Holm): 0.012" in narrow
    assert "p (Holm): " not in narrow  # a cell without a value is left out


def test_widths_fit_and_hold_the_longest_words():
    rows = [COLUMNS, *[[str(cell or "") for cell in row] for row in ROWS]]
    least = [
        max(len(word) for cell in column for word in cell.split())
        for column in zip(*rows, strict=True)
    ]
    assert column_widths(rows, sum(least) + 3 * len(least)) is None
    for width in range(sum(least) + 3 * len(least) + 1, 150):
        widths = column_widths(rows, width)
        assert sum(widths) + 3 * len(widths) + 1 <= width
        assert all(size >= word for size, word in zip(widths, least, strict=True))
