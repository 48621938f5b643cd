"""What is chosen from the records of the runs that try values."""

import statistics

import pytest

from loraudit.base.errors import UserError
from loraudit.studies.record import RunRecord, write_record
from loraudit.studies.spec import Candidate, Tuned, digest
from loraudit.training.tuning import choose
from tiny import TRAIN, changed, make_spec
from tiny_text import text_spec

RATES = [1e-4, 1e-3, 1e-2]
BASE = make_spec(selection_rows=10, validate_epochs="none")


def tuned(scores: dict[float, list[float | None]], root, base=BASE):
    """Write the records of runs with these scores, and return a spec that waits for them."""
    candidates = []
    for rate, values in scores.items():
        runs = {}
        for seed, score in enumerate(values, 100):
            spec = changed(base, learning_rate=rate, seed=seed)
            metric = f"{base.task.headline}_selection"
            chosen = {"epoch": 1, "scores": {metric: score}}
            train = TRAIN.model_dump() | {"epochs": {"selected": chosen, "last": chosen}}
            train |= {"epochs": {}, "diverged": 3} if score == "diverged" else {}
            record = RunRecord(spec=spec, spec_sha256=digest(spec), train=train, environment={})
            (root / f"rate{rate}/s{seed}").mkdir(parents=True)
            write_record(root / f"rate{rate}/s{seed}", record)
            runs[f"rate{rate}/s{seed}"] = digest(spec)
        candidates.append(Candidate(values={"learning_rate": rate}, runs=runs))
    return changed(base, validate_epochs="all", tuned=Tuned(candidates=tuple(candidates)))


@pytest.mark.parametrize(
    ("scores", "chosen", "at_edge"),
    [
        ([[0.6, 0.6], [0.8, 0.7], [0.5, 0.9]], 1e-3, False),
        ([[0.6, 0.6], [0.8, 0.7], [0.7, 0.9]], 1e-2, True),
        ([[0.7, 0.7], [0.7, 0.7], [0.6, 0.6]], 1e-4, True),  # of equal ones the first
        ([[None, 0.9], [0.1, 0.1], [None, None]], 1e-3, False),  # undefined is worse than any
    ],
)
def test_the_highest_mean_over_seeds_is_chosen(tmp_path, scores, chosen, at_edge):
    found = choose(tuned(dict(zip(RATES, scores, strict=True)), tmp_path), tmp_path)
    assert found.chosen == {"learning_rate": chosen}
    assert found.at_edge == (("learning_rate",) if at_edge else ())
    assert [trial.n for trial in found.trials] == [2, 2, 2]
    if None not in scores[0]:
        assert found.trials[0].mean == pytest.approx(statistics.mean(scores[0]))
        assert found.trials[0].sd == pytest.approx(statistics.stdev(scores[0]))
    assert len(found.seals) == 6 and all(found.seals.values())


def test_of_language_models_the_lowest_mean_is_chosen(tmp_path):
    base = text_spec(selection_rows=10, validate_epochs="none")
    scores = {1e-4: [3.0, 3.2], 1e-3: [2.0, 2.5], 1e-2: [0.5, "diverged"]}
    found = choose(tuned(scores, tmp_path, base), tmp_path)
    assert found.chosen == {"learning_rate": 1e-3}
    assert found.trials[2].mean > 1e20


def test_a_missing_run_and_another_run_are_refused(tmp_path):
    spec = tuned({1e-3: [0.5], 1e-2: [0.6]}, tmp_path)
    one, two = tmp_path / "rate0.001/s100/record.json", tmp_path / "rate0.01/s100/record.json"
    text = one.read_text()
    one.write_text(two.read_text())
    with pytest.raises(UserError, match="is not the run that was planned"):
        choose(spec, tmp_path)
    one.unlink()
    with pytest.raises(UserError, match=r"rate0.001/s100 has no record.json: this run tries"):
        choose(spec, tmp_path)
    one.write_text(text)
    assert choose(spec, tmp_path).chosen == {"learning_rate": 1e-2}


def test_a_run_that_diverged_counts_as_the_worst(tmp_path):
    spec = tuned({1e-3: [0.2, 0.3], 1e-2: [0.99, "diverged"]}, tmp_path)
    found = choose(spec, tmp_path)
    assert found.chosen == {"learning_rate": 1e-3}
    assert [trial.diverged for trial in found.trials] == [0, 1]
    assert found.trials[1].mean == pytest.approx((0.99 - 1) / 2)


def test_where_all_diverge_there_is_nothing_to_choose(tmp_path):
    spec = tuned({1e-3: ["diverged"] * 2, 1e-2: ["diverged"] * 2}, tmp_path)
    with pytest.raises(UserError, match=r"nothing to choose; try other values of learning_rate"):
        choose(spec, tmp_path)
