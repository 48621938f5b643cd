"""The registry of figures: every entry is whole; a new one is planned, drawn and on the page."""

import sys
import types

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from loraudit.report import page
from loraudit.report.figure_registry import FIGURES, Figure, Limit, figure_modules, study_figures
from loraudit.report.figures import make_figure
from loraudit.report.table_registry import SECTION7, TIDY, study_tables
from tiny_study import small_study


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_every_entry_has_its_code_section_caption_and_tables(figure):
    roles = ["draw", "describe", *(role for role in ("rows", "undrawn") if getattr(figure, role))]
    assert all(callable(figure.code(role)) for role in roles)
    assert figure.section in page.SECTIONS
    assert len((page.CAPTIONS / f"{figure.name}.rst").read_text()) > 100
    made = {f"tidy/{name}.parquet" for name in (*TIDY, *SECTION7)}
    made |= {f"tables/{name}.csv" for name in study_tables()}
    assert set(figure.tables) <= made
    assert figure.rows or len(figure.tables) == 1


def test_a_study_draws_what_it_has():
    names = set(study_figures(small_study()))
    assert names >= {"hero", "pareto", "crosscheck", "spectra", "subspace_seeds"}
    assert names.isdisjoint({"verdicts", "switches", "score_vs_bits", "score_vs_rows"})
    only_full = small_study(runs=small_study().runs[2:])
    assert set(study_figures(only_full)) == {"learning_curves", "cost"}
    compared = small_study(compare=("hu2022.table2",))
    assert set(study_figures(compared)) == names | {"verdicts"}
    asking = small_study(claims=("hu2022.rank-flat",))
    assert set(study_figures(asking)) == names | {"claims"}


def test_one_epoch_is_no_curve():
    once = [run.spec.model_copy(update={"epochs": 1}) for run in small_study().runs]
    runs = zip(small_study().runs, once, strict=True)
    study = small_study(runs=tuple(run.model_copy(update={"spec": spec}) for run, spec in runs))
    assert "learning_curves" in study_figures(small_study())
    assert "learning_curves" not in study_figures(study)


def draw_losses(rows: pd.DataFrame):
    figure, axes = plt.subplots()
    axes.plot(rows.step, rows.train_loss)
    return figure


@pytest.fixture
def losses(monkeypatch, tmp_path):
    """Add a figure as a developer does: an entry, a module with its code, and a caption."""
    module = types.ModuleType("loss_figures")
    module.draw_losses = draw_losses
    module.describe_losses = lambda rows: f"Loss, down to {rows.train_loss.min():g}."
    monkeypatch.setitem(sys.modules, "loss_figures", module)
    entry = Figure(
        name="losses",
        title="Loss over steps",
        section="curves",
        tables=("tidy/history.parquet",),
        module="loss_figures",
        draw="draw_losses",
        describe="describe_losses",
        wanted=lambda study: len(study.runs) > 2,
        limit=Limit(1, "curves", ("label",)),
    )
    monkeypatch.setitem(FIGURES, "losses", entry)
    captions = tmp_path / "captions"
    captions.mkdir()
    (captions / "losses.rst").write_text("How the loss falls.")
    monkeypatch.setattr(page, "CAPTIONS", captions)
    return entry


def test_a_new_entry_is_planned_drawn_and_on_the_page(losses, tmp_path):
    study = small_study()
    assert study_figures(study)["losses"] is losses
    assert "losses" not in study_figures(small_study(runs=study.runs[:2]))
    assert "loss_figures" in figure_modules(study)
    steps = [{"step": step, "train_loss": 1 / step} for step in (1, 2, 4)]
    history = pd.concat(
        [pd.DataFrame(steps).assign(label=label) for label in "ab"], ignore_index=True
    )
    (tmp_path / "tidy").mkdir()
    cells = {"task": "t", "model": "m", "method": "lora"}
    history.assign(**cells).to_parquet(tmp_path / "tidy/history.parquet")
    make_figure(losses, tmp_path, tmp_path / "losses")
    assert list(pd.read_csv(tmp_path / "losses.csv").label) == ["a"] * 3  # thinned to one curve
    made = page.Page(
        study=study,
        tables={},
        figures={"losses": tmp_path / "losses.svg"},
        facts={"runs": "All are here.", "comparison": ""},
        remake={"losses": "snakemake figures/small/losses.svg"},
    )
    html = page.render(made)
    for text in ("Loss over steps", "Loss, down to 0.25.", "How the loss falls.", 'id="curves"'):
        assert text in html
    assert html.count("<img") == 1
