"""A file equals the one made again up to the rounding of another CPU, and an edit is found."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from loraudit.tools.remade import COMPARE, guarded

SVG = '<svg><dc:title>Matplotlib v3.10.8</dc:title><path id="m0123456789" d="M 10.25 7.123456"/>'
SVG += '<use href="#m0123456789" x="57.6"/><text>0.85</text></svg>'


@pytest.fixture
def compared(tmp_path):
    """Give a function that writes two files of a name and returns what is found."""

    def compare(name: str, had: str | bytes, wanted: str | bytes) -> list[str]:
        paths = tmp_path / "had" / name, tmp_path / "wanted" / name
        for path, content in zip(paths, (had, wanted), strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [f"{f.kind}: {f.text}" for f in COMPARE[paths[0].suffix](*paths)]

    return compare


def test_a_missing_file_is_a_problem(tmp_path):
    (tmp_path / "wanted.md").write_text("x")
    for suffix, compare in COMPARE.items():
        (found,) = compare(tmp_path / f"had{suffix}", tmp_path / "wanted.md")
        assert found.text == "missing"


def test_a_rounded_coordinate_is_no_other_picture(compared):
    """Matplotlib names a marker by a hash of its coordinates."""
    other = SVG.replace("7.123456", "7.123457").replace("m0123456789", "mabcdef0123")
    assert compared("a.svg", SVG, SVG) == compared("a.svg", other, SVG) == []


@pytest.mark.parametrize(
    "change", [("0.85", "0.86"), ("10.25", "10.26"), ("<text>", "<text >"), ("57.6", "58")]
)
def test_an_edited_picture_is_found(compared, change):
    assert compared("a.svg", SVG.replace(*change), SVG) == [
        "problem: not the picture of the rows that it is drawn from"
    ]


def test_a_picture_of_another_matplotlib_is_a_note(compared):
    other = SVG.replace("v3.10.8", "v3.9.1").replace("10.25", "11")
    (found,) = compared("a.svg", other, SVG)
    assert found == "note: drawn by Matplotlib v3.9.1 and not compared with today's"
    assert compared("a.png", png(0), png(255)) == []  # said of the SVG beside it


def png(shade: int) -> bytes:
    """Make a white picture with one pixel of a shade."""
    pixels = np.full((8, 8), 255, np.uint8)
    pixels[3, 3] = shade
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_pixel_may_be_shaded_and_not_painted(compared):
    assert compared("a.png", png(200), png(190)) == []
    assert compared("a.png", png(0), png(255)) == [
        "problem: not the picture of the rows that it is drawn from"
    ]
    (found,) = compared("a.png", png(0)[:60], png(0))
    assert found.startswith("problem: can't be read: ")


def page(svg: str, csv: str, text: str = "n = 5") -> str:
    parts = [base64.b64encode(part.encode()).decode() for part in (svg, csv)]
    return (
        f'<p>{text}</p>\n<img src="data:image/svg+xml;base64,{parts[0]}">'
        f'<a href="data:text/csv;base64,{parts[1]}">'
    )


def test_a_page_is_compared_with_what_is_embedded_in_it(compared):
    table = "score\n0.1234567890123456\n"
    whole = page(SVG, table)
    rounded = page(SVG.replace("7.123456", "7.123457"), table.replace("3456\n", "3457\n"))
    assert compared("a.html", rounded, whole) == []
    assert compared("a.html", page(SVG, table, "n = 6"), whole) == [
        "problem: line 1 is not what the tables give"
    ]
    for svg, csv, number in ((SVG.replace("0.85", "0.86"), table, 1), (SVG, "score\n0.2\n", 2)):
        text = f"problem: embedded file {number} of 2 is not the figure or its numbers"
        assert compared("a.html", page(svg, csv), whole) == [text]


def test_what_cannot_be_read_is_a_problem_that_names_its_file():
    def failing(error):
        raise error
        yield

    (found,) = guarded("a.json", failing(KeyError("ok")))
    assert tuple(found) == ("problem", "a.json", "can't be read: KeyError 'ok'")
    (found,) = guarded("a.json", failing(PermissionError(13, "Permission denied", "b.json")))
    assert found.artefact == "b.json" and "Permission denied" in found.text
