"""A study's products in the order in which they are made, each with its files and what makes it.

The DAG's rules make the same products by the same functions. This list is for what makes or checks
many of them in one process: `verify`, partial reports (which write a page of their own, of what
there is) and the tests.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loraudit.analysis.collect import write_collected
from loraudit.analysis.section7_runs import lora_runs, measured_runs
from loraudit.base.shipped import own_or_shipped
from loraudit.report.figure_registry import Figure, study_figures
from loraudit.report.figures import make_picture, make_rows
from loraudit.report.page import write_page
from loraudit.report.published import write_published
from loraudit.report.table_registry import (
    READ_LATE,
    SECTION7,
    TIDY,
    early_tables,
    late_tables,
    read_by_tables,
    study_tables,
)
from loraudit.report.tables import write_late_tables, write_tables
from loraudit.studies import paths
from loraudit.studies.study import Study

REPORT = "report"
"""The name of the last product: the page."""


@dataclass(frozen=True)
class Places:
    """Where a study's products are made from, and where they go to.

    `source` is the study's folder, with runs/ and crosscheck/. `results` gets tidy/, tables/ and
    report.html, `figures` the figures. `resources` has the fetched tasks and models.
    """

    source: Path
    results: Path
    figures: Path
    resources: Path = paths.RESOURCES


@dataclass(frozen=True)
class Product:
    """Files that are made in one step.

    `make()` makes `files`. It reads the runs and what was made of them before; `inputs` are the
    files, of products before this one or fetched, without which it can't be made.
    """

    name: str
    inputs: tuple[Path, ...]
    files: tuple[Path, ...]
    make: Callable[[], None]

    def can_be_made(self) -> bool:
        """Tell whether all inputs are there."""
        return all(path.is_file() for path in self.inputs)


def products(
    study: Study,
    places: Places,
    cells: Iterable[str] | None = None,
    updates: bool = True,
    switches: str | None = None,
) -> list[Product]:
    """List a study's products in order: tidy tables, tables, section 7's, figures, the report.

    Args:
        study: its runs all have results.
        places: where the products are made from and go to.
        cells: the cross-checks that have results; None: all of the study's.
        updates: whether to list section 7's tables, which are measured on every adapter of ours.
        switches: what asks for the study after `--config`, for the commands that the page shows;
            None: a study of config/studies as its file says.
    """
    cells = list(study.cells() if cells is None else cells)
    tidy, tables = places.results / "tidy", places.results / "tables"
    made = [
        Product(
            "tidy tables",
            (),
            (*_files(tidy, TIDY, ".csv", ".parquet"), tidy / "records.jsonl"),
            partial(write_collected, study, cells, places.source, places.results),
        ),
        Product(
            "tables",
            _files(tidy, read_by_tables(), ".parquet"),
            _files(tables, early_tables(), ".csv", ".md"),
            partial(write_tables, study, places.results, places.results),
        ),
    ]
    measured = updates and bool(lora_runs(study))
    if measured:
        made.append(_section7(study, places))
    made.append(_claims(study, places, measured))
    for figure in study_figures(study).values():
        made += _figure(study, figure, places)
    return [*made, _report(study, places, switches or f"study={study.name}")]


def _files(folder: Path, names: Iterable[str], *suffixes: str) -> tuple[Path, ...]:
    return tuple(folder / f"{name}{suffix}" for name in names for suffix in suffixes)


def _figure(study: Study, figure: Figure, places: Places) -> list[Product]:
    """Return a figure as two products: the rows that it draws, and its picture."""
    inputs = tuple(places.results / table for table in figure.tables)
    stem = places.figures / figure.name
    rows, svg, png = (stem.with_suffix(suffix) for suffix in (".csv", ".svg", ".png"))
    made = figure, places.results, stem
    draw = partial(make_picture, *made, study.runs)
    return [
        Product(f"rows of figure {figure.name}", inputs, (rows,), partial(make_rows, *made)),
        Product(f"picture of figure {figure.name}", inputs, (svg, png), draw),
    ]


def _section7(study: Study, places: Places) -> Product:
    models = places.resources / "models"
    names = sorted({run.spec.model.name for run in measured_runs(study)})

    def make() -> None:
        from loraudit.analysis.section7 import write_study_tables

        write_study_tables(study, places.source, models, places.results)

    inputs = tuple(models / name / "model.safetensors" for name in names)
    files = _files(places.results / "tidy", SECTION7, ".csv", ".parquet")
    return Product("section 7's tables", inputs, files, make)


def _claims(study: Study, places: Places, measured: bool) -> Product:
    """Return the late tables; without section 7's of today, they take those of `source`."""
    tidy, tables = places.results / "tidy", places.results / "tables"
    updates = places.results if measured else places.source
    needed = (*READ_LATE, *(SECTION7 if measured else ()))
    make = partial(write_late_tables, study, places.results, places.results, updates)
    inputs, files = _files(tidy, needed, ".parquet"), _files(tables, late_tables(), ".csv", ".md")
    return Product("claims", inputs, files, make)


def _report(study: Study, places: Places, switches: str) -> Product:
    figures = _files(places.figures, study_figures(study), ".svg")
    numbers = _files(places.figures, study_figures(study), ".csv")
    tables = _files(places.results / "tables", study_tables(), ".csv")
    tasks = dict.fromkeys(run.spec.task.name for run in study.runs)
    manifests = [places.resources / "tasks" / task / "manifest.json" for task in tasks]
    made = _files(paths.FIGURES / study.name, study_figures(study), ".svg")  # as the rules name it
    remake = {
        path.stem: f"snakemake --cores 1 {path.as_posix()} --config {switches}" for path in made
    }
    inputs = (places.results / "tidy" / "runs.parquet", *tables, *figures, *numbers, *manifests)
    make = partial(write_page, study, places.results, figures, manifests, remake)
    return Product(REPORT, inputs, (places.results / "report.html",), make)


def published_product(results: Path, figures: Path) -> Product:
    """Return the comparison of published numbers with each other, which belongs to no study.

    Args:
        results, figures: the folders in which its folders are, called "published".
    """
    numbers = own_or_shipped(paths.CONFIG / "published.yaml")
    table, text = (results / "published" / f"verdicts{suffix}" for suffix in (".csv", ".md"))
    page = results / "published" / "report.html"
    svg, png, rows = (figures / "published" / f"verdicts{s}" for s in (".svg", ".png", ".csv"))
    make = partial(write_published, numbers, table, text, svg, page)
    return Product("published numbers", (numbers,), (table, text, svg, png, rows, page), make)
