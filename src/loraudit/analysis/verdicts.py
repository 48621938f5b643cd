"""Verdicts: a study's cells beside published numbers.

A number of another model or split, or of more rows than the runs have, is never called reproduced:
its row says "not comparable" and why (`matching`). A number of another task, method, rank, target
set or metric has no row. A number that was made under another protocol keeps its word, and the row
says that it is about the number under another protocol (`accounts`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from loraudit.analysis.cells import SCORED_CELL, choices_of, chosen_spec, collapsed
from loraudit.analysis.matching import matching, obstacles, planned_runs
from loraudit.analysis.statistics import (
    MARGIN,
    NO_SPREAD,
    READINGS,
    Mean,
    exceeds,
    holm,
    mean_of,
    median_widening,
    spread_to_sd,
    summarise,
    tost,
    welch,
)
from loraudit.analysis.words import (
    MOST_SEEDS,
    chance_to_reproduce,
    decide,
    outside,
    seeds_to_reproduce,
    smallest_difference,
)
from loraudit.studies.accounts import Likeness, accounts, likeness, of_run
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import Architecture, Published
from loraudit.studies.study import Study

SCALE = {"percent": 100.0, "fraction": 1.0, "other": 1.0}

NOT_COMPARABLE = "not comparable"
"""The word of a row that no test was made for."""


class Match(NamedTuple):
    """Scores over seeds, as fractions, the number that they are set beside, and the margin.

    `others` are the same seeds' scores of the other epoch (last), where the number does not say
    which epoch it is of.
    """

    scores: Sequence[float]
    number: Published
    margin: float
    others: Sequence[float] | None = None


def published_mean(number: Published, reading: str, ours_sd: float) -> tuple[Mean, str]:
    """Return a published number's mean, as fractions, and what had to be assumed ("": nothing).

    With per-seed scores the mean and its sd are computed. Otherwise the printed value stands for
    the mean; a median of n estimates the same with a larger error, and gets it. Its ± is turned
    into an sd by what the source says it is or, where that is unknown, by `reading` (a key of
    `READINGS`). A ± without n counts as the sd of a single value. Without ± our own sd is borrowed,
    so that one published run is never taken for the exact truth.
    """
    scale = SCALE[number.unit]
    scores = number.scores()
    if len(scores) > 1:
        return mean_of([score / scale for score in scores]), ""
    mean, n = number.value / scale, number.n or 1
    widening = median_widening(n) if number.statistic == "median" else 1.0
    if number.pm is None:
        unpublished = "no ± is published" if number.n else "neither ± nor n is published"
        text = f"{unpublished}: our spread stands in for it, n={n}"
        return Mean(mean, ours_sd, n, borrowed=True, widening=widening), text
    if n < 2:
        single = "n=1" if number.n else "n is not published"
        return Mean(mean, number.pm / scale, 1), f"{single}: ± taken as one run's sd"
    meaning = number.pm_means if number.pm_means not in (None, "unknown") else reading
    sd = spread_to_sd(number.pm / scale, n, meaning)
    return Mean(mean, sd, n, widening=widening), ""


def margin_of(number: Published, margin: float | None) -> float:
    """Return the largest difference that counts as equal, as a fraction.

    It is the study's own `margin`, or else the number's, or else one point.
    """
    if margin is None and number.margin is not None:
        return number.margin / SCALE[number.unit]
    return margin or MARGIN


def judge(matches: Sequence[Match], reading: str) -> list[dict]:
    """Set scores beside published numbers, as one table of tests.

    Returns:
        Per match: difference (ours minus published) with its 95 % interval low and high and its
        90 % interval low90 and high90; p of Welch's test and p_exceeds of the minimum-effect test,
        each also adjusted over the table (p_holm, p_exceeds_holm); p_equivalent (TOST, not
        adjusted); the margin; and the verdict, by p_holm, p_equivalent, p_exceeds_holm and the
        95 % interval.
    """
    rows: list[dict] = []
    for scores, number, margin, _ in matches:
        ours = mean_of(scores)
        theirs, _ = published_mean(number, reading, ours.sd)
        narrow = welch(ours, theirs, confidence=0.9)
        row: dict = {**welch(ours, theirs), "low90": narrow["low"], "high90": narrow["high"]}
        row |= {"margin": margin, "p_equivalent": tost(ours, theirs, margin)}
        rows.append({**row, "p_exceeds": exceeds(ours, theirs, margin)})
    for name, adjusted in (("p", "p_holm"), ("p_exceeds", "p_exceeds_holm")):
        for row, p in zip(rows, holm([row[name] for row in rows]), strict=True):
            row[adjusted] = p
    for row in rows:
        beyond = bool(outside(row["low"], row["high"], row["margin"]))
        row["verdict"] = decide(row["p_holm"], row["p_equivalent"], row["p_exceeds_holm"], beyond)
    return rows


def judge_with_reasons(matches: Sequence[Match], reading: str) -> list[dict]:
    """Judge matches; `reason` says what was assumed and what other readings would say.

    `chance` is that of "reproduced" with these spreads if it were exactly true, `smallest` the
    difference that would have been found with a chance of 80 %.
    """
    tables = {name: judge(matches, name) for name in READINGS}
    by_last = judge([m._replace(scores=m.others or m.scores) for m in matches], reading)
    rows = tables[reading]
    for place, (match, row) in enumerate(zip(matches, rows, strict=True)):
        number, ours = match.number, mean_of(match.scores)
        theirs, assumed = published_mean(number, reading, ours.sd)
        row["chance"] = chance_to_reproduce(match.margin, ours, theirs)
        row["smallest"] = smallest_difference(ours, theirs)
        few = "one seed of ours" if ours.n == 1 else ""
        reasons = [assumed, "all our seeds tie" if ours.sd < NO_SPREAD else few]
        if number.pm is not None and number.pm_means == "unknown" and (number.n or 1) > 1:
            reasons.append(
                _other_readings({name: rows[place]["verdict"] for name, rows in tables.items()})
            )
        if match.others is not None:
            last = by_last[place]["verdict"]
            reasons.append(f"the number's epoch is not stated: best here, {last} beside our last")
        reasons.append(number.note and f"remark on the number: {number.note}")
        row["reason"] = "; ".join(filter(None, reasons))
    return rows


def _other_readings(words: dict[str, str]) -> str:
    """Say under which readings of ± a verdict has which word, given {reading: word}."""
    readings: dict[str, list[str]] = {}
    for name, word in words.items():
        readings.setdefault(word, []).append(name)
    if len(readings) == 1:
        return "same under every reading of ±"
    return ", ".join(f"{word} if ± is {one_of(names)}" for word, names in readings.items())


def one_of(names: Sequence[str]) -> str:
    """Join names: "a", "a or b", "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def verdicts(
    study: Study,
    tidy: pd.DataFrame,
    numbers: Iterable[Published],
    models: Mapping[str, Architecture] | None = None,
) -> pd.DataFrame:
    """Compare every cell of a study with every published number that matches it.

    Args:
        study: the study; its specs tell the protocol of each run.
        tidy: its tidy table, one row per run.
        numbers: the published numbers.
        models: what the models of the numbers are.

    Returns:
        A row per cell and number: SCORED_CELL, the number and our scores, `judge_with_reasons`'
        columns (NaN where the verdict is "not comparable"), and `protocol`, how the cell's protocol
        compares with the number's (`accounts.Likeness`). `reason` also says if the model was
        trained on the task's data before, which changes no word.
    """
    numbers = list(numbers)
    specs = {run.id: run.spec for run in study.runs}
    known_before = {(c.task, c.model): c.sentence() for c in study.contaminations}
    rows, matches = [], []
    for key, runs in tidy.groupby(SCORED_CELL, dropna=False, sort=False):
        cell = dict(zip(SCORED_CELL, key, strict=True))
        spec = next((specs[name] for name in runs.get("run", ()) if name in specs), None)
        known = of_run(chosen_spec(spec, runs)) if spec else {}
        for number in matching(cell, runs, numbers):
            row, match = _facts(study, cell, runs, number)
            against = obstacles(cell, runs, number, models, known)
            against += _undefined_scores(runs, row["epoch"], number)
            contaminated = known_before.get((cell["task"], cell["model"]), "")
            row["reason"] = "; ".join(filter(None, [*against, contaminated]))
            row["verdict"] = NOT_COMPARABLE if against else ""
            if not against:
                alike = likeness([known] if known else [], accounts(number))
                copies = row["local_copies"] and f"local copy, not verified: {row['local_copies']}"
                matches.append((match, (alike, copies, contaminated)))
            rows.append(row)
    judged = judge_with_reasons([match for match, _ in matches], study.reading)
    said = (told(row, *more) for row, (_, more) in zip(judged, matches, strict=True))
    return pd.DataFrame([row if row["verdict"] else {**row, **next(said)} for row in rows])


def _undefined_scores(runs: pd.DataFrame, epoch: str, number: Published) -> list[str]:
    """Say which runs have no score to set beside a number: the others' mean would be too good."""
    undefined = runs[runs[f"{epoch}_{number.metric}"].isna()]
    names = ", ".join(f"s{seed}" for seed in undefined.seed)
    return [f"an undefined score: {number.metric} of {names}"] if names else []


def told(row: dict, alike: Likeness, *more: str) -> dict:
    """Return a judged row with the word for its protocol, and all reasons as one text."""
    reasons = [alike.sentence, row["reason"], *more]
    return {**row, "protocol": alike.word, "reason": "; ".join(filter(None, reasons))}


def _facts(
    study: Study, cell: dict, runs: pd.DataFrame, number: Published
) -> tuple[dict[str, Any], Match]:
    """Return what is known of a cell and a number before any test, and the two to be tested.

    The scores are those of the last epoch if the number is of the last epoch or no best was made,
    else of the best.
    """
    made = [choice for choice in ("best", "last") if choice in choices_of(runs)]
    scores = {epoch: runs[f"{epoch}_{number.metric}"].tolist() for epoch in made}
    epoch = "last" if number.selection == "last epoch" else made[0]
    ours = summarise(scores[epoch])
    theirs, assumed = published_mean(number, study.reading, ours["sd"])
    row = {
        **cell,
        "metric": number.metric,
        "epoch": epoch,
        "published": number.key,
        "where": number.where,
        "published_value": theirs.mean,
        "published_sd": math.nan if assumed else theirs.sd,
        "published_n": number.n,
        "published_statistic": number.statistic,
        **{key: ours[key] for key in ("n", "mean", "sd", "median")},
        "collapsed": int(collapsed(runs, epoch).sum()),
        "margin": margin_of(number, study.margin),
        **dict.fromkeys(TESTED, math.nan),
        "protocol": "",
        "local_copies": runs.local_copies.iloc[0] if "local_copies" in runs else "",
    }
    unknown = number.selection == "unknown"
    others = scores["last"] if unknown and scores["last"] != scores[epoch] else None
    return row, Match(scores[epoch], number, row["margin"], others)


TESTED = (
    *("difference", "low", "high", "low90", "high90", "p", "p_holm", "p_equivalent"),
    *("p_exceeds", "p_exceeds_holm", "chance", "smallest"),
)
"""Columns of a verdict that come from tests: NaN where nothing was tested."""


def power(
    study: Study,
    numbers: Iterable[Published],
    models: Mapping[str, Architecture] | None = None,
    sd: float | None = None,
) -> pd.DataFrame:
    """Say before a study starts what its seeds can show beside each published number.

    Args:
        study, numbers, models: as in `verdicts`.
        sd: the spread of our scores over seeds, as a fraction; None takes each number's own.

    Returns:
        A row per cell and number that will be comparable (of twins, the first): our n, the
        number's, the spread taken, the margin; `chance` and `smallest` as in `judge_with_reasons`;
        `at_most`, the chance with a thousand seeds; and `seeds`, our seeds that give a chance of
        80 % (NaN: none do). All but n are NaN where no spread is known.
    """
    rows, numbers = [], list(numbers)
    specs = {run.id: run.spec for run in study.runs}
    for key, runs in planned_runs(study).groupby(SCORED_CELL, dropna=False, sort=False):
        cell = dict(zip(SCORED_CELL, key, strict=True))
        known = of_run(specs[runs.run.iloc[0]])
        for number in matching(cell, runs, numbers):
            if not obstacles(cell, runs, number, models, known):
                rows.append(_planned(cell, len(runs), number, study, sd))
    table = pd.DataFrame(rows)
    return table.drop_duplicates(TWIN, ignore_index=True) if rows else table


TWIN = ["task", "model", "as", "rank", "targets", "label", "metric", "published"]
"""Columns in which the row of a twin equals the other's."""


def _planned(cell: dict, n: int, number: Published, study: Study, sd: float | None) -> dict:
    theirs, assumed = published_mean(number, study.reading, sd or math.nan)
    spread = sd or (math.nan if assumed else theirs.sd)
    margin = margin_of(number, study.margin)
    row = {
        **cell,
        "as": METHODS[cell["method"]].published_as or cell["method"],
        "metric": number.metric,
        "headline": cell["metric"],
        "published": number.key,
        "n": n,
        "published_n": theirs.n,
        "sd": spread,
        "margin": margin,
        **dict.fromkeys(("chance", "at_most", "smallest", "seeds"), math.nan),
    }
    if math.isnan(spread):
        return row
    ours, many = Mean(0.0, spread, n), Mean(0.0, spread, MOST_SEEDS)
    seeds = seeds_to_reproduce(margin, spread, theirs)
    return row | {
        "chance": chance_to_reproduce(margin, ours, theirs),
        "at_most": chance_to_reproduce(margin, many, theirs),
        "smallest": smallest_difference(ours, theirs),
        "seeds": math.nan if seeds is None else seeds,
    }
