"""The page of published numbers beside each other: its answer first, all that it rests on below."""

import re
from pathlib import Path

import pandas as pd

from loraudit.report.published import write_published


def test_the_page_opens_with_each_difference_its_interval_n_and_word(tmp_path):
    table, text, figure, page = (
        tmp_path / f"verdicts{suffix}" for suffix in (".csv", ".md", ".svg", ".html")
    )
    write_published(Path("config/published.yaml"), table, text, figure, page)
    rows, html = pd.read_csv(table), page.read_text()
    answer = html[html.index('class="answer"') : html.index("<section")]
    assert len(rows) == answer.count("<li>") > 1
    for row in rows.itertuples():
        said = f"{row.task}: {100 * row.difference:+.2f} points [{100 * row.low:+.2f}, "
        assert said in answer and f"{row.verdict}:</span> {row.task}" in answer
    assert re.search(r"\d not reproduced", answer) and "n = 5" in answer
    assert "snakemake --cores 1 published" in html  # how its figure is made again
    assert "Hu et al." in html and "no run of loraudit is behind" in html


def test_the_shipped_page_is_the_one_that_is_made_of_todays_numbers():
    page = Path("results/committed/published/report.html").read_text()
    rows = pd.read_csv("results/committed/published/verdicts.csv")
    for row in rows.itertuples():
        assert f"{row.verdict}:</span> {row.task}" in page
