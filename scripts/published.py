"""Set published per-seed results beside other published numbers: no run of ours is needed."""

import argparse
from pathlib import Path

from loraudit.analysis.verdicts import published_verdicts
from loraudit.base.errors import run_program
from loraudit.base.files import write_atomic, write_text
from loraudit.base.yaml_file import read_yaml
from loraudit.report.figure_style import save
from loraudit.report.forest_figures import published
from loraudit.report.formatting import markdown
from loraudit.report.tables import published_table
from loraudit.studies.reference import select
from loraudit.studies.study_file import PublishedFile
from loraudit.studies.values import validated


def main() -> None:
    """Read the arguments, compare, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", required=True, type=Path, help="config/published.yaml")
    parser.add_argument("--csv", required=True, type=Path)
    parser.add_argument("--markdown", required=True, type=Path)
    parser.add_argument("--svg", required=True, type=Path, help="png and csv go beside it")
    arguments = parser.parse_args()
    asked = validated(PublishedFile, read_yaml(arguments.numbers), str(arguments.numbers))
    table = published_verdicts(
        select(asked.ours), select(asked.compare), asked.margin, asked.reading
    )
    write_atomic(arguments.csv, lambda path: table.to_csv(path, index=False))
    write_text(arguments.markdown, markdown(published_table(table)))
    save(published(table), table, arguments.svg.with_suffix(""))


run_program(main)
