"""The registry of tables: every entry is whole, and a new one is made and read for the page."""

import sys
import types

import pandas as pd
import pytest

from loraudit.analysis.contrasts import method_contrasts
from loraudit.base.named_code import resolve
from loraudit.report import page
from loraudit.report.table_registry import TABLES, TIDY, Table, study_tables, table_modules
from loraudit.report.tables import readable, write_tables
from loraudit.studies.known import Contamination
from loraudit.studies.study_file import Contrast
from tiny_claims import verdict_table
from tiny_study import small_study


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_entry_has_its_code_and_section(table):
    assert all(callable(resolve(name)) for name in (table.make, table.readable) if name)
    assert table.section in page.SECTIONS
    assert bool(table.make) != bool(table.source)  # made from the runs, or of what the page knows
    assert not table.make or table.readable
    assert not (table.late and table.tidy)
    assert set(table.tidy) <= set(TIDY)


def test_a_new_entry_is_made_from_the_runs_and_written_for_readers(monkeypatch, tmp_path):
    module = types.ModuleType("seed_tables")
    module.seed_rows = lambda study, runs, more: pd.DataFrame(
        {"seed": sorted({*runs.seed, *more.seed})}
    )
    module.seed_table = lambda rows: rows.assign(seed=[f"seed {seed}" for seed in rows.seed])
    monkeypatch.setitem(sys.modules, "seed_tables", module)
    entry = Table(
        name="seeds",
        title="The seeds",
        section="scores",
        make="seed_tables:seed_rows",
        tidy=("more",),
        readable="seed_tables:seed_table",
    )
    for name in study_tables():
        monkeypatch.delitem(TABLES, name)
    monkeypatch.setitem(TABLES, "seeds", entry)
    assert list(study_tables()) == ["seeds"]
    assert "seed_tables" in table_modules(TABLES)
    (tmp_path / "tidy").mkdir()
    pd.DataFrame({"seed": [1, 0, 1]}).to_parquet(tmp_path / "tidy/runs.parquet")
    pd.DataFrame({"seed": [2]}).to_parquet(tmp_path / "tidy/more.parquet")
    write_tables(small_study(), tmp_path, tmp_path)
    assert (tmp_path / "tables/seeds.csv").read_text() == "seed\n0\n1\n2\n"
    assert "seed 0" in (tmp_path / "tables/seeds.md").read_text()
    assert readable(entry, pd.DataFrame(), small_study()).empty


def known(task: str, model: str = "m") -> Contamination:
    return Contamination(model=model, task=task, what="a corpus")


@pytest.mark.parametrize("scores", [True, False])
def test_rows_of_a_task_that_the_model_knows_say_so_where_they_are_scores(monkeypatch, scores):
    module = types.ModuleType("seed_tables")
    module.seed_table = lambda rows: rows[["score"]]
    monkeypatch.setitem(sys.modules, "seed_tables", module)
    entry = Table(
        name="seeds", title="", section="", readable="seed_tables:seed_table", scores=scores
    )
    study = small_study(contaminations=(known("b"), known("c"), known("a", "other")))
    each = pd.DataFrame({"model": ["m", "m", "other"], "task": ["a", "b", "b"], "score": 1.0})
    over_tasks = pd.DataFrame({"model": ["m", "n"], "score": 1.0})
    if not scores:
        assert list(readable(entry, each, study)) == ["score"]
        return
    said = ["", "m was trained on data of b before", ""]
    assert readable(entry, each, study).contaminated.tolist() == said
    said = ["m was trained on data of b, c before", ""]
    assert readable(entry, over_tasks, study).contaminated.tolist() == said
    assert list(readable(entry, each, small_study())) == ["score"]
    assert list(readable(entry, each[:1], study)) == ["score"]


def test_all_study_tables_but_that_of_costs_are_of_scores():
    assert {name for name, table in study_tables().items() if not table.scores} == {"cost"}


def contrasts() -> pd.DataFrame:
    cells = pd.DataFrame(
        [
            {"method": method, "seed": seed, "best": score + seed / 1000}
            | {"run": f"t/m/{method}/s{seed}"}
            for method, score in (("lora", 0.9), ("head", 0.7))
            for seed in (0, 1, 2)
        ]
    )
    names = {"task": "t", "model": "m", "rank": float("nan"), "targets": None, "label": ""}
    runs = cells.assign(**names, metric="accuracy", last=cells.best)
    return method_contrasts(runs, [Contrast(left="lora", right="head")])


def test_methods_of_an_untuned_study_are_found_to_differ_untuned():
    rows = contrasts()
    shown = readable(TABLES["pairs"], rows, small_study())
    assert shown.finding.tolist() == ["higher, untuned"]
    assert readable(TABLES["pairs"], rows, small_study(settings_from="t")).finding[0] == "higher"


def test_where_there_is_one_epoch_no_choice_of_one_is_named():
    once = [
        run.model_copy(update={"spec": run.spec.model_copy(update={"epochs": 1})})
        for run in small_study().runs
    ]
    for name, rows in (("pairs", contrasts()), ("claims", verdict_table())):
        assert "epoch" in readable(TABLES[name], rows, small_study())
        shown = readable(TABLES[name], rows, small_study(runs=tuple(once)))
        assert "epoch" not in shown
        assert not shown.to_string().count("best epoch")
