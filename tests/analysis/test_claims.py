"""Verdicts on claims: planted effects of known size, and what the poster's own files say."""

import json

import numpy as np
import pandas as pd
import pytest

from loraudit.analysis.claim_tests import outcome, parts_of
from loraudit.analysis.claims import claim_verdicts, decide
from loraudit.analysis.evidence import of_published
from loraudit.analysis.judging import published_verdicts
from loraudit.analysis.quantities import intruder_dimensions
from loraudit.studies.claims import select_claims
from loraudit.studies.reference import select
from tiny_claims import cell, claim, draws, evidence

BETTER = {"test": "better", "left": {"targets": "q+v"}, "right": {"targets": "q"}, "margin": 0}
EQUAL = {**BETTER, "test": "equivalent", "margin": 1}
FLAT = {"test": "flat", "select": {"method": "lora"}, "axis": "rank", "margin": 1}


def two(random, gap: float, n: int = 5, sd: float = 0.01):
    """Plant q+v above q by `gap`."""
    return evidence(
        cell(draws(random, 0.8 + gap, n, sd)), cell(draws(random, 0.8, n, sd), targets="q")
    )


def ranks(random, slope: float, n: int = 5, sd: float = 0.01):
    """Plant a score that rises by `slope` from rank to rank."""
    return evidence(
        *(
            cell(draws(random, 0.8 + slope * step, n, sd), rank=rank)
            for step, rank in enumerate((1, 4, 16))
        )
    )


def word(made, **fields) -> str:
    return claim_verdicts(made, [claim(**fields)]).verdict.item()


def quick_word(made, **fields) -> str:
    """Return the verdict of a single claim, without what its table says beside it."""
    one = claim(**fields)
    found = outcome(one, parts_of(one, made, ("t", "m")))
    return decide(found.supports, found.contradicts)


RATES = [  # what is planted: evidence of one gap, the claim, the only word that is wrong
    ("no gap, called better or worse", lambda r: two(r, 0), BETTER, ("supported", "contradicted")),
    ("a gap of just the margin", lambda r: two(r, 0.01), EQUAL, ("supported", "contradicted")),
    ("three seeds, no gap", lambda r: two(r, 0, 3), BETTER, ("supported", "contradicted")),
    ("ranks just a margin apart", lambda r: ranks(r, 0.005), FLAT, ("supported", "contradicted")),
    (
        "no trend, called increasing or not",
        lambda r: ranks(r, 0),
        {**FLAT, "test": "increasing", "margin": 0},
        ("supported", "contradicted"),
    ),
]


@pytest.mark.parametrize(
    "planted, fields, wrong", [row[1:] for row in RATES], ids=[r[0] for r in RATES]
)
def test_at_the_edge_of_a_claim_a_verdict_is_wrong_in_few_studies(planted, fields, wrong):
    """The stated rates: 5 % for each word that has a single edge to be wrong about; 10 % in all.

    At the edge itself neither word is false by more than a hair, so both are counted.
    """
    random, studies = np.random.default_rng(0), 250
    words = [quick_word(planted(random), **fields) for _ in range(studies)]
    for each in wrong:
        rate = np.mean([one == each for one in words])
        assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies), each


@pytest.mark.parametrize(
    "planted, fields, right",
    [
        (lambda r: two(r, 0.05), BETTER, "supported"),
        (lambda r: two(r, -0.05), BETTER, "contradicted"),
        (lambda r: two(r, 0.005, 5, 0.001), {**BETTER, "margin": 1}, "contradicted"),
        (lambda r: two(r, 0, 5, 0.002), EQUAL, "supported"),
        (lambda r: two(r, 0.03, 5, 0.004), EQUAL, "contradicted"),
        (lambda r: two(r, 0.01, 3), EQUAL, "undecided"),
        (lambda r: ranks(r, 0, 5, 0.002), FLAT, "supported"),
        (lambda r: ranks(r, 0.02, 3, 0.004), FLAT, "contradicted"),
        (lambda r: ranks(r, 0.02), {**FLAT, "test": "increasing", "margin": 0}, "supported"),
        (lambda r: ranks(r, 0.02), {**FLAT, "test": "decreasing", "margin": 0}, "contradicted"),
        (lambda r: ranks(r, -0.02), {**FLAT, "test": "decreasing", "margin": 0}, "supported"),
        (
            lambda r: two(r, 0, 5, 0.004),
            {"test": "at_least", "select": {"targets": "q"}, "bound": 75},
            "supported",
        ),
        (
            lambda r: two(r, 0, 5, 0.004),
            {"test": "at_most", "select": {"targets": "q"}, "bound": 75},
            "contradicted",
        ),
        (
            lambda r: two(r, 0.8, 5, 0.004),
            {"test": "ratio", "left": {"targets": "q+v"}, "right": {"targets": "q"}}
            | {"low": 1.8, "high": 2.2},
            "supported",
        ),
    ],
)
def test_a_planted_effect_gets_its_verdict_in_most_studies(planted, fields, right):
    random = np.random.default_rng(1)
    words = [quick_word(planted(random), **fields) for _ in range(40)]
    assert np.mean([one == right for one in words]) >= 0.8


def test_seeds_that_are_shared_are_paired():
    """A spread by seed that both sides share hides the gap from any test that does not pair."""
    rng = np.random.default_rng(2)
    common = draws(rng, 0.8, 6, 0.05)
    made = evidence(
        cell(common + 0.01 + draws(rng, 0, 6, 0.001)),
        cell(common + draws(rng, 0, 6, 0.001), targets="q"),
    )
    row = claim_verdicts(made, [claim(**BETTER)]).iloc[0]
    assert (row.verdict, row.how, row.n) == ("supported", "paired by seed", 6)


def test_holm_is_over_the_claims_that_a_study_lists():
    random = np.random.default_rng(3)
    made = two(random, 0.02, 5, 0.012)
    claims = [claim(f"c{i}", **{**BETTER, "margin": i / 100}) for i in range(6)]
    alone = claim_verdicts(made, claims[:1], ["file.c0"]).iloc[0]
    among = claim_verdicts(made, claims, [one.id for one in claims])
    assert among.family.tolist() == [6] * 6
    first = among[among.claim == "file.c0"].iloc[0]
    assert first.p_holm > alone.p_holm == alone[["supports", "contradicts"]].min()
    unlisted = claim_verdicts(made, claims, ["file.c0"])
    assert unlisted.family.tolist() == [1, 5, 5, 5, 5, 5]
    assert unlisted.listed.tolist() == [True] + [False] * 5


def test_an_undecided_claim_says_how_many_seeds_would_decide():
    random = np.random.default_rng(4)
    made = two(random, 0.01, 3)
    row = claim_verdicts(made, [claim(**BETTER)]).iloc[0]
    assert row.verdict == "undecided"
    assert row.smallest > abs(row.effect) and 3 < row.seeds <= 1000
    decided = np.random.default_rng(5)
    sd = row.smallest  # with that many seeds the effect that was seen is found in most studies
    gap, n = abs(row.effect), int(row.seeds)
    spread = made.cells[0].runs["last"].std()
    words = [quick_word(two(decided, gap, n, spread), **BETTER) for _ in range(40)]
    assert np.mean([one == "supported" for one in words]) > 0.5 and sd > 0


def test_a_claim_of_several_pairs_has_to_hold_for_all():
    random = np.random.default_rng(6)
    made = evidence(
        cell(draws(random, 0.85, 5)),
        cell(draws(random, 0.80, 5), targets="q"),
        cell(draws(random, 0.75, 5), rank=1),
        cell(draws(random, 0.80, 5), targets="q", rank=1),
    )
    row = claim_verdicts(made, [claim(**BETTER)]).iloc[0]
    assert (row.verdict, row.parts, row.part) == ("contradicted", 2, "lora r1 q+v minus lora r1 q")


def test_cells_are_matched_in_all_but_named_fields_and_chosen_settings():
    scores = [0.8, 0.81, 0.79]
    made = evidence(
        cell(scores, head="trained", learning_rate=1e-3),
        cell(scores, targets="q", head="frozen", learning_rate=1e-3),
        cell(scores, targets="q", head="trained", learning_rate=1e-3, rank=1),
    )
    assert claim_verdicts(made, [claim(**BETTER)]).empty
    near = cell(scores, targets="q", head="trained", learning_rate=2e-3)
    row = claim_verdicts(evidence(*made.cells, near), [claim(**BETTER)]).iloc[0]
    assert (row.parts, row.unlike) == (1, "learning_rate")


def test_one_seed_decides_nothing_unless_a_spread_is_borrowed():
    row = claim_verdicts(two(np.random.default_rng(0), 0.3, 1), [claim(**BETTER)]).iloc[0]
    assert (row.verdict, row.how) == ("undecided", "one seed")


def test_a_claim_without_its_cells_is_not_tested_and_says_what_is_missing():
    made = evidence(cell([0.8, 0.81]))
    assert claim_verdicts(made, [claim(**BETTER)]).empty
    row = claim_verdicts(made, [claim(**BETTER)], ["file.one"]).iloc[0]
    assert (row.verdict, row.missing) == ("not tested", "no run of right (targets q)")


@pytest.mark.parametrize(
    "subject, fields, why",
    [
        (("t", "m"), {}, ""),
        (("u", "m"), {}, "another task (u; the claim is of t)"),
        (("t", "small"), {}, "another model (small; the claim is of m)"),
        (("t", "m"), {"subsets": {("t", "m"): "640 of 7,000 train rows"}}, "a subset (640 of"),
    ],
)
def test_another_setting_than_the_claims_is_in_small(subject, fields, why):
    made = evidence(cell([0.8, 0.81], subject), cell([0.7, 0.71], subject, targets="q"), **fields)
    row = claim_verdicts(made, [claim(**BETTER)]).iloc[0]
    assert row.scale == ("in small" if why else "at scale")
    assert row.why.startswith(why)


def test_collapsed_runs_and_known_tasks_are_named():
    sick = {"run": ["t/m/a/s0", "t/m/a/s1"], "last_collapsed": [True, False], "last_epoch": 1}
    well = {"run": ["t/m/b/s0", "t/m/b/s1"], "last_collapsed": False, "last_epoch": 1}
    made = evidence(
        cell([0.5, 0.81], columns=sick),
        cell([0.8, 0.79], columns=well, targets="q"),
        cautions={("t", "m"): "m was trained on data of t before"},
    )
    row = claim_verdicts(made, [claim(**BETTER)]).iloc[0]
    assert row.sick == "t/m/a/s0"
    assert row.caution == "m was trained on data of t before"


def test_what_is_counted_needs_no_seeds():
    columns = {"parameters_trainable": 10, "parameters_model": 1000}
    made = evidence(cell([0.8], columns=columns))
    small = {"quantity": "trainable_share", "select": {"method": "lora"}, "unit": "percent"}
    assert word(made, test="at_most", bound=1.5, **small) == "supported"
    assert word(made, test="at_least", bound=1.5, **small) == "contradicted"


def tuned(chosen: dict[str, float], tried: dict[str, list[float]]):
    """Make cells whose learning rate was chosen from those that were tried."""
    cells, rows = [], []
    for method, rate in chosen.items():
        names = {"task": "t", "model": "m", "method": method, "rank": None, "targets": None}
        columns = {**names, "label": "", "tuned": "learning_rate", "learning_rate": rate}
        cells.append(cell([0.8], columns=columns, method=method, rank=None))
        rows += [
            {**names, "label": "", "values": json.dumps({"learning_rate": one})}
            for one in tried[method]
        ]
    return evidence(*cells, tables={"tuning": pd.DataFrame(rows)})


RATIO = {"test": "ratio", "quantity": "learning_rate", "low": 3, "high": 30}
RATIO |= {"left": {"method": "lora"}, "right": {"method": "full"}}


@pytest.mark.parametrize(
    "lora, full, word",
    [(1e-3, 1e-4, "supported"), (1e-3, 8e-4, "undecided"), (1e-4, 1e-4, "contradicted")],
)
def test_a_ratio_of_chosen_rates_is_known_as_well_as_the_tried_ones_lie_apart(lora, full, word):
    around = {
        name: [rate / 1.6, rate, rate * 1.6] for name, rate in (("lora", lora), ("full", full))
    }
    if word == "undecided":  # the best lies at the edge of what was tried
        around["lora"] = [lora / 2, lora]
    made = tuned({"lora": lora, "full": full}, around)
    row = claim_verdicts(made, [claim(**RATIO)]).iloc[0]
    assert row.verdict == word
    assert np.exp(row.effect) == pytest.approx(lora / full)


def test_rates_that_were_set_by_hand_test_nothing():
    made = tuned({"lora": 1e-3, "full": 1e-4}, {"lora": [], "full": []})
    for one in made.cells:
        one.runs["tuned"] = ""
    row = claim_verdicts(made, [claim(**RATIO)], ["file.one"]).iloc[0]
    assert (row.verdict, "set by hand" in row.missing) == ("not tested", True)


POSTER = ("poster2025.seeds", "poster2025.mnli_grid")


def test_the_posters_claim_on_rank_one_is_contradicted_by_its_own_files():
    made = of_published("poster2025", select(POSTER))
    (asked,) = select_claims(["poster2025.rank-one-within-a-point"])
    row = claim_verdicts(made, [asked]).iloc[0]
    assert (row.verdict, row.scale) == ("contradicted", "at scale")
    assert row.effect == pytest.approx(0.8323 - 0.7274)
    assert row.low > 0.01 and "borrowed" in row.how
    own = {
        **asked.model_dump(exclude={"id"}, exclude_none=True),
        "select": {"method": "lora", "targets": "q+v", "rank": [1, 64]},
    }
    pair = claim_verdicts(made, [claim(**own)]).iloc[0]
    assert pair.effect == pytest.approx(0.8728 - 0.8503)


def test_the_posters_cells_beside_the_papers_come_out_as_in_the_verdicts():
    against = {
        "test": "equivalent",
        "left": {"method": "lora", "rank": 8},
        "published": "hu2022.table2",
        "margin": 1,
        "scope": {"models": ["roberta-base"], "tasks": ["sst2", "qqp", "mrpc"]},
    }
    made = of_published("poster2025", select(("poster2025.seeds",)))
    rows = claim_verdicts(made, [claim(**against)], ["file.one"]).set_index("task")
    known = published_verdicts(select(POSTER[:1]), select(("hu2022.table2",)), 0.01, "sd")
    assert len(rows) == len(known) == 3
    for row in known.itertuples():
        mine = rows.loc[row.task]
        assert (mine.effect, mine.low, mine.high) == pytest.approx(
            (row.difference, row.low, row.high)
        )
        assert mine.supports == pytest.approx(row.p_equivalent)
        assert mine.contradicts == pytest.approx(row.p_exceeds)
        assert mine.verdict == {"not reproduced": "contradicted"}[row.verdict]


def test_intruder_dimensions_are_a_runs_mean_over_layers_and_matrices():
    subject = cell([0.8, 0.81])
    subject.runs["run"] = ["a", "b"]
    rows = [{"run": run, "intruders": n} for run, ns in (("a", (0, 2)), ("b", (3, 4))) for n in ns]
    measured = evidence(subject, tables={"intruders": pd.DataFrame(rows)})
    found = intruder_dimensions(subject, measured, None)
    assert found.tolist() == [1.0, 3.5]
    assert intruder_dimensions(subject, evidence(subject), None).empty
