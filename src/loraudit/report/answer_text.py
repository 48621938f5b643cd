"""The answer of a report as plain text, read back from the page."""

import re
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path


class _Answer(HTMLParser):
    """Collects the paragraphs and items of a page's element of the class "answer"."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.blocks = [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        inside = self.depth or "answer" in (dict(attrs).get("class") or "").split()
        if inside and tag not in ("br", "img", "wbr"):
            self.depth += 1
            self.blocks += [""] if tag in ("p", "li") else []

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1 if self.depth else 0

    def handle_data(self, data: str) -> None:
        self.blocks[-1] += data if self.depth else ""


def answer_blocks(report: Path) -> list[str]:
    """Return the paragraphs and list items of a report's answer; none without report or answer."""
    parser = _Answer()
    with suppress(OSError, ValueError):
        parser.feed(report.read_text())
    return [" ".join(block.split()) for block in parser.blocks if block.strip()]


def first_sentence(report: Path) -> str:
    """Return the first sentence of a report's answer, or "" if it has none.

    One that ends in a colon goes on with the first item of the list below it.
    """
    sentences = [re.split(r"(?<=[.!?])\s+(?=[A-Z])", one)[0] for one in answer_blocks(report)]
    first, *others = sentences or [""]
    return " ".join([first, *others[:1]]) if first.endswith(":") else first
