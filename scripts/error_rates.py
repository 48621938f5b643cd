"""Write docs/error_rates.md: how often each word of a verdict comes out, by simulation."""

import argparse
from pathlib import Path

import pandas as pd

from loraudit.analysis.statistics import Mean, median_widening
from loraudit.analysis.words import DRAWS, WORDS, word_chances
from loraudit.base.files import write_text
from loraudit.report.formatting import markdown

MARGIN, PUBLISHED = 1.0, 5
SPREADS = (0.3, 0.5, 0.7, 1.0, 1.5)
SEEDS = (3, 5, 10)
DIFFERENCES = (0.0, 0.5, 1.0, 2.0)

TEXT = """# How often a verdict is wrong

How often each word comes out for a true difference that is known: cells of normal scores are
drawn, {draws:,} for each entry, and judged as a study's are. The published number is the median
of {published} with the same spread, the margin is {margin:g} point, and there is one row in the
table, so that Holm's correction changes nothing. An entry is the share in percent of **{words}**.

{table}
A difference of 0 or 0.5 is within the margin: "not reproduced" would be wrong, and comes out in
at most 2.5 % of cases. A difference of 1 is on the margin and one of 2 beyond it: "reproduced"
would be wrong, and comes out in at most 5 %. "Different, by how much is open" is wrong only for a
difference of 0. What the words cost is power: with a spread of 0.7 points and 5 seeds, a cell
that is exactly equal is called reproduced in a quarter of cases, and no number of seeds of ours
makes it 80 %, because the published 5 stay as they are. `loraudit plan` says this for each number
of a study before it starts.

Made by `python scripts/error_rates.py`. [What the words mean](report.md#the-words), [how they are
computed](studies.md#how-a-verdict-is-made).
"""


def rates(spread: float, seeds: int, difference: float) -> str:
    """Return the shares of the words in percent, in their order: "24 / 0 / 4 / 72"."""
    ours = Mean(0.0, spread, seeds)
    theirs = Mean(0.0, spread, PUBLISHED, widening=median_widening(PUBLISHED))
    chances = word_chances(difference, MARGIN, ours, theirs)
    return " / ".join(f"{100 * chances[word]:.0f}" for word in WORDS)


def page() -> str:
    """Return the page's text."""
    table = pd.DataFrame(
        [
            {"spread": f"{spread:g}", "seeds": f"{seeds}"}
            | {f"difference {gap:g}": rates(spread, seeds, gap) for gap in DIFFERENCES}
            for spread in SPREADS
            for seeds in SEEDS
        ]
    )
    words = ", ".join(f'"{word}"' for word in WORDS)
    counts = {"draws": DRAWS, "published": PUBLISHED, "margin": MARGIN}
    return TEXT.format(table=markdown(table), words=words, **counts)


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/error_rates.md"))
    write_text(parser.parse_args().out, page())


if __name__ == "__main__":
    main()
