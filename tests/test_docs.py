"""What the README and docs show is what the committed files hold, and links lead somewhere."""

import re
from pathlib import Path

import pandas as pd
import pytest

from loraudit.compare import published_verdicts
from loraudit.cost import cost
from loraudit.reference import select
from loraudit.report import fill_blocks
from loraudit.statistics import aggregate
from loraudit.study import load_study
from loraudit.tables import markdown, published_table, read_table, summary_table

COMMITTED = Path("results/committed")
STUDIES = sorted(path.parent for path in COMMITTED.glob("*/runs.csv"))
DOCS = Path("docs/studies.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", "docs/studies.md", "docs/section7.md"]
PAGES += ["config/README.md", "config/reference/README.md", "results/README.md"]


def test_the_readmes_tables_are_the_committed_ones():
    readme = Path("README.md").read_text()
    named = re.findall(r"<!-- from (\S+) -->\n(.*?)<!-- end -->", readme, re.S)
    assert len(named) == readme.count("<!-- from") == 2
    for file, block in named:
        assert block == Path(file).read_text()


def test_the_verdicts_on_published_numbers_are_current():
    table = published_verdicts(
        select(("poster2025.seeds",)), select(("hu2022.table2",)), margin=0.01, reading="sd"
    )
    shown = (COMMITTED / "published/verdicts.md").read_text()
    assert shown == markdown(published_table(table))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_committed_tables_come_from_the_committed_runs(folder):
    runs = pd.read_csv(folder / "runs.csv", keep_default_na=False, na_values=[""])
    summary = aggregate(runs)
    assert (folder / "summary.md").read_text() == markdown(summary_table(summary))
    pd.testing.assert_frame_equal(
        read_table(folder / "cost.csv")[["n", "bytes_tasks", "seconds_step"]],
        cost(runs)[["n", "bytes_tasks", "seconds_step"]],
    )


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_committed_runs_have_their_records_from_committed_code(folder):
    records = pd.read_json(folder / "records.jsonl", lines=True)
    runs = pd.read_csv(folder / "runs.csv")
    assert len(records) == len(runs)
    best = [train["best"][metric] for train, metric in zip(records.train, runs.metric, strict=True)]
    assert best == pytest.approx(list(runs.best))
    states = [environment["git"] for environment in records.environment]
    assert all(state["commit"] and not state["dirty"] for state in states)


def test_the_docs_count_the_runs_of_every_study():
    shown = dict(re.findall(r"^\| \[([\w-]+)\]\(.*?\| +(\d+) \|", DOCS, re.M))
    counted = {
        path.stem: str(len(load_study(path).runs)) for path in Path("config/studies").glob("*.yaml")
    }
    assert shown == counted


@pytest.mark.parametrize("page", [*PAGES, *map(str, COMMITTED.glob("*/README.md"))])
def test_local_links_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", Path(page).read_text()):
        if not link.startswith("http"):
            assert (Path(page).parent / link).exists(), link


def test_showcase_fills_the_marked_blocks(tmp_path):
    (tmp_path / "table.md").write_text("| a |\n")
    text = "x\n<!-- from table.md -->\nold\n<!-- end -->\ny"
    assert fill_blocks(text, tmp_path) == "x\n<!-- from table.md -->\n| a |\n<!-- end -->\ny"
