"""Draw docs/assets/dag.svg, the order of the workflow's rules, from Snakemake's own graph of them.

An arrow that follows from others is left out: fetch_model feeds train as well, by way of tokenise.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from loraudit.base.files import write_text
from loraudit.studies.cluster import TARGETS

COLUMN, ROW, WIDTH, HEIGHT = 118, 44, 92, 28
"""Pixels from one rule to the next, across and down, and the size of a rule's box."""

STYLE = (
    "rect{fill:#eef3fa;stroke:#2f5d9b}path{fill:none;stroke:#7a8794;marker-end:url(#end)}"
    "text{font:13px sans-serif;text-anchor:middle;fill:#16202b}.page{fill:#fff;stroke:none}"
)


def rulegraph() -> dict[str, set[str]]:
    """Return the rules of the default study, each with those that it waits for.

    Raises:
        subprocess.CalledProcessError: Snakemake can't read the workflow.
    """
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "dot", "--quiet", "all"]
    dot = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', dot))
    waits: dict[str, set[str]] = {name: set() for name in names.values() if name not in TARGETS}
    for first, then in re.findall(r"(\d+) -> (\d+)", dot):
        if names[then] not in TARGETS:
            waits[names[then]].add(names[first])
    return waits


def reduced(waits: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out what a rule waits for already because another one that it waits for does."""

    def above(rule: str) -> set[str]:
        return waits[rule].union(*map(above, waits[rule]))

    return {rule: wanted - set().union(*map(above, wanted)) for rule, wanted in waits.items()}


def places(waits: dict[str, set[str]]) -> dict[str, tuple[int, int]]:
    """Return each rule's column and row: its column is the longest way to it, rows by the name.

    What waits for nothing stands just before the first rule that waits for it, or else at the end.
    """

    def depth(rule: str) -> int:
        return max((depth(one) + 1 for one in waits[rule]), default=0)

    columns = {rule: depth(rule) for rule in waits}
    last = max(columns.values())
    for rule in (rule for rule in waits if not waits[rule]):
        needed = [columns[other] for other in waits if rule in waits[other]]
        columns[rule] = min(needed, default=last + 1) - 1
    found = {}
    for column in range(last + 1):
        rules = sorted(rule for rule in waits if columns[rule] == column)
        found |= {rule: (column, row) for row, rule in enumerate(rules)}
    return found


def drawing(waits: dict[str, set[str]]) -> str:
    """Return the SVG: a box per rule, and an arrow from each rule to those that wait for it."""
    waits = reduced(waits)
    where = places(waits)
    rows = 1 + max(row for _, row in where.values())
    width = COLUMN * max(column for column, _ in where.values()) + WIDTH + 16
    height = ROW * (rows - 1) + HEIGHT + 16
    corners = {}
    for rule, (column, row) in where.items():
        alone = rows - sum(1 for other, _ in where.values() if other == column)
        corners[rule] = 8 + COLUMN * column, 8 + ROW * row + ROW * alone / 2
    said = "; ".join(
        f"{rule} after {', '.join(sorted(waits[rule]))}" for rule in where if waits[rule]
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" role="img">',
        f"<title>The rules of the workflow: {said}</title><style>{STYLE}</style>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#7a8794;stroke:none;'
        'marker-end:none"/></marker></defs>',
        f'<rect class="page" width="{width}" height="{height:g}"/>',
    ]
    for rule, wanted in waits.items():
        x, y = corners[rule]
        for before in sorted(wanted):
            left, top = corners[before][0] + WIDTH, corners[before][1] + HEIGHT / 2
            bend = (left + x) / 2
            end = y + HEIGHT / 2
            lines.append(
                f'<path d="M{left} {top:g}C{bend:g} {top:g} {bend:g} {end:g} {x} {end:g}"/>'
            )
    for rule, (x, y) in corners.items():
        lines.append(f'<rect x="{x}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>')
        middle = x + WIDTH / 2
        lines.append(f'<text x="{middle:g}" y="{y + HEIGHT / 2 + 4.5:g}">{rule}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/assets/dag.svg"))
    write_text(parser.parse_args().out, drawing(rulegraph()))


if __name__ == "__main__":
    main()
