"""Blocks of README.md and docs/*.md that are filled with committed tables."""

import re
from pathlib import Path

from loraudit.base.errors import unknown


def fill_blocks(text: str, root: Path) -> str:
    """Fill a page's blocks between `<!-- from FILE -->` and `<!-- end -->`, if there is a FILE.

    `<!-- from FILE: column | column -->` takes these columns of FILE's table only.
    """

    def fill(block: re.Match) -> str:
        file = root / block[2]
        if not file.is_file():
            return block[0]
        return block[1] + _columns(file.read_text(), block[3]) + block[4]

    pattern = r"(<!-- from (\S+?)(?:: (.*?))? -->\n).*?(<!-- end -->)"
    return re.sub(pattern, fill, text, flags=re.S)


def _columns(table: str, names: str | None) -> str:
    """Keep the named columns ("a | b") of a Markdown table; all without names.

    Raises:
        UserError: a name that is no column.
    """
    if names is None:
        return table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    places = []
    for name in names.split(" | "):
        if name not in rows[0]:
            raise unknown("column", name, rows[0])
        places.append(rows[0].index(name))
    return "".join(f"| {' | '.join(row[place] for place in places)} |\n" for row in rows)
