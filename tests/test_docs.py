"""The README shows the committed quickstart, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

README = Path("README.md").read_text()


def test_the_readmes_table_is_the_committed_one():
    block = re.search(r"<!-- scores:begin -->\n(.*?)<!-- scores:end -->", README, re.S).group(1)
    assert block == Path("docs/quickstart/summary.md").read_text()
    assert block.count("\n") == 12  # head, rule, 8 adapter cells, 2 baselines


def test_the_committed_numbers_come_from_one_another():
    import pandas as pd

    from loraudit.statistics import aggregate
    from loraudit.tables import summary_table

    runs = pd.read_csv("docs/quickstart/runs.csv", keep_default_na=False, na_values=[""])
    table = summary_table(aggregate(runs))
    shown = Path("docs/quickstart/summary.md").read_text()
    for value in table["best epoch: mean ± SD, %"]:
        assert value in shown


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/quickstart/README.md"])
def test_local_links_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", Path(page).read_text()):
        if not link.startswith("http"):
            assert (Path(page).parent / link).exists(), link
