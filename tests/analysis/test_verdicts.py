"""Verdicts: the poster's known answers, and what may never be called reproduced."""

import math

import pandas as pd
import pytest

from loraudit.analysis.statistics import Mean
from loraudit.analysis.verdicts import decide, published_mean, published_verdicts, verdicts
from loraudit.base.errors import UserError
from loraudit.studies.reference import Published, select
from loraudit.studies.study import Study


@pytest.fixture(scope="module")
def poster():
    table = published_verdicts(
        select(("poster2025.seeds",)), select(("hu2022.table2",)), margin=0.01, reading="sd"
    )
    return table.set_index("task")


@pytest.mark.parametrize(
    ("task", "mean", "sd", "paper", "pm", "p"),
    [
        ("mrpc", 87.50, 0.71, 89.7, 0.7, 0.0012),
        ("sst2", 93.76, 0.26, 95.1, 0.2, 2.8e-5),
        ("qqp", 88.68, 0.24, 90.8, 0.1, 4.4e-6),
    ],
)
def test_the_poster_did_not_reproduce_the_paper(poster, task, mean, sd, paper, pm, p):
    """p to 4 %: the seeds are known to two decimals only."""
    row = poster.loc[task]
    assert 100 * row["mean"] == pytest.approx(mean, abs=0.005)
    assert 100 * row.sd == pytest.approx(sd, abs=0.01)
    assert (100 * row.published_value, 100 * row.published_sd) == pytest.approx((paper, pm))
    assert row.p == pytest.approx(p, rel=0.04)
    assert row.p_equivalent > 0.05
    assert row.verdict == "not reproduced"
    assert row.reason.startswith("same under every reading of ±")


def number(**changes) -> Published:
    fields = {
        "reference": "r",
        "table": "t",
        "where": "Table 1",
        "source": "text",
        "confidence": "seen",
        "task": "mrpc",
        "model": "roberta-base",
        "method": "lora",
        "rank": 8,
        "targets": "q+v",
        "metric": "accuracy",
        "value": 89.7,
        "pm": 0.7,
        "pm_means": "unknown",
        "n": 5,
        "statistic": "median",
        "selection": "best epoch",
    }
    return Published(**{**fields, **changes})


def tidy(scores=(0.897, 0.894, 0.899, 0.897, 0.896), **changes) -> pd.DataFrame:
    fields = {
        "task": "mrpc",
        "model": "roberta-base",
        "method": "lora",
        "rank": 8.0,
        "targets": "q+v",
        "label": "",
        "metric": "accuracy",
        "rows_train": 3668,
        "rows_validation": 408,
        "published_rows_train": 3668,
        "published_rows_validation": 408,
        "matrices": "q+v",
        "local_copies": "",
    }
    table = pd.DataFrame({"seed": range(len(scores)), "best": scores, "last": scores})
    return table.assign(best_accuracy=table.best, last_accuracy=table["last"], **fields | changes)


def study(**changes) -> Study:
    return Study(**{"name": "s", "question": "", "runs": (), **changes})


def only(table: pd.DataFrame) -> pd.Series:
    assert len(table) == 1
    return table.iloc[0]


def test_equal_scores_are_reproduced():
    row = only(verdicts(study(), tidy(), [number(pm=0.2)]))
    assert row.verdict == "reproduced"
    assert row.difference == pytest.approx(-0.0004)


def test_scores_far_away_are_not():
    row = only(verdicts(study(), tidy((0.86, 0.861, 0.859, 0.86, 0.862)), [number()]))
    assert row.verdict == "not reproduced"


def test_too_few_or_too_spread_seeds_leave_it_undecided():
    for scores in ((0.89,), (0.91, 0.87), (0.93, 0.88, 0.86)):
        assert only(verdicts(study(), tidy(scores), [number()])).verdict == "undecided"


@pytest.mark.parametrize(
    ("cell", "published", "reason"),
    [
        ({"model": "minilm"}, {}, "another model: the number is roberta-base's"),
        ({"rows_train": 2000}, {}, "a subset: 2,000 train rows, the number is for 3,668"),
        ({"rows_validation": 100}, {}, "a subset: 100 validation rows, the number is for 408"),
        ({"published_rows_train": None}, {}, "published size of the task is not in tasks.yaml"),
        ({}, {"split": "test"}, "another split: the number is of test"),
        ({}, {"rank": None}, "the number's rank or targets are not stated"),
        ({}, {"doubt": "looks like F1"}, "the number is in doubt: it looks like F1"),
    ],
)
def test_what_is_not_the_same_thing_is_never_reproduced(cell, published, reason):
    row = only(verdicts(study(), tidy(**cell), [number(pm=0.2, **published)]))
    assert row.verdict == "not comparable"
    assert reason in row.reason
    assert pd.isna(row.difference)
    assert pd.isna(row.p_holm)


def test_few_rows_are_comparable_with_a_number_for_as_few():
    row = only(verdicts(study(), tidy(rows_train=100), [number(pm=0.2, train_rows=100)]))
    assert row.verdict == "reproduced"


@pytest.mark.parametrize("change", [{"rank": 4}, {"targets": "q"}, {"task": "sst2"}])
def test_numbers_of_another_cell_do_not_match(change):
    assert verdicts(study(), tidy(), [number(**change)]).empty


def test_peft_runs_are_lora_and_full_runs_are_not():
    assert len(verdicts(study(), tidy(method="peft"), [number()])) == 1
    assert verdicts(study(), tidy(method="full", rank=None, targets=None), [number()]).empty


def test_runs_that_move_ranks_have_no_published_lora_beside_them():
    assert verdicts(study(), tidy(method="alora"), [number()]).empty


def test_last_epoch_numbers_are_compared_with_last_epochs():
    table = tidy()
    table["last_accuracy"] = 0.5
    row = only(verdicts(study(), table, [number(selection="last epoch", pm=None)]))
    assert row.epoch == "last"
    assert row["mean"] == 0.5


def test_holm_counts_the_comparable_rows():
    cells = pd.concat([tidy(), tidy(method="peft"), tidy(model="minilm")], ignore_index=True)
    table = verdicts(study(), cells, [number()])
    assert list(table.verdict == "not comparable") == [False, False, True]
    assert table.p_holm[0] == pytest.approx(min(1, 2 * table.p[0]))


def test_a_verdict_that_hangs_on_the_reading_says_so():
    scores = (0.886, 0.889, 0.884, 0.887, 0.886)
    row = only(verdicts(study(), tidy(scores), [number()]))
    assert "undecided if ± is standard error" in row.reason
    assert "not reproduced if ± is sd" in row.reason
    assert row.verdict == "not reproduced"


def test_the_reason_and_the_verdict_are_of_the_same_correction():
    """Twenty such cells: Holm makes each undecided, and the reason must not say otherwise."""
    scores = (0.886, 0.889, 0.884, 0.887, 0.886)
    cells = pd.concat([tidy(scores, label=f"l{i}") for i in range(20)], ignore_index=True)
    table = verdicts(study(), cells, [number()])
    assert set(table.verdict) == {"undecided"}
    assert not table.reason.str.contains("not reproduced if ± is sd").any()


def test_what_is_not_published_is_assumed_and_said():
    ours = 0.002
    assert published_mean(number(pm=None), "sd", ours) == (
        Mean(0.897, ours, 5),
        "spread unpublished: our spread, n=5",
    )
    single, _ = published_mean(number(pm=None, n=1), "sd", ours)
    assert (single.sd, single.n) == (ours, 1)
    unknown, _ = published_mean(number(n=None), "sd", ours)
    assert (unknown.sd, unknown.n) == (pytest.approx(0.007), 1)
    assert "n unpublished" in published_mean(number(n=None), "sd", ours)[1]
    assert "unpublished" not in published_mean(number(n=1), "sd", ours)[1]
    seeds = number(pm=None, seeds={0: (80.0, 90.0), 1: (80.0, 70.0)}, value=85.0)
    own, assumed = published_mean(seeds, "sd", ours)
    assert own.sd == pytest.approx(0.0707, abs=1e-4)
    assert (own.mean, own.n, assumed) == (pytest.approx(0.85), 2, "")


def test_one_published_run_near_ours_is_not_proof():
    row = only(verdicts(study(), tidy((0.881, 0.883, 0.885)), [number(pm=None, n=1, value=88.7)]))
    assert row.verdict == "undecided"
    assert "spread unpublished" in row.reason


def test_the_mismatched_split_must_be_whole_too():
    fields = {"published_rows_mismatched": 9832, "rows_mismatched": 100}
    table = tidy(**fields)
    table["best_accuracy_mismatched"] = table.best
    row = only(verdicts(study(), table, [number(metric="accuracy_mismatched")]))
    assert row.reason == "a subset: 100 mismatched rows, the number is for 9,832"


def test_local_copies_are_named():
    row = only(verdicts(study(), tidy(local_copies="mrpc"), [number(pm=0.2)]))
    assert row.reason.endswith("; local copy, not verified: mrpc")
    seeds = number(pm=None, pm_means=None, seeds={0: (89.0,), 1: (90.0,)})  # nothing is assumed
    row = only(verdicts(study(), tidy(local_copies="mrpc"), [seeds]))
    assert row.reason == "local copy, not verified: mrpc"


def test_all_matrices_match_by_name_or_one_by_one():
    cells = tidy(targets="all", matrices="q+k+v+o+up+down")
    for name in ("all", "q+k+v+o+up+down"):
        assert len(verdicts(study(), cells, [number(targets=name)])) == 1


def test_published_seeds_without_a_partner_are_an_error():
    with pytest.raises(UserError, match=r"no number of 'compare' .* agrees"):
        published_verdicts(
            select(("poster2025.seeds",)), select(("hu2022.table9",)), margin=0.01, reading="sd"
        )


def test_a_published_number_in_doubt_is_set_beside_no_seeds():
    ours = [number(pm=None, pm_means=None, seeds={0: (89.0,), 1: (90.0,)})]
    theirs = [number(value=88.0), number(value=99.0, doubt="is a misprint")]
    table = published_verdicts(ours, theirs, margin=0.01, reading="sd")
    assert table.published_value.tolist() == [pytest.approx(0.88)]


@pytest.mark.parametrize(
    ("different", "equivalent", "word"),
    [
        (0.001, 0.9, "not reproduced"),
        (0.6, 0.01, "reproduced"),
        (0.001, 0.01, "reproduced"),  # a real difference, smaller than the margin
        (0.3, 0.4, "undecided"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_the_words(different, equivalent, word):
    assert decide(different, equivalent) == word
