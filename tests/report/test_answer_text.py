"""A report's answer as plain text, and the page of all studies on record that is made of them."""

import re
from pathlib import Path

import pytest

from loraudit.report.answer_text import answer_blocks, first_sentence
from loraudit.report.record_page import MARKS, page

COMMITTED = Path("results/committed")


@pytest.mark.parametrize(
    "page",
    ["", "<p>no answer</p>", '<div class="answer"> </div>', '<div class="answers">x. Y.</div>'],
)
def test_a_report_without_an_answer_has_no_first_sentence(tmp_path, page):
    (tmp_path / "report.html").write_text(page)
    assert first_sentence(tmp_path / "report.html") == ""
    assert first_sentence(tmp_path / "nowhere.html") == ""


def test_the_first_sentence_is_that_of_the_page(tmp_path):
    """As the template writes it, with the answer that a committed page has."""
    said = first_sentence(Path("results/committed/published/report.html"))
    assert re.match(r"Beside published numbers: \d .*not reproduced .*\.$", said)


def test_a_sentence_that_ends_in_a_colon_goes_on_with_the_first_item(tmp_path):
    listed = "<ul><li><span>✓ supported:</span> LoRA beats the head: +4.1, n = 5.</li><li>x</li>"
    page = f'<div class="a answer"><p>The claim:</p>{listed}</ul><p>Twins agree.</p></div>'
    (tmp_path / "report.html").write_text(page)
    said = "The claim: ✓ supported: LoRA beats the head: +4.1, n = 5."
    assert first_sentence(tmp_path / "report.html") == said


def test_an_answer_has_its_paragraphs_and_items_apart(tmp_path):
    """Line breaks and pictures within one end nothing."""
    text = '<div class="answer"><p>One<br>\n two. <img src="x"> Three.</p><ul><li>A</li></ul></div>'
    (tmp_path / "report.html").write_text(text + "<p>Not this.</p>")
    assert answer_blocks(tmp_path / "report.html") == ["One two. Three.", "A"]


def test_the_page_of_the_record_is_that_of_the_committed_reports():
    text = (COMMITTED / "README.md").read_text()
    assert text == page(COMMITTED)
    names = sorted(path.parent.name for path in COMMITTED.glob("*/runs.csv"))
    assert re.findall(r"^## (.*)$", text, re.M) == names
    for name in names:
        part = text.split(f"## {name}\n")[1].split("\n## ")[0]
        told = [line[2:] for line in part.splitlines() if line.startswith("- ")]
        blocks = answer_blocks(COMMITTED / name / "report.html")
        assert len(told) == len(blocks) >= 1
        assert all(block.endswith(line) for line, block in zip(told, blocks, strict=True))
        assert not any(line.startswith(tuple(MARKS)) for line in told)
