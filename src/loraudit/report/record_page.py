"""results/committed/README.md: what each study on record asks and answers, from its report."""

from pathlib import Path

import pandas as pd

from loraudit.base.yaml_file import read_yaml
from loraudit.report import page_layout
from loraudit.report.answer_text import answer_blocks
from loraudit.studies.paths import CONFIG

HEAD = """# The studies on record

<!-- Made by scripts/showcase.py from the reports here. -->

What each study asks, and the first sentences of the answer on its report. "In small" is another
model, another task or fewer rows than a claim is about: such a verdict says nothing of the claim's
own setting ([all words](../../docs/report.md#the-words)). n is the number of seeds. The benchmarks
are in [bench](bench/README.md), and the verdicts on published numbers in
[published](published/report.html).
"""

MARKS = "".join(page_layout.MARKS.values())
"""What stands before a verdict on a page."""


def page(committed: Path) -> str:
    """Return the page of the studies in results/committed, by name."""
    folders = sorted(path.parent for path in committed.glob("*/runs.csv"))
    return "\n".join([HEAD, *(_entry(folder) for folder in folders)])


def _entry(folder: Path) -> str:
    """Return a study's part: its name, its question and its answer."""
    file = CONFIG / "studies" / f"{folder.name}.yaml"
    asked = " ".join(read_yaml(file)["question"].split()) if file.is_file() else ""
    runs = len(pd.read_csv(folder / "runs.csv", usecols=["run"]))
    answers = [f"- {block.lstrip(MARKS + ' ')}" for block in answer_blocks(folder / "report.html")]
    head = f"## {folder.name}\n\n{asked} {runs} runs, [report]({folder.name}/report.html)."
    return "\n".join([head, "", *answers, ""])
