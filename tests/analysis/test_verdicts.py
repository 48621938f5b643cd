"""Verdicts: the poster's known answers, and what may never be called reproduced."""

import math

import pandas as pd
import pytest

from loraudit.analysis.judging import published_verdicts
from loraudit.analysis.statistics import Mean, median_widening
from loraudit.analysis.verdicts import (
    margin_of,
    one_of,
    power,
    published_mean,
    verdicts,
)
from loraudit.base.errors import UserError
from loraudit.report.tables import PROTOCOLS, verdict_table
from loraudit.studies.known import Contamination
from loraudit.studies.reference import Architecture, Published, select
from loraudit.studies.study import Run, Study
from tiny import changed, make_spec, make_task


@pytest.fixture(scope="module")
def poster():
    table = published_verdicts(
        select(("poster2025.seeds",)), select(("hu2022.table2",)), margin=0.01, reading="sd"
    )
    return table.set_index("task")


@pytest.mark.parametrize(
    ("task", "mean", "sd", "paper", "pm", "word"),
    [
        ("mrpc", 87.50, 0.715, 89.7, 0.7, "not reproduced"),
        ("sst2", 93.76, 0.264, 95.1, 0.2, "different, by how much is open"),
        ("qqp", 88.68, 0.236, 90.8, 0.1, "not reproduced"),
    ],
)
def test_the_poster_is_beyond_the_margin_of_the_paper(poster, task, mean, sd, paper, pm, word):
    """The sds of exact counts: MRPC's is 0.7146, not the 0.7151 of percentages with two digits.

    SST-2's 95 % interval reaches 0.03 points into the margin, so that its word is the weaker one.
    """
    row = poster.loc[task]
    assert 100 * row["mean"] == pytest.approx(mean, abs=0.005)
    assert 100 * row.sd == pytest.approx(sd, abs=0.0005)
    assert (100 * row.published_value, 100 * row.published_sd) == pytest.approx((paper, pm))
    assert row.p_exceeds_holm < 0.05 < row.p_equivalent
    assert row.verdict == word
    assert (row.high < -row.margin) == (word == "not reproduced")


def test_the_posters_verdicts_say_what_they_hang_on(poster):
    """If the paper's ± is a standard error, only QQP's difference is shown to exceed the margin."""
    for task in ("qqp", "sst2"):
        assert "same under every reading of ±" in poster.loc[task].reason
    reason = poster.loc["mrpc"].reason
    assert "same under every reading" not in reason
    assert "not reproduced if ± is sd" in reason
    assert "undecided if ± is standard error" in reason


def test_a_mean_would_have_the_tests_of_the_paper_that_were_published_first():
    """Minimum-effect p of SST-2 and MRPC if the paper's five medians were means, ± = sd, se."""
    ours = select(("poster2025.seeds",))
    paper = [n.model_copy(update={"statistic": "mean"}) for n in select(("hu2022.table2",))]
    found = {
        reading: published_verdicts(ours, paper, 0.01, reading).set_index("task").p_exceeds
        for reading in ("sd", "standard error")
    }
    assert found["sd"]["sst2"] == pytest.approx(0.027, abs=0.001)
    assert found["sd"]["mrpc"] == pytest.approx(0.014, abs=0.001)
    assert found["standard error"]["sst2"] == pytest.approx(0.096, abs=0.002)
    assert found["standard error"]["mrpc"] == pytest.approx(0.090, abs=0.004)


def test_the_posters_verdicts_are_about_another_protocol(poster):
    """Three epochs with a frozen head beside the paper's 30 with a trained one."""
    assert set(poster.protocol) == {"another"}
    reason = poster.loc["mrpc"].reason
    assert reason.startswith("the number was made under another protocol (hu2022): ")
    for part in ("epochs 30 (here 3)", "head trained (here frozen)", "alpha 8 (here 16)"):
        assert part in reason
    assert "warm start from mnli's adapter (here none)" in reason
    assert "remark on the number: its runs started from an MNLI adapter" in reason
    assert "alpha" not in poster.loc["sst2"].reason.partition("remark")[0]  # 8 in both


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


@pytest.mark.parametrize("model", ["roberta-base", "minilm"])
def test_a_model_that_knows_the_task_keeps_its_word_and_the_row_says_so(model):
    known = Contamination(model=model, task="mrpc", what="a corpus")
    runs, numbers = tidy(model=model), [number(pm=0.2)]
    plain = only(verdicts(study(), runs, numbers))
    row = only(verdicts(study(contaminations=(known,)), runs, numbers))
    assert row.verdict == plain.verdict
    assert row.verdict == ("reproduced" if model == "roberta-base" else "not comparable")
    assert row.reason == "; ".join(filter(None, [plain.reason, known.sentence()]))
    others = known.model_copy(update={"task": "rte"})
    assert only(verdicts(study(contaminations=(others,)), runs, numbers)).reason == plain.reason


def test_scores_far_away_are_not():
    row = only(verdicts(study(), tidy((0.86, 0.861, 0.859, 0.86, 0.862)), [number()]))
    assert row.verdict == "not reproduced"


def test_a_difference_that_may_be_within_the_margin_is_not_called_not_reproduced():
    """1.1 points, and 0 is out of the question, but 0.7 is not."""
    row = only(verdicts(study(), tidy((0.885, 0.887, 0.886, 0.885, 0.887)), [number(pm=0.3)]))
    assert row.p_holm < 0.01
    assert row.verdict == "different, by how much is open"
    assert abs(row.high90) < row.margin < abs(row.low90)


def test_the_studys_margin_goes_before_the_numbers_and_one_point_is_the_last_resort():
    assert margin_of(number(margin=2.5), 0.02) == 0.02
    assert margin_of(number(margin=2.5), None) == 0.025
    assert margin_of(number(value=0.897, pm=None, unit="fraction", margin=0.03), None) == 0.03
    assert margin_of(number(), None) == 0.01
    scores = (0.885, 0.887, 0.886, 0.885, 0.887)
    rows = verdicts(study(), tidy(scores), [number(pm=0.3, margin=margin) for margin in (1.0, 2.0)])
    assert rows.verdict.tolist() == ["different, by how much is open", "reproduced"]


@pytest.mark.parametrize("scores", [(0.897,) * 2, (0.6838,) * 3])
def test_seeds_that_all_tie_are_undecided_beside_a_number_with_a_spread_too(scores):
    row = only(verdicts(study(), tidy(scores), [number(pm=0.7)]))
    assert row.verdict == "undecided"
    assert math.isnan(row.low) and "all our seeds tie" in row.reason


@pytest.mark.parametrize("epoch", ["best", "last"])
def test_an_undefined_score_leaves_a_row_that_names_the_run(epoch):
    """Also beside a number of the other epoch, where it does no harm."""
    runs = tidy().assign(best_epoch=1, last_epoch=1)
    runs.loc[3, [f"{epoch}_accuracy", epoch]] = math.nan
    for published in ("best", "last"):
        row = only(verdicts(study(), runs, [number(selection=f"{published} epoch", pm=0.2)]))
        same = published == epoch
        assert row.verdict == ("not comparable" if same else "reproduced")
        assert ("an undefined score: accuracy of s3" in row.reason) == same


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "peft", "peft": {"use_dora": True}}, "peft is {'use_dora': True}"),
        ({"method": "lora", "base_bits": 4, "compute": "plain"}, "base_bits is 4"),
        ({"method": "lora", "lora_plus": 16.0}, "lora_plus is 16.0"),
        ({"method": "lora"}, None),
    ],
)
def test_a_variant_of_lora_is_not_compared_with_loras_numbers(changes, said):
    spec = make_spec(**{"rank": 8, "targets": "q+v", **changes})
    made = study(runs=(Run(id="r", label="", spec=spec),))
    runs = tidy(method=spec.method, run="r")
    paper = number(pm=0.2)
    row = only(verdicts(made, runs, [paper]))
    assert row.verdict == ("not comparable" if said else "reproduced")
    if said:
        assert f"another method: {said}, which is not stated of the number" in row.reason
        stated = paper.model_copy(update={"settings": {**changes}})
        assert "another method" not in only(verdicts(made, runs, [stated])).reason


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
        ({}, {"unit": "other"}, "another unit: the number is neither a percentage nor a fraction"),
        ({}, {"rank": None}, "the number's rank or targets are not stated"),
        (
            {},
            {"selection": "none"},
            "another epoch: the number is of neither the best nor the last",
        ),
        ({}, {"doubt": "looks like F1"}, "the number is in doubt: it looks like F1"),
    ],
)
def test_what_is_not_the_same_thing_is_never_reproduced(cell, published, reason):
    row = only(verdicts(study(), tidy(**cell), [number(pm=0.2, **published)]))
    assert row.verdict == "not comparable"
    assert reason in row.reason
    assert pd.isna(row.difference)
    assert pd.isna(row.p_holm)


def test_all_reasons_against_a_comparison_are_listed():
    cell = tidy(rows_train=2000, rows_validation=100)
    row = only(verdicts(study(), cell, [number(split="test", doubt="looks like F1")]))
    assert row.reason.split("; ") == [
        "the number is in doubt: it looks like F1",
        "another split: the number is of test",
        "a subset: 2,000 train rows, the number is for 3,668",
        "a subset: 100 validation rows, the number is for 408",
    ]


def test_a_number_of_another_model_and_of_unstated_rank_is_not_beside_ours():
    vague = number(model="llama-2-7b", rank=None)
    assert verdicts(study(), tidy(), [vague]).empty
    assert len(verdicts(study(), tidy(), [vague, number(model="roberta-large")])) == 1


BASE = Architecture(layers=12, width=768, parameters=124_055_040, source="its configuration")


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"parameters_adapter": 2048}, "2,048 adapter parameters, the number's are 300,000"),
        ({"parameters_adapter": 2048}, "where 12 layers of width 768 would have 294,912"),
        ({"parameters_model": 109_000_000}, "109,000,000 parameters, not about 124,055,040"),
        ({"weights": "f" * 64}, "only the name is roberta-base's: other weights"),
    ],
)
def test_a_folder_merely_named_roberta_base_is_not_the_papers_model(counts, reason):
    fields = {"parameters_adapter": 294_912, "parameters_model": 124_647_170, "weights": "a" * 64}
    models = {"roberta-base": BASE.model_copy(update={"sha256": "a" * 64})}
    paper = number(pm=0.2, parameters=0.3e6)
    true = only(verdicts(study(), tidy(**fields), [paper], models))
    assert true.verdict == "reproduced"
    row = only(verdicts(study(), tidy(**{**fields, **counts}), [paper], models))
    assert row.verdict == "not comparable"
    assert reason in row.reason


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


def test_a_number_of_unstated_epoch_says_which_of_ours_stands_beside_it():
    table = tidy()
    table["last_accuracy"] = table.best - 0.04
    row = only(verdicts(study(), table, [number(selection="unknown", pm=0.2)]))
    assert (row.verdict, row.epoch) == ("reproduced", "best")
    assert (
        "the number's epoch is not stated: best here, not reproduced beside our last" in row.reason
    )
    assert "epoch" not in only(verdicts(study(), tidy(), [number(selection="unknown")])).reason


def test_what_a_verdict_could_have_shown_stands_beside_it():
    row = only(verdicts(study(), tidy(), [number()]))
    assert 0.1 < row.chance < 0.9
    assert 0.005 < row.smallest < 0.02
    one = only(verdicts(study(), tidy((0.897,)), [number()]))
    assert math.isnan(one.chance) and math.isnan(one.smallest)


def test_holm_counts_the_comparable_rows():
    cells = pd.concat([tidy(), tidy(method="peft"), tidy(model="minilm")], ignore_index=True)
    table = verdicts(study(), cells, [number()])
    assert list(table.verdict == "not comparable") == [False, False, True]
    assert table.p_holm[0] == pytest.approx(min(1, 2 * table.p[0]))
    assert table.p_exceeds_holm[0] == pytest.approx(min(1, 2 * table.p_exceeds[0]))


HANGS = (0.872, 0.875, 0.87, 0.873, 0.872)
"""2.5 points below the number: beyond the margin if its ± is an sd, open if a standard error."""


def test_a_verdict_that_hangs_on_the_reading_says_so():
    row = only(verdicts(study(), tidy(HANGS), [number()]))
    assert "different, by how much is open if ± is standard error" in row.reason
    assert "not reproduced if ± is sd" in row.reason
    assert row.verdict == "not reproduced"
    assert one_of(["a"]) == "a"
    assert one_of(["a", "b", "c"]) == "a, b or c"


def test_the_reason_and_the_verdict_are_of_the_same_correction():
    """In a table of twenty such cells Holm takes the word back, and the reason must not keep it."""
    cells = pd.concat([tidy(HANGS, label=f"l{i}") for i in range(20)], ignore_index=True)
    table = verdicts(study(), cells, [number()])
    assert set(table.verdict) == {"different, by how much is open"}
    assert not table.reason.str.contains("not reproduced if ± is sd").any()


def test_what_is_not_published_is_assumed_and_said():
    ours = 0.002
    borrowed, assumed = published_mean(number(pm=None), "sd", ours)
    assert borrowed == Mean(0.897, ours, 5, borrowed=True, widening=median_widening(5))
    assert assumed == "no ± is published: our spread stands in for it, n=5"
    single, _ = published_mean(number(pm=None, n=1), "sd", ours)
    assert (single.sd, single.n, single.borrowed) == (ours, 1, True)
    unknown, _ = published_mean(number(n=None), "sd", ours)
    assert (unknown.sd, unknown.n, unknown.borrowed) == (pytest.approx(0.007), 1, False)
    assert "n is not published" in published_mean(number(n=None), "sd", ours)[1]
    assert "not published" not in published_mean(number(n=1), "sd", ours)[1]
    seeds = number(pm=None, seeds={0: (80.0, 90.0), 1: (80.0, 70.0)}, value=85.0)
    own, assumed = published_mean(seeds, "sd", ours)
    assert own.sd == pytest.approx(0.0707, abs=1e-4)
    assert (own.mean, own.n, assumed) == (pytest.approx(0.85), 2, "")


def test_a_published_median_has_a_larger_error_than_a_mean():
    median, mean = (
        only(verdicts(study(), tidy(HANGS), [number(statistic=statistic)]))
        for statistic in ("median", "mean")
    )
    assert median.difference == mean.difference
    assert median.high - median.low > mean.high - mean.low
    five = published_mean(number(), "sd", 0.0)[0]
    assert five.widening / five.n == pytest.approx(0.287, abs=5e-4)


def test_one_published_run_near_ours_is_not_proof():
    row = only(verdicts(study(), tidy((0.881, 0.883, 0.885)), [number(pm=None, n=1, value=88.7)]))
    assert row.verdict == "undecided"
    assert "no ± is published" in row.reason


def test_the_mismatched_split_must_be_whole_too():
    fields = {"published_rows_mismatched": 9832, "rows_mismatched": 100}
    table = tidy(**fields)
    table["best_accuracy_mismatched"] = table["last_accuracy_mismatched"] = table.best
    row = only(verdicts(study(), table, [number(metric="accuracy_mismatched")]))
    assert row.reason == "a subset: 100 mismatched rows, the number is for 9,832"


def test_local_copies_are_named():
    row = only(verdicts(study(), tidy(local_copies="mrpc"), [number(pm=0.2)]))
    assert row.reason.endswith("; local copy, not verified: mrpc")
    seeds = number(pm=None, pm_means=None, seeds={0: (89.0,), 1: (90.0,)})  # nothing is assumed
    row = only(verdicts(study(), tidy(local_copies="mrpc"), [seeds]))
    assert row.reason == "how the number was made is not stated; local copy, not verified: mrpc"


def test_all_matrices_match_by_name_or_one_by_one():
    cells = tidy(targets="all", matrices="q+k+v+o+up+down")
    for name in ("all", "q+k+v+o+up+down"):
        assert len(verdicts(study(), cells, [number(targets=name)])) == 1


def test_published_seeds_without_a_partner_are_an_error():
    with pytest.raises(UserError, match=r"table9 has no number of rank 8 for sst2, roberta-base"):
        published_verdicts(
            select(("poster2025.seeds",)), select(("hu2022.table9",)), margin=0.01, reading="sd"
        )


def test_a_published_number_in_doubt_is_set_beside_no_seeds():
    ours = [number(pm=None, pm_means=None, seeds={0: (89.0,), 1: (90.0,)})]
    theirs = [number(value=88.0), number(value=99.0, doubt="is a misprint")]
    table = published_verdicts(ours, theirs, margin=0.01, reading="sd")
    assert table.published_value.tolist() == [pytest.approx(0.88)]


def test_one_published_seed_is_a_row_and_undecided():
    ours = [number(pm=None, pm_means=None, seeds={0: (89.0,)}, value=89.0, n=1)]
    row = only(published_verdicts(ours, [number(pm=0.2)], margin=0.01, reading="sd"))
    assert (row.n, row.verdict) == (1, "undecided")
    assert "one seed of ours" in row.reason


def planned(**changes) -> Study:
    """Make a study of five seeds on a task of known size."""
    spec = changed(make_spec(**changes), task=make_task(rows={"train": 256, "validation": 128}))
    runs = [
        Run(id=f"words/tiny/lora/s{seed}", label="", spec=changed(spec, seed=seed))
        for seed in range(5)
    ]
    return study(runs=tuple(runs))


def of_planned(run: Run, **changes) -> Published:
    """Return a number of the planned runs' cell."""
    spec = run.spec
    names = {"task": spec.task.name, "model": spec.model.name, "metric": spec.task.headline}
    adapter = {"rank": spec.lora.rank, "targets": "+".join(spec.lora.targets)}
    return number(**names, **adapter, **changes)


def test_a_runs_protocol_is_set_beside_the_numbers():
    plan = planned()
    spec = plan.runs[0].spec
    cells = tidy(
        task=spec.task.name,
        model=spec.model.name,
        rank=float(spec.lora.rank),
        targets="+".join(spec.lora.targets),
        metric=spec.task.headline,
    ).assign(run=[run.id for run in plan.runs])
    stated = {name: getattr(spec, name) for name in ("epochs", "learning_rate", "global_batch")}
    stated |= {"head": spec.head, "warm_start": None, "alpha": spec.lora.alpha}
    for settings, word, part in (
        (stated, "same", ""),
        ({**stated, "epochs": 60}, "another", f"epochs 60 (here {spec.epochs})"),
        ({"head": spec.head}, "partly stated", "not stated of the number: epochs, learning rate"),
        ({}, "not stated", "how the number was made is not stated"),
    ):
        row = only(verdicts(plan, cells, [of_planned(plan.runs[0], pm=0.2, settings=settings)]))
        assert (row.verdict, row.protocol) == ("reproduced", word)
        assert part in row.reason


def test_power_is_known_before_a_study_starts():
    plan = planned()
    numbers = [of_planned(plan.runs[0], margin=margin) for margin in (1.0, 2.0)]
    numbers += [of_planned(plan.runs[0], pm=None), of_planned(plan.runs[0], split="test")]
    rows = power(plan, [n.model_copy(update={"table": f"t{i}"}) for i, n in enumerate(numbers)])
    assert rows.n.tolist() == [5, 5, 5]
    assert rows.chance[0] < rows.at_most[0] < 0.8 < rows.chance[1]
    assert math.isnan(rows.seeds[0]) and 2 <= rows.seeds[1] <= 5
    assert rows.loc[2, ["chance", "at_most", "seeds", "smallest", "sd"]].isna().all()
    given = power(plan, numbers[2:3], sd=0.002)
    assert given.chance[0] > 0.9


def test_a_verdict_on_a_cell_with_collapsed_runs_says_so():
    runs = tidy().assign(best_collapsed=[True, False, False, False, True])
    row = only(verdicts(study(), runs, [number()]))
    assert row.collapsed == 2
    shown = verdict_table(pd.DataFrame([row])).iloc[0]
    assert (
        shown.verdict
        == f"{row.verdict}{PROTOCOLS.get(row.protocol, '')}, with 2 of 5 runs collapsed"
    )
    assert shown["of which collapsed"] == "2"
    well = verdict_table(verdicts(study(), tidy(), [number()]))
    assert "of which collapsed" not in well and "collapsed" not in well.verdict[0]
