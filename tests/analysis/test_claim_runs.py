"""Which claims a planned study can test, and the runs that the others would need."""

from pathlib import Path

import pytest

from loraudit.analysis.cells import SCORED_CELL
from loraudit.analysis.claim_runs import (
    can_be_tested,
    lacking,
    needed_runs,
    planned_evidence,
    too_coarse,
)
from loraudit.analysis.claims import missing
from loraudit.analysis.matching import matching, obstacles, planned_runs
from loraudit.studies.claims import select_claims
from loraudit.studies.expand import load_study
from loraudit.studies.reference import load_models, select
from loraudit.tools.plan import Estimate, _claim_section, _coarse_claims, _priced
from tiny import changed

STUDIES = sorted(Path("config/studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_can_test_the_claims_that_they_list(path):
    assert lacking(load_study(path)) == []


@pytest.fixture
def grid():
    return load_study("config/studies/quickstart.yaml")


def asking(study, *claims: str):
    return study.model_copy(update={"claims": claims})


def of_last_epochs(study):
    specs = [changed(run.spec, validate_epochs="last") for run in study.runs]
    runs = zip(study.runs, specs, strict=True)
    runs = tuple(run.model_copy(update={"spec": spec}) for run, spec in runs)
    return study.model_copy(update={"runs": runs})


def test_the_runs_that_a_claim_lacks_are_named_and_make_it_testable(grid):
    (found,) = lacking(asking(grid, "hu2022.qv-beats-q"))
    assert found.why == "no run of right (method lora, targets q, rank 8)"
    assert [run.id for run in found.runs] == [
        f"snippets/minilm/lora-r8-q/s{seed}" for seed in (0, 1, 2)
    ]
    more = grid.model_copy(update={"runs": (*grid.runs, *found.runs)})
    (claim,) = select_claims(["hu2022.qv-beats-q"])
    assert can_be_tested(claim, planned_evidence(more))


def test_a_claim_about_the_best_epoch_needs_runs_that_make_one(grid):
    reason = "no best epoch: the runs choose none (validate_epochs and selection_rows)"
    claim = select_claims(["hu2022.rank-one-is-enough"])[0].model_copy(update={"epoch": "best"})
    assert can_be_tested(claim, planned_evidence(grid))
    planned = planned_evidence(of_last_epochs(grid))
    assert not can_be_tested(claim, planned)
    assert missing(claim, planned) == reason
    beside = asking(load_study("config/studies/poster.yaml"), "hu2022.table2-is-reached")
    assert lacking(beside) == []
    assert [found.why for found in lacking(of_last_epochs(beside))] == [reason]


def test_a_number_of_a_best_epoch_is_not_comparable_with_last_epochs_alone():
    study = of_last_epochs(load_study("config/studies/poster.yaml"))
    for key, runs in planned_runs(study).groupby(SCORED_CELL, dropna=False, sort=False):
        cell = dict(zip(SCORED_CELL, key, strict=True))
        for number in matching(cell, runs, select(study.compare)):
            said = "; ".join(obstacles(cell, runs, number, load_models()))
            another = "another epoch: not every epoch was scored on the validation rows" in said
            assert another == (number.selection == "best epoch")


def test_an_axis_needs_all_the_values_that_the_claim_names(grid):
    (found,) = lacking(asking(grid, "hu2022.rank-flat"))
    cells = {run.id.split("/")[2] for run in found.runs}
    assert cells == {"lora-r64-q+v"}


def test_values_that_no_study_chooses_are_no_ground_for_a_claim(grid):
    (found,) = lacking(asking(grid, "zhang2026.alpha-grows-as-the-root"))
    assert "set by hand" in found.why
    tuned = load_study("config/studies/tuning.yaml")
    assert lacking(asking(tuned, "schulman2025.rate-ratio-ten")) == []


@pytest.mark.parametrize("factor, coarse", [(2.0, True), (1.4, True), (1.25, False)])
def test_a_grid_that_is_too_coarse_to_support_a_claim_is_told(tmp_path, factor, coarse):
    rates = [1e-4 * factor**step for step in range(3)]
    path = tmp_path / "coarse.yaml"
    path.write_text(
        f"""question: Which rate?
claims: [schulman2025.rate-ratio-ten, schulman2025.rate-independent-of-rank]
defaults: {{task: snippets, model: minilm, selection_rows: 100, train_rows: 300, alpha: 16}}
tune: {{axes: {{learning_rate: {rates}}}, seeds: [100]}}
grid:
  - {{method: lora, rank: [1, 8], targets: q+v}}
  - {{method: full}}
"""
    )
    found = too_coarse(load_study(path))
    limit = pytest.approx(4 ** (1 / 6))  # 1.41 would leave the exact centre alone
    both = ("schulman2025.rate-ratio-ten", "schulman2025.rate-independent-of-rank")
    assert found == (dict.fromkeys(both, limit) if coarse else {})
    said = _coarse_claims(found)
    assert len(said) == len(found) and all("within a factor of 1.25" in line for line in said)


def test_without_a_chain_of_tasks_there_is_no_ground_for_a_claim_on_forgetting(grid):
    (found,) = lacking(asking(grid, "pandey2026.lora-forgets-little"))
    assert found.runs == () and found.why.endswith("no run starts from another one (warm_start)")


@pytest.mark.parametrize("asked", [None, 100])
def test_a_claim_on_language_models_needs_a_study_that_reads_its_runs_as_such(grid, asked):
    facts = {"quantity": "language_loss_rise", "unit": "nats"}
    (known,) = select_claims(["pandey2026.lora-forgets-little"])
    claim = known.model_copy(update=facts)
    study = asking(grid, known.id).model_copy(update={"language_loss": asked})
    planned = planned_evidence(study)
    assert can_be_tested(claim, planned) == (asked is not None)
    if asked is None:
        assert missing(claim, planned).endswith("the study does not ask for it (language_loss)")
        assert needed_runs(claim, study, planned) == []


def test_a_chain_of_tasks_can_test_what_is_forgotten():
    assert lacking(load_study("config/studies/sequential.yaml")) == []


@pytest.mark.parametrize("seconds, shown", [(60.0, "3 min"), (None, "unknown")])
def test_a_plan_prices_the_runs_that_a_claim_lacks(grid, seconds, shown):
    wanting = lacking(asking(grid, "hu2022.qv-beats-q"))
    answer = _priced(wanting, lambda spec: Estimate(seconds, None, None, None, ""))
    (row,) = answer["claims"]
    assert row["seconds"] == (None if seconds is None else 3 * seconds)
    assert (row["cells"], len(row["runs"])) == (["snippets/minilm/lora-r8-q"], 3)
    ((_, _, (line,)),) = _claim_section(answer["claims"])
    assert line[0] == "hu2022.qv-beats-q" and shown in str(line[-1])
    assert _claim_section(_priced([], lambda spec: None)["claims"]) == []
