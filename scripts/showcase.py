"""Copy a finished study's tables, figures and report to the folder that is committed.

Also puts the score table into README.md between its two markers.
"""

import argparse
import re
import shutil
from pathlib import Path

from loraudit.errors import UserError, run_program
from loraudit.files import folder_atomic, write_text

TABLES = ("tables/summary.md", "tables/summary.csv", "tidy/runs.csv", "tidy/crosscheck.csv")
NOTE = """# {name}, as generated once

Made by `make showcase`, which runs `make results` and copies what came out; the numbers are this
machine's, and report.html names the code, versions and hardware behind them. `make results` writes
yours to `results/{name}` and `figures/{name}`.
"""


def main() -> None:
    """Read the arguments and copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--figures", required=True, type=Path)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    files = [arguments.results / name for name in (*TABLES, "tidy/twins.csv", "report.html")]
    figures = sorted(arguments.figures.glob("*.*"))
    for file in files:
        if not file.is_file():
            raise UserError(f"no {file}: run `make results` first")
    with folder_atomic(arguments.out) as folder:
        for file in (*files, *figures):
            shutil.copyfile(file, folder / file.name)
        write_text(folder / "README.md", NOTE.format(name=arguments.results.name))
    table = (arguments.results / "tables/summary.md").read_text()
    block = f"<!-- scores:begin -->\n{table}<!-- scores:end -->"
    text = arguments.readme.read_text()
    pattern = r"<!-- scores:begin -->\n.*?<!-- scores:end -->"
    write_text(arguments.readme, re.sub(pattern, lambda _: block, text, flags=re.S))


run_program(main)
