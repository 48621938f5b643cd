"""A study's products: the list makes what the rules' programs make, file by file."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from conftest import script
from loraudit.analysis.cells import cell_of
from loraudit.report import figures
from loraudit.report.figure_registry import study_figures
from loraudit.report.products import REPORT, Places, products
from loraudit.studies.study import Run, Study, read_study
from loraudit.tools.remade import COMPARE
from loraudit.training.run import train
from tiny import make_spec

RESULTS, FIGURES = Path("results/small"), Path("figures/small")


@pytest.fixture
def study(project):
    return read_study(RESULTS / "study.json")


def test_every_product_is_there_once_and_no_other_file(study):
    listed = [path for made in products(study, Places(RESULTS, RESULTS, FIGURES))
              for path in made.files]  # fmt: skip
    assert len(listed) == len(set(listed))
    there = {path for folder in (RESULTS / "tidy", RESULTS / "tables", FIGURES)
             for path in folder.iterdir()}  # fmt: skip
    assert there | {RESULTS / "report.html"} == set(listed)


def test_the_rules_programs_make_the_same(study):
    before = Path("before")
    for folder in (RESULTS, FIGURES):
        shutil.copytree(folder, before / folder)
    for folder in (RESULTS / "tidy", RESULTS / "tables", FIGURES):
        shutil.rmtree(folder)
    (RESULTS / "report.html").unlink()
    script("collect", results=RESULTS)
    script("tables", results=RESULTS)
    script("subspace", results=RESULTS, models="resources/models")
    script("claims", results=RESULTS)
    script("figures", results=RESULTS, figures=FIGURES)
    pictures = [FIGURES / f"{name}.svg" for name in study_figures(study)]
    manifest = "resources/tasks/words/manifest.json"
    script("report", results=RESULTS, figures=pictures, data=manifest, switches="study=small")
    files = [path for made in products(study, Places(RESULTS, RESULTS, FIGURES))
             for path in made.files]  # fmt: skip
    # Section 7's decompositions are rounded otherwise with another number of threads.
    assert [found for path in files for found in COMPARE[path.suffix](path, before / path)] == []


def test_pictures_made_elsewhere_show_the_cells_as_the_whole_study_does(
    study, tmp_path, monkeypatch
):
    """`verify` drew the cells of a figure as they come, since there is no study.json beside it."""
    drawn = []
    monkeypatch.setattr(figures, "_draw", lambda *made: drawn.append(made[3]))
    for product in products(study, Places(RESULTS, RESULTS, tmp_path)):
        if product.name.startswith("picture"):
            product.make()
    assert drawn and all(cells == [cell_of(run) for run in study.runs] for cells in drawn)


def test_each_product_comes_after_what_it_is_made_from(study, tmp_path):
    places = Places(RESULTS, tmp_path / "results", tmp_path / "figures")
    for product in products(study, places):
        assert product.can_be_made()
        if product.name != REPORT:
            assert not any(path.exists() for path in product.files)
        product.make()
        assert all(path.is_file() for path in product.files)


def test_without_section_7_what_is_drawn_from_it_can_not_be_made(study, tmp_path):
    places = Places(RESULTS, tmp_path / "results", tmp_path / "figures")
    names = {"spectra", "stable_rank", "amplification", "intruders"}
    names |= {"subspace_seeds", "subspace_weights"}
    left = set()
    for product in products(study, places, updates=False):
        if product.can_be_made():
            product.make()
        else:
            left.add(product.name)
    unmade = {f"{kind} of figure {name}" for name in names for kind in ("rows", "picture")}
    assert left == unmade | {REPORT}


@pytest.mark.slow
def test_a_study_that_scores_its_last_epochs_alone_makes_all_without_a_best_one(tiny, tmp_path):
    runs = [
        Run(id=f"tinytask/tiny/{method}/s{seed}", label="", spec=make_spec(
            method=method, seed=seed, train_rows=16, validate_epochs="last"))
        for method in ("bitfit", "head") for seed in (0, 1)
    ]  # fmt: skip
    places = Places(*(tmp_path / name for name in ("from", "results", "figures", "resources")))
    for run in runs:
        train(run.spec, tiny / "tokens", tiny / "model", places.source / "runs" / run.id)
    manifest = places.resources / "tasks/tinytask/manifest.json"
    manifest.parent.mkdir(parents=True)
    shutil.copy(tiny / "task/manifest.json", manifest)
    study = Study(name="late", question="Last?", runs=tuple(runs))
    for product in products(study, places, cells=[]):
        product.make()
    tidy = pd.read_csv(places.results / "tidy/runs.csv")
    assert tidy["best"].isna().all() and tidy["last"].notna().all()
    written = [*places.results.glob("tables/*.csv"), *places.figures.glob("*.csv")]
    for file in (path for path in written if path.read_text().strip()):  # others have no rows
        shown = pd.read_csv(file).dropna(axis="columns", how="all")
        assert not [name for name in shown if "best" in name], file
        assert "epoch" not in shown or "best" not in set(shown.epoch), file
    page = (places.results / "report.html").read_text()
    assert "The last epoch is not chosen." in page and "The best epoch is chosen" not in page
