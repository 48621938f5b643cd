"""Copy a finished study to the folders that are committed, and refresh the pages' tables.

Tables, runs, their records and the report go to results/committed/<study>, figures with the CSV
behind each to figures/committed/<study>. results/committed/README.md and docs/claims.md are made
anew from all that is there. A block of README.md or docs/*.md between
`<!-- from FILE -->` and `<!-- end -->` is filled with that file. The study "bench" is what
`make bench` wrote.
"""

import argparse
import json
import shutil
from pathlib import Path

from loraudit.base.errors import UserError, run_program
from loraudit.base.files import folder_atomic, write_text
from loraudit.report.blocks import fill_blocks
from loraudit.report.claim_record import page as claims_page
from loraudit.report.figure_registry import FIGURES
from loraudit.report.figures import told_apart
from loraudit.report.page_tables import processors
from loraudit.report.record_page import page as record_page

COPIED = (
    *("tables/*", "report.html", "tidy/records.jsonl"),
    *("tidy/runs.csv", "tidy/twins.csv", "tidy/tuning.csv"),
)
BENCH = "bench"
PUBLISHED = ("verdicts.md", "verdicts.csv", "report.html")
NOTE = """# {name}, as generated once

Made by

```
{command}
make showcase STUDY={name}
```

The runs were made on {processors}. Another kind of processor gives other
bits, and for unstable cells (those of a large spread over seeds) other results:
[what comes again](../../../docs/report.md#what-comes-again-bit-for-bit).

`report.html` names code, versions, hardware and data behind the numbers;
`records.jsonl` holds every run's record (spec, scores, parameters, times, environment), one a line.
Running the study writes yours to `results/{name}` and `figures/{name}`.
"""


BENCH_NOTE = """# The benchmarks, as measured once

Made by `make bench` and `make showcase STUDY=bench`. `speed.md` sets them beside their targets
([what they mean](../../../docs/speed.md)); the CSV files hold what it is made from, and
`machine.md` says what it was measured on, a virtual machine that did nothing heavy beside it.
Ratios are of interleaved rounds.

Made apart: `mkl.csv` (`python benchmarks/mkl.py`) and, on other machines, `fused.csv`
(`python benchmarks/fused.py`), `job_memory.csv` (`python benchmarks/memory.py`) and `plan.csv`
(`python benchmarks/plan.py`). Made on GPUs, which they name: `gpu.csv` and `gpu_workspace.csv`
(`make bench-gpu`), `gpu_tests.csv` (`make test-gpu`).
"""

HIDDEN = """
The folder of the GLUE copy is written as `glue` in these files; the records' `spec_sha256` and
`record_sha256` are those of the records with the folder's full path.
"""


def copy(
    source: Path,
    patterns: tuple[str, ...],
    out: Path,
    note: str = "",
    hidden: str | None = None,
    keep: bool = False,
) -> None:
    """Copy the files that match into a folder, whole or not at all.

    `hidden` is a path of this machine that is written as "glue" in every text file. With `keep`,
    other files of the folder stay.
    """
    files = [file for pattern in patterns for file in sorted(source.glob(pattern))]
    if not files:
        raise UserError(f"nothing to copy in {source}: run the study first")
    with folder_atomic(out) as folder:
        if keep and out.is_dir():
            shutil.copytree(out, folder, dirs_exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / file.name)
            if hidden and file.suffix != ".png":
                text = file.read_text().replace(hidden, "glue")
                write_text(folder / file.name, text)
        if note:
            write_text(folder / "README.md", note)


def shown(folder: Path) -> tuple[str, ...]:
    """Return the files of a folder's figures; of those that are not drawn, the rows alone."""
    svgs = {path.stem: path for path in folder.glob("*.svg") if path.stem in FIGURES}
    undrawn = svgs.keys() - told_apart(svgs)[0]
    files = folder.glob("*.*")
    return tuple(f.name for f in files if f.stem not in undrawn or f.suffix == ".csv")


def study_note(name: str, command: str, records: Path) -> str:
    """Write a study's README, from the command that made it and its runs' records."""
    lines = records.read_text().splitlines()
    names = " and ".join(processors([json.loads(line) for line in lines]))
    return NOTE.format(name=name, command=command, processors=names)


def main() -> None:
    """Read the arguments, copy, and refresh the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, help="a finished study's name")
    parser.add_argument("--command", required=True, help="the command that made it, for the note")
    parser.add_argument("--glue", help="folder of the local GLUE copy: the copies say 'glue'")
    arguments = parser.parse_args()
    name = arguments.study
    results, figures = Path("results"), Path("figures")
    last = results / name / ("speed.md" if name == BENCH else "report.html")
    if not last.is_file():
        raise UserError(f"no {last}: run the study first")
    records = results / name / "tidy" / "records.jsonl"
    note = BENCH_NOTE if name == BENCH else study_note(name, arguments.command, records)
    note += HIDDEN if arguments.glue else ""
    patterns = ("*.*",) if name == BENCH else COPIED
    keep = name == BENCH  # what was measured on a GPU is not made here
    copy(results / name, patterns, results / "committed" / name, note, arguments.glue, keep)
    drawn = shown(figures / name)
    copy(figures / name, drawn, figures / "committed" / name, "", arguments.glue, keep)
    if name != BENCH:
        copy(results / "published", PUBLISHED, results / "committed" / "published")
        copy(figures / "published", ("*.*",), figures / "committed" / "published")
    write_text(Path("docs/claims.md"), claims_page(results))
    write_text(results / "committed/README.md", record_page(results / "committed"))
    for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
        write_text(page, fill_blocks(page.read_text(), Path()))


run_program(main)
