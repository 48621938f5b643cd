"""Set scores by seed beside published numbers, and write the verdicts: no run of ours is needed."""

from pathlib import Path

import pandas as pd

from loraudit.analysis.judging import published_verdicts
from loraudit.base.files import write_atomic, write_text
from loraudit.base.yaml_file import read_yaml
from loraudit.report.figure_style import save
from loraudit.report.forest_figures import published
from loraudit.report.formatting import markdown
from loraudit.report.tables import published_table
from loraudit.studies.reference import select
from loraudit.studies.study_file import PublishedFile
from loraudit.studies.values import validated


def write_published(numbers: Path, table: Path, text: Path, figure: Path) -> None:
    """Compare published numbers and write the verdicts.

    Args:
        numbers: config/published.yaml, which says what is compared with what.
        table, text: the CSV file and the Markdown file to write.
        figure: the SVG file to write; PNG and CSV go beside it.

    Raises:
        UserError: a key or a published table that does not exist.
    """
    asked = validated(PublishedFile, read_yaml(numbers), str(numbers))
    verdicts = published_verdicts(
        select(asked.ours), select(asked.compare), asked.margin, asked.reading
    )
    write_verdicts(verdicts, table, text, figure)


def write_verdicts(verdicts: pd.DataFrame, table: Path, text: Path, figure: Path) -> None:
    """Write the rows of `published_verdicts` as CSV and Markdown, and as a figure."""
    write_atomic(table, lambda path: verdicts.to_csv(path, index=False))
    write_text(text, markdown(published_table(verdicts)))
    save(published(verdicts), verdicts, figure.with_suffix(""))
