"""Scores of others beside published numbers: which are paired, and why others are not."""

import pytest

from loraudit.analysis.judging import published_verdicts, telling
from loraudit.base.errors import UserError
from loraudit.studies.reference import Published

SEEDS = {0: (89.5, 89.0), 1: (89.9, 89.1), 2: (89.7, 89.3)}


def number(**changes) -> Published:
    fields = {
        **{"reference": "paper", "table": "one", "where": "Table 1", "source": "text"},
        **{"confidence": "seen", "task": "mrpc", "model": "roberta-base", "method": "lora"},
        **{"rank": 8, "targets": "q+v", "metric": "accuracy", "value": 89.7, "pm": 0.3, "n": 5},
        **{"pm_means": "sd", "statistic": "mean", "selection": "best epoch"},
    }
    return Published(**{**fields, **changes})


def scores(**changes) -> Published:
    fields = {"reference": "results", "table": "csv", "pm": None, "pm_means": None, "seeds": SEEDS}
    return number(**{**fields, **changes})


def judged(*ours, beside=None):
    return published_verdicts(ours, beside or [number()], margin=0.01, reading="sd")


def test_scores_of_both_epochs_stand_beside_the_number_by_its_epoch():
    both = scores(), scores(selection="last epoch")
    for epoch, mean in (("best epoch", 0.897), ("last epoch", 0.8913333)):
        table = judged(*both, beside=[number(selection=epoch)])
        assert table["mean"].tolist() == [pytest.approx(mean)]
        assert table.selection.tolist() == [epoch]


def test_a_number_of_an_unstated_epoch_is_set_beside_the_best_and_the_last_is_told():
    table = judged(scores(), scores(selection="last epoch"), beside=[number(selection="unknown")])
    assert table.selection.tolist() == ["best epoch"]
    assert "the number's epoch is not stated: best here" in table.reason[0]


def test_scores_of_an_unstated_epoch_are_not_compared_with_one_that_is_stated():
    single = {0: (89.5,), 1: (89.9,)}
    with pytest.raises(UserError, match="the number's epoch is best epoch, the scores' is unknown"):
        judged(scores(selection="unknown", seeds=single))


def test_who_leaves_out_the_epoch_choice_is_told_how_to_state_it():
    unstated = scores(selection="unknown", seeds={0: (89.5,), 1: (89.9,)})
    row = judged(scores(), unstated).iloc[1]
    assert row.verdict == "not comparable"
    assert "say which it is in a column epoch_choice (best or last), or for all" in row.reason
    assert "--set epoch_choice=best" in row.reason
    stated = judged(scores(), scores(rank=4), beside=[number(), number(rank=4, selection="none")])
    assert "epoch_choice" not in stated.reason[1]


@pytest.mark.parametrize("side", ["the number", "the scores", "both"])
def test_what_is_neither_a_percentage_nor_a_fraction_is_compared_with_nothing(side):
    """BLEU 70.38 is no 70.38 %: beside 70.1 and 70.4 it was judged as 70 beside 0.7."""
    ours = {"unit": "percent" if side == "the number" else "other"}
    theirs = {"unit": "percent" if side == "the scores" else "other", "value": 70.38}
    bleu = {"metric": "bleu", "selection": "last epoch", "seeds": {0: (70.1,), 1: (70.4,)}}
    beside = [number(), number(metric="bleu", selection="last epoch", **theirs)]
    row = judged(scores(), scores(**bleu, **ours), beside=beside).iloc[1]
    assert row.verdict == "not comparable"
    assert row.reason.startswith("the bleu of paper.one is neither a percentage nor a fraction")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"task": "mprc"}, r"paper.one has no number of task mprc; did you mean 'mrpc'\?"),
        ({"model": "roberta-large"}, "no number of model roberta-large for mrpc"),
        ({"rank": 4}, r"no number of rank 4 for mrpc, roberta-base, lora.* \(it has: 8\)"),
        ({"metric": "f1"}, "no number of metric f1 for mrpc, roberta-base, lora, 8, q"),
        ({"train_rows": 100}, "no number of train rows 100 .*it has: not stated"),
    ],
)
def test_a_cell_that_the_table_lacks_says_what_is_missing(change, why):
    with pytest.raises(UserError, match=why):
        judged(scores(**change))


def test_a_cell_without_a_partner_stands_beside_those_that_have_one():
    table = judged(scores(), scores(task="wnli"))
    assert table.verdict.tolist()[1] == "not comparable"
    assert table.verdict[0] == "reproduced"
    assert table.published.tolist() == ["paper.one", ""]


def test_one_seed_is_undecided_and_told_how_many_would_do():
    table = judged(scores(seeds={0: (89.7,)}))
    assert table.verdict.tolist() == ["undecided"]
    assert "one seed of ours" in table.reason[0]
    assert "seeds would show equality with a chance of 80 %" in table.reason[0]


def test_columns_are_shown_that_tell_rows_apart():
    assert telling(judged(scores(), scores(task="wnli"))) == []
    two = judged(scores(), scores(rank=4), beside=[number(), number(rank=4)])
    assert telling(two) == ["rank"]
    same = judged(scores(alpha=8.0), scores(alpha=16.0))
    assert telling(same) == ["settings"]
    assert same.settings.tolist() == ["alpha 8", "alpha 16"]
