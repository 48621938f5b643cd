"""Verdicts on claims for readers: words, numbers in units, small pictures, what is on record."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from loraudit.report.claim_record import on_record, page, study_claims
from loraudit.report.claim_tables import (
    allowed_text,
    claim_table,
    claims_fact,
    effect_picture,
    verdict_text,
)
from loraudit.report.page import SECTIONS
from loraudit.studies.claims import load_all_claims
from loraudit.tools import claims as command
from tiny_claims import verdict_table


@pytest.fixture(scope="module")
def verdicts() -> pd.DataFrame:
    return verdict_table()


def test_a_table_has_each_effect_in_the_claims_unit_and_its_word(verdicts):
    shown = claim_table(verdicts).set_index(verdicts.claim)
    assert re.fullmatch(r"\+4\.\d \[\+\d\.\d, \+\d\.\d\] points", shown.effect["file.better"])
    assert re.fullmatch(r"1\.06 \[1\.0\d, 1\.0\d\] times", shown.effect["file.ratio"])
    assert shown.effect["file.share"] == "1 percent"
    assert shown["holds if"].to_dict() == {
        "file.better": "above 0 points",
        "file.worse": "above 0 points",
        "file.open": "above 0 points",
        "file.wide": "within ±5 points",
        "file.ratio": "0.5 to 2 times",
        "file.gone": "above 0 points",
        "file.share": "at most 2 percent",
    }
    assert shown.verdict["file.worse"] == "contradicted at scale"
    assert shown.verdict["file.gone"] == "not tested"
    assert shown.remarks["file.gone"] == "no run of right (targets o)"
    assert "supported before the correction for 5 tests" in shown.remarks["file.open"]
    seeds = r"with \d+ seeds per cell it would be decided, if the effect is the one seen"
    assert re.search(seeds, shown.remarks["file.open"])


def test_a_unit_agrees_with_its_number(verdicts):
    row = verdicts[verdicts.claim == "file.wide"].iloc[0].to_dict()
    assert allowed_text(row) == "within ±5 points"
    one = row | {"region_low": -0.01, "region_high": 0.01}
    assert allowed_text(one) == "within ±1 point"
    bound = row | {"region_low": -math.inf, "test": "at_most", "quantity": "adapter_parameters"}
    assert allowed_text(bound | {"unit": "millions", "region_high": 3e5}) == "at most 0.3 million"
    bound |= {"quantity": "adapter_bytes", "unit": "bytes"}
    assert allowed_text(bound | {"region_high": 2}) == "at most 2 bytes"
    assert allowed_text(bound | {"region_high": 1}) == "at most 1 byte"


def test_verdicts_of_an_untuned_study_are_said_to_be_so(verdicts):
    assert "untuned" in claims_fact(verdicts, untuned=True)
    assert "untuned" not in claims_fact(verdicts)


def test_what_was_not_seen_in_its_source_is_marked(verdicts):
    told = claim_table(verdicts.assign(confidence="memory")).source
    assert told.str.endswith("(not seen in the source itself)").all()
    assert not claim_table(verdicts).source.str.contains("not seen").any()


def test_a_picture_is_filled_where_the_verdict_survives_holm(verdicts):
    drawn = {row["claim"]: effect_picture(row) for row in verdicts.to_dict("records")}
    assert 'class="dot supported full"' in drawn["file.better"]
    assert 'class="dot contradicted full"' in drawn["file.worse"]
    assert 'class="dot supported open"' in drawn["file.open"]
    assert 'class="dot undecided open"' in drawn["file.wide"]
    assert drawn["file.gone"] == ""
    places = re.findall(r"[\d.]+", " ".join(re.findall(r'c?x="([^"]+)"', drawn["file.wide"])))
    assert all(0 <= float(place) <= 132 for place in places)


def test_claims_open_the_page_and_are_counted(verdicts):
    assert next(iter(SECTIONS)) == "claims"
    fact = claims_fact(verdicts)
    assert "3 supported at scale" in fact and "1 not tested" in fact
    assert "An interval covers the comparisons of one claim (95 %)" in fact
    assert "others: " not in fact and "adjusted over these claims (Holm)" in fact
    both = verdicts.assign(listed=[True, *[False] * (len(verdicts) - 1)])
    assert "asked by the study: " in claims_fact(both) and "others: " in claims_fact(both)
    words = [verdict_text(row) for row in verdicts.to_dict("records")]
    assert words.count("supported at scale") == 3


def test_the_page_of_claims_is_current():
    """If not: python scripts/claims_docs.py."""
    assert Path("docs/claims.md").read_text() == page(Path("results"))


def test_the_page_has_every_claim_once_with_the_verdicts_on_record():
    text = Path("docs/claims.md").read_text()
    ids = [claim.id for _, claims in load_all_claims().values() for claim in claims]
    assert re.findall(r"^### (\S+)$", text, re.M) == ids and len(ids) >= 20
    known = on_record(Path("results"), own=False)
    assert text.count("Not tested yet.") == len(set(ids) - set(known.claim))
    poster = known[known.claim == "poster2025.rank-one-within-a-point"]
    assert dict(zip(poster.study + " " + poster.task, poster.verdict, strict=True)) == {
        "published: poster2025 mnli": "contradicted",
        "alpha snippets": "contradicted",
        "quickstart snippets": "undecided",
        "quickstart-tuning snippets": "undecided",
        "rank snippets": "contradicted",
        "tuning snippets": "undecided",
        "tuning product_reviews": "undecided",
    }
    cells = known[known.claim == "hu2022.table2-is-reached"].set_index("task").verdict
    words = cells[["sst2", "qqp", "mrpc"]].tolist()
    assert words == ["undecided", "contradicted", "undecided"]


def test_the_page_of_claims_opens_with_every_verdict_and_its_words():
    text = Path("docs/claims.md").read_text()
    first = text[text.index("## The verdicts on record") : text.index("\n### ")]
    linked = re.findall(r"^\| +\[(\S+)\]\(#(\S+)\)", first, re.M)
    assert [claim for claim, _ in linked] == on_record(Path("results"), own=False).claim.tolist()
    assert all(anchor == re.sub(r"[^\w-]", "", claim) for claim, anchor in linked)
    head = text[: text.index("## The verdicts on record")]
    assert all(word in head for word in ("At scale", "borrowed", "fits least", "n is the number"))
    assert "not known on" not in text


def test_verdicts_of_studies_are_found_where_they_are_kept(verdicts, tmp_path, monkeypatch):
    for folder in ("results/mine/tables", "results/committed/theirs", "results/committed/mine"):
        (tmp_path / folder).mkdir(parents=True)
    table = verdicts.assign(claim="hu2022.rank-flat")
    table[:1].to_csv(tmp_path / "results/mine/tables/claims.csv", index=False)
    table[1:2].to_csv(tmp_path / "results/committed/theirs/claims.csv", index=False)
    table.to_csv(tmp_path / "results/committed/mine/claims.csv", index=False)
    monkeypatch.setattr("loraudit.studies.paths.RESULTS", tmp_path / "results")
    record = on_record(tmp_path / "results")
    mine = record[~record.study.str.startswith("published")]
    assert mine.study.tolist() == ["mine", "theirs"]
    (found,) = command.claims(study="mine")
    assert [row["words"] for row in found["verdicts"]] == ["supported at scale"]
    (contradicted,) = command.claims(text="rank-flat", verdict="contradicted")
    assert [row["study"] for row in contradicted["verdicts"]] == ["theirs"]
    assert len(study_claims([tmp_path / "results/committed/mine/claims.csv"])) == 6


def test_the_command_filters_and_refuses_what_is_not_there():
    everything = command.claims()
    assert len(everything) == len(re.findall("^### ", Path("docs/claims.md").read_text(), re.M))
    assert {claim["id"].split(".")[0] for claim in command.claims(source="hu2022")} == {"hu2022"}
    rates = command.claims(quantity="learning_rate")
    assert rates and {claim["quantity"] for claim in rates} == {"learning_rate"}
    untested = [claim for claim in everything if not claim["verdicts"]]
    ((_, columns, lines),) = command.sections(untested)
    assert columns[-2:] == ["verdict", "remarks"]
    assert [line[-2] for line in lines] == ["not tested"] * len(untested) and untested
    assert len(columns) == len(lines[0])
    for filters, message in (
        ({"source": "hu2020"}, "did you mean 'hu2022'"),
        ({"quantity": "skore"}, "did you mean 'score'"),
        ({"verdict": "suported"}, "did you mean 'supported'"),
        ({"study": "nowhere"}, "study with verdicts on claims"),
    ):
        with pytest.raises(Exception, match=message):
            command.claims(**filters)
