"""Choosing the values of a run's tuned fields from the records of the runs that tried them."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from loraudit.base.errors import UserError
from loraudit.studies.record import Trial, Tuning, read_record, selection_score
from loraudit.studies.scores import goodness, worst_score
from loraudit.studies.spec import Candidate, RunSpec, Tuned


def choose(spec: RunSpec, runs: Path) -> Tuning:
    """Choose the candidate with the best mean score on the selection rows.

    That is the highest, or of a language model the lowest. A candidate's score is the mean over its
    runs, each at the epoch that its selection rows choose; of equal candidates the first is taken.
    An undefined score, and that of a run that diverged, counts as the worst there is.

    Args:
        spec: a run with tuned fields, as planned.
        runs: the folder below which the candidates' runs are.

    Raises:
        UserError: a run is missing, or is not the one that the spec names; or all diverged.
    """
    tuned = _tuned(spec)
    seals: dict[str, str] = {}
    trials = [_trial(candidate, runs, seals) for candidate in tuned.candidates]
    if all(trial.diverged == trial.n for trial in trials):
        raise UserError(
            "tuning: the loss of every run that tries a value stopped being finite, so that there "
            f"is nothing to choose; try other values of {', '.join(tuned.fields)}"
        )
    best = max(trials, key=lambda trial: goodness(spec.task.headline, trial.mean))
    at_edge = tuple(field for field in best.values if _at_edge(best.values[field], field, tuned))
    return Tuning(chosen=best.values, at_edge=at_edge, trials=tuple(trials), seals=seals)


def _tuned(spec: RunSpec) -> Tuned:
    if spec.tuned is None:
        raise TypeError("the run has no tuned fields")
    return spec.tuned


def _trial(candidate: Candidate, runs: Path, seals: dict[str, str]) -> Trial:
    """Read a candidate's records; their seals are added to `seals`."""
    scores, collapsed, diverged = [], 0, 0
    for run, digest in candidate.runs.items():
        if not (runs / run / "record.json").is_file():
            raise UserError(
                f"tuning: {runs / run} has no record.json: this run tries a value and must end "
                "before one can be chosen; its log says why it did not"
            )
        record = read_record(runs / run / "record.json")
        if record.spec_sha256 != digest:
            raise UserError(f"tuning: {runs / run} is not the run that was planned; delete it")
        seals[run] = record.record_sha256 or ""
        score = selection_score(record)
        scores.append(worst_score(record.spec.task.headline) if score is None else score)
        collapsed += "selected" in record.train.collapsed
        diverged += record.train.diverged is not None
    spread = stdev(scores) if len(scores) > 1 else None
    counts = {"n": len(scores), "collapsed": collapsed, "diverged": diverged}
    return Trial(values=candidate.values, mean=mean(scores), sd=spread, **counts)


def _at_edge(value: Any, field: str, tuned: Tuned) -> bool:
    """Tell whether a value is the smallest or largest number that was tried for its field."""
    tried = [candidate.values[field] for candidate in tuned.candidates]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in tried):
        return False
    return len(set(tried)) > 1 and value in (min(tried), max(tried))
