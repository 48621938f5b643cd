"""A study's `tune`: which runs try values, and what the runs that wait for them are."""

import math

import pytest
import yaml

from loraudit.base.errors import UserError
from loraudit.studies.expand import load_study
from loraudit.studies.spec import digest

STUDY = {
    "question": "Which rate?",
    "defaults": {"model": "minilm", "task": "snippets", "selection_rows": 200, "epochs": 1},
    "grid": [
        {"method": ["lora", "peft"], "rank": [1, 8], "targets": "q+v", "seed": [0, 1]},
        {"method": "full", "seed": [0, 1]},
        {"method": "head", "learning_rate": 0.01, "seed": [0, 1]},
    ],
    "tune": {
        "axes": {"learning_rate": [1e-4, 1e-3, 1e-2], "alpha": [16, "rank"]},
        "per_method": {
            "full": {"learning_rate": [1e-5, 1e-4]},
            "head": {"learning_rate": [1e-3, 1e-2]},
        },
        "seeds": [100, 101],
    },
}


def load(tmp_path, **changes):
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return load_study(path)


def tune(**changes) -> dict:
    return {"tune": {**STUDY["tune"], **changes}}


def test_every_cell_waits_for_runs_of_its_own_and_twins_share_them(tmp_path):
    study = load(tmp_path)
    runs = {run.id: run.spec for run in study.runs}
    trials = {run.id: run.spec for run in study.tuning}
    # LoRA: 2 ranks x 3 rates x 2 alphas x 2 seeds; full: 2 rates x 2 seeds; the head's is given
    assert len(trials) == 2 * 3 * 2 * 2 + 2 * 2
    assert study.all_runs == study.tuning + study.runs
    for seed in (0, 1):
        ours, peft = (runs[f"snippets/minilm/{m}-r8-q+v/s{seed}"] for m in ("lora", "peft"))
        assert ours.tuned == peft.tuned
        assert ours.tuned.fields == ("learning_rate", "alpha")
    assert runs["snippets/minilm/head/s0"].tuned is None
    assert runs["snippets/minilm/full/s0"].tuned.fields == ("learning_rate",)
    for run in study.runs:
        for candidate in run.spec.tuned.candidates if run.spec.tuned else ():
            for trial, sha256 in candidate.runs.items():
                spec = trials[trial]
                assert digest(spec) == sha256
                assert spec.validate_epochs == "none" and spec.seed in (100, 101)
                assert {field: spec.flat()[field] for field in candidate.values} == candidate.values
                same = run.spec.with_values(candidate.values).flat()
                different = {k for k, v in spec.flat().items() if v != same[k]}
                assert different <= {"method", "seed", "validate_epochs", "tuned"}


def test_a_planned_run_holds_the_first_values_and_any_chosen_ones_lead_back_to_it(tmp_path):
    spec = next(run.spec for run in load(tmp_path).runs if run.spec.tuned)
    first = spec.tuned.candidates[0].values
    assert {field: spec.flat()[field] for field in first} == first
    for candidate in spec.tuned.candidates:
        chosen = spec.with_values(candidate.values)
        assert chosen.learning_rate == candidate.values["learning_rate"]
        assert chosen.lora.alpha == candidate.values["alpha"]
        assert chosen.planned() == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (tune(seeds=[1, 100]), r"tune: seeds: 1 also reported"),
        (tune(seeds=[]), "tune.seeds"),
        (tune(seeds=[100, 100]), "a seed is given twice"),
        (tune(axes={"max_length": [64, 128]}), "'max_length' is not known"),
        (tune(axes={"alora": [{"rounds": 2}]}), "'alora' is not known"),
        (tune(axes={"alpha": [8, {"times_rank": 1}]}), "leave one combination for method 'lora'"),
        (tune(axes={"learning_rate": []}), "axes: learning_rate: an empty list tries nothing"),
        (tune(axes={"learning_rate": [0.1, 0.1]}), "a value is given twice"),
        (tune(axes={"learning_rat": [0.1]}), "'learning_rat' is not known; did you mean 'learn"),
        (tune(axes={"seed": [1]}), "'seed' is not known"),
        (tune(per_method={"ful": {}}), "'ful' is not known; did you mean 'full'"),
        (tune(per_method={}), "method 'full' has no field 'alpha'; give it axes of its own"),
        ({"defaults": {**STUDY["defaults"], "selection_rows": None}}, "selection_rows; set them"),
    ],
)
def test_what_cant_be_tuned_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)


def test_values_that_come_out_equal_are_tried_once(tmp_path):
    axes = {"alpha": [16, "rank", {"times_rank": 2}]}
    grid = [{"method": "lora", "rank": 8, "seed": [0, 1]}]
    study = load(tmp_path, grid=grid, **tune(axes=axes))
    tuned = study.runs[0].spec.tuned
    assert [candidate.values["alpha"] for candidate in tuned.candidates] == [16, 8]
    assert len(study.tuning) == 2 * 2


def test_reported_runs_are_scored_on_validation_rows(tmp_path):
    defaults = {**STUDY["defaults"], "validate_epochs": "none"}
    with pytest.raises(UserError, match="'none' is for the runs that `tune` makes"):
        load(tmp_path, defaults=defaults)


def test_aloras_ranks_are_not_scored_on_rows_that_are_reported(tmp_path):
    block = {"method": "alora", "rank": 4, "targets": "q+v", "epochs": 2, "seed": [0, 1]}
    per_method = {"alora": {"learning_rate": [1e-4, 1e-3]}}
    with pytest.raises(UserError, match=r"alora.split 'validation' with selection_rows"):
        load(tmp_path, grid=[block], **tune(per_method=per_method))
    selected = {**block, "alora": {"split": "selection"}}
    study = load(tmp_path, grid=[selected], **tune(per_method=per_method))
    assert {run.spec.settings.split for run in study.all_runs} == {"selection"}


def test_an_adapter_with_tuned_alpha_is_no_start(tmp_path):
    cold = {"method": "lora", "rank": 8, "seed": [0, 1]}
    warm = {**cold, "task": "tweets", "warm_start": {"task": "snippets", "tensors": "adapter"}}
    warm |= {"learning_rate": 1e-3, "alpha": 16}
    with pytest.raises(UserError, match="has its alpha tuned"):
        load(tmp_path, grid=[cold, warm], **tune(axes={"alpha": [16, 8]}))
    load(tmp_path, grid=[cold, warm], **tune(axes={"learning_rate": [1e-3, 1e-4]}))


@pytest.mark.parametrize(
    ("rule", "alpha"),
    [("rank", 8), ({"times_rank": 2}, 16), ({"times_sqrt_rank": 2}, 2 * math.sqrt(8)), (5, 5)],
)
def test_alpha_may_follow_the_rank(tmp_path, rule, alpha):
    grid = [{"method": "lora", "rank": 8, "alpha": rule}]
    study = load(tmp_path, grid=grid, tune=None)
    assert study.runs[0].spec.lora.alpha == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"times_rnk": 2}, "alpha: 'times_rnk' is not known; did you mean 'times_rank'"),
        ({"times_rank": -1}, "alpha: times_rank = -1: expected a number above 0"),
        ({}, "expected one of times_rank, times_sqrt_rank"),
    ],
)
def test_a_wrong_rule_for_alpha_is_refused(tmp_path, rule, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, grid=[{"method": "lora", "alpha": rule}], tune=None)


NO_RANK = "expected a number above 0"


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        *((rank, NO_RANK) for rank in ("2  4", -4, 0, 10**400)),
        (True, "no field is true or false"),
    ],
)
def test_a_rule_for_alpha_needs_a_rank(tmp_path, rank, said):
    grid = [{"method": "lora", "rank": rank, "alpha": {"times_sqrt_rank": 6}}]
    with pytest.raises(UserError, match=rf"rank = .*: {said}"):
        load(tmp_path, grid=grid, tune=None)
