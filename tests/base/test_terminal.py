"""A table shows every name and number whole, at every width of the screen."""

import io

import pytest
from rich.console import Console

from loraudit.base.terminal import column_widths, grid, say, show

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


def test_a_wide_screen_has_a_frame_and_a_narrow_one_stacks_the_rows():
    assert "│" in "".join(shown(COLUMNS, ROWS, 100))
    assert [line.strip() for line in shown(COLUMNS, ROWS, 50)] == [
        "title",
        "cell, last epoch: snippets/minilm/lora-r8-q+v",
        "accuracy",
        "n: 5 · left, %: 81.25 · difference: +1.0234",
        "95 % interval: [+0.1, +2.0] · p (Holm): 0.012",
        "",
        "cell, last epoch: snippets/minilm/full accuracy",
        "n: 5 · left, %: 7.5 · difference: -0.5",  # cells without a value are left out
        "",
    ]


@pytest.mark.parametrize("columns", [None, "60"])
def test_a_pipe_is_wide_unless_columns_says_how_wide(monkeypatch, capsys, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    command = "`snakemake --cores 1 resources/models/minilm/manifest.json`"
    sentence = f"note: {'the model is not here; ' * 4}call {command}"
    show("title", COLUMNS, ROWS)
    say([sentence, "short"])
    lines = capsys.readouterr().out.splitlines()
    assert ("│" in "".join(lines)) == (columns is None)
    assert (sentence in lines) == (columns is None)
    widest = max(len(line) for line in lines if "manifest.json" not in line)
    assert widest <= (60 if columns else 200)
    assert lines[-1] == "short" and "resources/models/minilm/manifest.json`" in " ".join(lines)


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
