"""Claims as data: the schema, with one clear error for each fault, and what is shipped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from loraudit.base.errors import UserError
from loraudit.studies.claims import (
    FOLDER,
    KEYS,
    QUANTITIES,
    load_all_claims,
    load_claims,
    select_claims,
)

GOOD = """
title: T
authors: A
year: 2024
url: https://example.org
claims:
  one:
    statement: Two matrices beat one.
    where: section 7.1
    source: text
    confidence: seen
    scope: {models: [roberta-base], tasks: [mrpc]}
    test: better
    quantity: score
    left: {method: lora, targets: q+v, rank: 4}
    right: {method: lora, targets: q, rank: 8}
    margin: 0
    unit: points
"""


def read(folder, text: str):
    path = folder / "file.yaml"
    path.write_text(text)
    return load_claims(path)[1]


def test_a_claim_is_named_by_its_file_and_its_key(tmp_path):
    (claim,) = read(tmp_path, GOOD)
    assert (claim.id, claim.scale) == ("file.one", 0.01)
    assert claim.free_fields == {"targets", "rank"}


WHOLE = GOOD[GOOD.index("test:") :]
FLAT = "test: flat\n    quantity: score\n    select: {method: lora}\n    "
REST = "\n    margin: 1\n    unit: points\n"

PLACE = re.compile("section|table|abstract|appendix|issue|README|report|poster|bin", re.I)
SIDE = "{method: lora, targets: q+v, rank: 4}"


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "    test: better",
            "    tst: better",
            "claims.one: key: 'tst' is not known; did you mean",
        ),
        ("test: better", "test: beter", "test: 'beter' is not known; did you mean 'better'"),
        (
            "quantity: score",
            "quantity: scor",
            "quantity: 'scor' is not known; did you mean 'score'",
        ),
        ("    margin: 0\n", "", "test 'better' needs the key 'margin'"),
        ("    unit: points\n", "", r"needs the key 'unit' \(legal: points, fraction\)"),
        (
            "unit: points",
            "unit: point",
            "unit of score: 'point' is not known; did you mean 'points'",
        ),
        ("margin: 0", "margin: 0\n    bound: 3", "key 'bound' means nothing to test 'better'"),
        ("margin: 0", "margin: one", "margin = 'one'"),
        ("    statement: Two matrices beat one.\n", "", "key 'statement' is missing"),
        (SIDE, "{method: lorra}", "left: method: 'lorra' is not known; did you mean 'lora'"),
        (SIDE, "{targets: q+w}", "left: targets: 'w' is not known"),
        (SIDE, "{rnk: 4}", "left: field: 'rnk' is not known; did you mean 'rank'"),
        (SIDE, "{rank: 0}", "left: rank = 0: no run has it"),
        (SIDE, "{learning_rate: 1e-3}", "YAML takes it for text; write 0.001"),
        (SIDE, "{learning_rate: 1e-5}", r"write 1\.0e-05\)"),
        (SIDE, '{rank: "8"}', r"rank = '8': no run has it.*write 8\)"),
        (SIDE, "{rank: true}", "rank = True: no run has it"),
        (SIDE, "{rank: []}", "left: rank: an empty list selects nothing"),
        (SIDE, "{method: [[lora]]}", r"left: method: \"\['lora'\]\" is not known"),
        (SIDE, "{head: melted}", "left: head = 'melted': no run has it"),
        (SIDE, "{alpha: {times_rnk: 2}}", "did you mean 'times_rank'"),
        (
            SIDE,
            "{method: full, rank: 4}",
            "selects nothing: method 'full' has no adapter and so no",
        ),
        (SIDE, "{task: mrpc}", "left: task: cells are matched within task, model, seed"),
        (SIDE, "{}", "left: selects every run"),
        (SIDE, "{method: lora, targets: q, rank: 8}", "left and right select the same"),
        ("test: better", "test: equivalent", "margin 0 with test 'equivalent'"),
        (
            "test: better\n    quantity: score\n",
            "test: equivalent\n    quantity: score\n    epoch: lst\n",
            "epoch: 'lst' is not known; did you mean 'last'",
        ),
        ("right: {method: lora, targets: q, rank: 8}", "published: hu2022.tabel2", "hu2022.table2"),
        ("scope: {models: [roberta-base], ", "scope: {models: [], ", "models"),
        (WHOLE, f"{FLAT}axis: targets{REST}", "axis 'targets': its values are no numbers .*rank"),
        (
            WHOLE,
            f"{FLAT}axis: alpha{REST}".replace("lora}", "lora, alpha: [rank, 16]}"),
            "select: alpha = 'rank': along an axis, name numbers",
        ),
        (WHOLE, f"{FLAT}axis: seed{REST}", "axis 'seed': cells are matched within it"),
        (
            WHOLE,
            "test: ratio\n    quantity: collapsed_share\n    left: {rank: 1}\n"
            "    right: {rank: 8}\n    low: 1\n    high: 2\n",
            "test 'ratio' with collapsed_share: it may be 0",
        ),
        (
            WHOLE,
            f"{FLAT}axis: rank{REST}".replace("test: flat", "test: increasing")
            .replace("quantity: score", "quantity: collapsed_share")
            .replace("points", "percent"),
            "shares are compared two at a time",
        ),
        (
            WHOLE,
            WHOLE.replace("score", "chosen_epoch").replace("points", "epochs"),
            "epoch = None: chosen_epoch needs one that is chosen",
        ),
    ],
)
def test_each_fault_has_one_clear_error(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert str(tmp_path / "file.yaml") in str(caught.value)


@pytest.mark.parametrize("test", KEYS)
def test_each_test_needs_its_keys_and_takes_no_other(tmp_path, test):
    own = {
        "left": "{rank: 1}",
        "right": "{rank: 8}",
        "select": "{method: lora}",
        "axis": "rank",
        "margin": "1",
        "low": "2",
        "high": "20",
        "bound": "1",
        "unit": "points",
    }
    quantity = "stable_rank" if test == "ratio" else "score"
    head = GOOD[: GOOD.index("    test:")] + f"    test: {test}\n    quantity: {quantity}\n"
    body = [f"    {key}: {own[key]}\n" for key in KEYS[test]]
    (claim,) = read(tmp_path, head + "".join(body))
    assert claim.test == test
    for place, key in enumerate(KEYS[test]):
        with pytest.raises(UserError, match=f"needs the key '{key}'"):
            read(tmp_path, head + "".join(body[:place] + body[place + 1 :]))
    for key in set(own) - set(KEYS[test]):
        with pytest.raises(UserError, match=f"key '{key}' means nothing to test '{test}'"):
            read(tmp_path, head + "".join(body) + f"    {key}: {own[key]}\n")


def test_fields_are_free_where_the_sides_ask_for_different_values(tmp_path):
    sides = GOOD.replace("targets: q+v, rank: 4", "targets: [q+v, all], rank: 4")
    (claim,) = read(tmp_path, sides.replace("targets: q, rank: 8", "targets: [q+v, all], rank: 8"))
    assert claim.free_fields == {"rank"}
    (claim,) = read(tmp_path, sides.replace("method: lora, targets: q,", "method: full} #"))
    assert claim.free_fields == {"method", "targets", "rank"}
    (claim,) = read(tmp_path, GOOD.replace("rank: ", "alpha: {times_rank: 2}, rank: "))
    assert claim.free_fields == {"targets", "rank", "alpha"}
    (claim,) = read(tmp_path, GOOD.replace(WHOLE, f"{FLAT}axis: rank{REST}"))
    assert claim.free_fields == {"rank"}


def test_a_claim_on_published_numbers_may_leave_the_margin_to_them(tmp_path):
    beside = GOOD.replace("right: {method: lora, targets: q, rank: 8}", "published: hu2022.table2")
    without = beside.replace("    margin: 0\n    unit: points\n", "")
    (claim,) = read(tmp_path, without.replace("test: better", "test: equivalent"))
    assert claim.margin is None
    with pytest.raises(UserError, match="test 'better' needs the key 'margin'"):
        read(tmp_path, without)


def test_a_scope_may_be_not_known(tmp_path):
    (claim,) = read(tmp_path, GOOD.replace("models: [roberta-base]", "models: null"))
    assert claim.scope.models is None


def test_a_claim_that_is_not_there_is_told_with_the_nearest():
    (claim,) = select_claims(["poster2025.rank-one-within-a-point"])
    assert claim.test == "equivalent"
    with pytest.raises(UserError, match=r"did you mean 'poster2025\.rank-one-"):
        select_claims(["poster2025.rank-one-within-a-pont"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_claims_say_where_they_are_from(path):
    source, claims = load_claims(path)
    assert source.url.startswith("https://")
    for claim in claims:
        assert PLACE.search(claim.where), claim.id
        assert claim.seen or claim.confidence == "memory", claim.id
        assert claim.statement.endswith("."), claim.id


def test_every_shipped_quantity_can_be_read():
    from loraudit.base.named_code import resolve

    assert all(callable(resolve(quantity.read)) for quantity in QUANTITIES.values())
    assert {claim.quantity for _, found in load_all_claims().values() for claim in found} <= {
        *QUANTITIES
    }


def test_claims_are_read_without_what_is_slow_to_import():
    code = (
        "import sys; from loraudit.studies.claims import load_all_claims; load_all_claims(); "
        "print({'torch', 'pandas', 'scipy'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


def test_the_page_on_adding_claims_lists_every_quantity():
    text = Path("docs/adding_claims.md").read_text()
    assert [name for name in QUANTITIES if f"`{name}`" not in text] == []


def test_shipped_scopes_name_what_is_known_or_nothing():
    """Names such as "models of the paper" would make every study one of another model."""
    claims = [claim for _, found in load_all_claims().values() for claim in found]
    named = [name for claim in claims for name in (claim.scope.models or ())]
    named += [name for claim in claims for name in (claim.scope.tasks or ())]
    assert [name for name in named if "of the paper" in name] == []


def test_what_no_source_claims_is_in_a_file_that_says_so():
    source, claims = load_claims(FOLDER / "hypotheses.yaml")
    assert "claimed by no source" in source.title
    assert {claim.confidence for claim in claims} == {"inferred"}
    files = load_all_claims()
    others = [one for name in files if name != "hypotheses" for one in files[name][1]]
    assert [claim.id for claim in others if "claims it" in claim.note] == []
