"""Verdicts: a study's cells beside published numbers, and published seeds beside each other.

A number of another model or split, or of more rows than the runs have, is never called reproduced:
its row says "not comparable" and why. A number of another task, method, rank, target set or metric
has no row.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import pandas as pd

from loraudit.analysis.cells import SCORED_CELL
from loraudit.analysis.statistics import (
    READINGS,
    SIGNIFICANCE,
    Mean,
    holm,
    mean_of,
    spread_to_sd,
    summarise,
    tost,
    welch,
)
from loraudit.base.errors import UserError
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import Published
from loraudit.studies.study import Study

Verdict = Literal["reproduced", "not reproduced", "undecided", "not comparable"]

SCALE = {"percent": 100.0, "fraction": 1.0, "other": 1.0}

Match = tuple[Sequence[float], Published]
"""Scores over seeds, as fractions, and the published number that they are set beside."""


def decide(p_different: float, p_equivalent: float, significance: float = SIGNIFICANCE) -> Verdict:
    """Turn two tests into a word.

    - "reproduced": equivalent within the margin (even where a small difference is significant).
    - "not reproduced": different, and not shown to be equivalent.
    - "undecided": neither, because the seeds are too few or too spread. With one seed only, or
      seeds that all tie, p can't be computed (NaN).
    """
    if p_equivalent < significance:
        return "reproduced"
    return "not reproduced" if p_different < significance else "undecided"


def published_mean(number: Published, reading: str, ours_sd: float) -> tuple[Mean, str]:
    """Return a published number's mean, as fractions, and what had to be assumed ("": nothing).

    With per-seed scores the mean and its sd are computed. Otherwise the printed value is taken for
    the mean, even if it is a median, and its ± is turned into an sd by what the source says it is
    or, where that is unknown, by `reading` (a key of `READINGS`). A ± without n counts as the sd of
    a single value; without ± our own sd stands in, so that one published run is never taken for the
    exact truth.
    """
    scale = SCALE[number.unit]
    scores = number.scores()
    if len(scores) > 1:
        return mean_of([score / scale for score in scores]), ""
    mean, n = number.value / scale, number.n or 1
    if number.pm is None:
        unpublished = "spread" if number.n else "spread and n"
        return Mean(mean, ours_sd, n), f"{unpublished} unpublished: our spread, n={n}"
    if n < 2:
        single = "n=1" if number.n else "n unpublished"
        return Mean(mean, number.pm / scale, 1), f"{single}: ± taken as one run's sd"
    meaning = number.pm_means if number.pm_means not in (None, "unknown") else reading
    return Mean(mean, spread_to_sd(number.pm / scale, n, meaning), n), ""


def judge(matches: Sequence[Match], margin: float, reading: str) -> list[dict]:
    """Set scores beside published numbers, as one table of tests.

    Returns:
        Per match: difference (ours minus published) with its 95 % interval low and high, p of
        Welch's test, p_holm (that p adjusted over the table), p_equivalent (TOST within `margin`),
        and the verdict, by p_holm and p_equivalent.
    """
    rows = []
    for scores, number in matches:
        ours = mean_of(scores)
        theirs, _ = published_mean(number, reading, ours.sd)
        rows.append({**welch(ours, theirs), "p_equivalent": tost(ours, theirs, margin)})
    adjusted = holm([row["p"] for row in rows])
    return [
        {**row, "p_holm": p, "verdict": decide(p, row["p_equivalent"])}
        for row, p in zip(rows, adjusted, strict=True)
    ]


def judge_with_reasons(matches: Sequence[Match], margin: float, reading: str) -> list[dict]:
    """Judge matches; `reason` says what was assumed and what other readings of ± would say."""
    tables = {name: judge(matches, margin, name) for name in READINGS}
    rows = tables[reading]
    for place, ((scores, number), row) in enumerate(zip(matches, rows, strict=True)):
        _, assumed = published_mean(number, reading, mean_of(scores).sd)
        reasons = [assumed]
        if number.pm is not None and number.pm_means == "unknown" and (number.n or 1) > 1:
            words = {name: table[place]["verdict"] for name, table in tables.items()}
            reasons.append(_other_readings(words))
        row["reason"] = "; ".join(filter(None, [*reasons, number.note]))
    return rows


def _other_readings(words: dict[str, str]) -> str:
    if len(set(words.values())) == 1:
        return "same under every reading of ±"
    return ", ".join(f"{word} if ± is {name}" for name, word in words.items())


def verdicts(study: Study, tidy: pd.DataFrame, numbers: Iterable[Published]) -> pd.DataFrame:
    """Compare every cell of a study with every published number that matches it.

    A number matches by task, method (either LoRA implementation is "lora"), metric, rank, targets
    and training rows. If none of the cell's own model matches, the first matching number of each
    published table stands there as "not comparable".
    """
    numbers = list(numbers)
    rows, matches = [], []
    for key, runs in tidy.groupby(SCORED_CELL, dropna=False, sort=False):
        cell = dict(zip(SCORED_CELL, key, strict=True))
        for number in _matching(cell, runs, numbers):
            row, scores = _facts(study, cell, runs, number)
            rows.append(row)
            if not row["reason"]:
                matches.append((scores, number))
    judgements = iter(judge_with_reasons(matches, study.margin, study.reading))
    blank = dict.fromkeys(("difference", "low", "high", "p", "p_holm", "p_equivalent"), math.nan)
    table = [
        {**row, **(blank | {"verdict": "not comparable"} if row["reason"] else next(judgements))}
        for row in rows
    ]
    for row in table:
        if row["verdict"] != "not comparable" and row["local_copies"]:
            copies = f"local copy, not verified: {row['local_copies']}"
            row["reason"] = "; ".join(filter(None, [row["reason"], copies]))
    return pd.DataFrame(table)


def _matching(cell: dict, runs: pd.DataFrame, numbers: list[Published]) -> list[Published]:
    method = METHODS[cell["method"]].published_as or cell["method"]
    first = runs.iloc[0]
    fitting = [
        number
        for number in numbers
        if (number.task, number.method) == (cell["task"], method)
        and number.rank in (None, cell["rank"])
        and number.targets in (None, cell["targets"], first.matrices)
        and number.train_rows in (None, first.rows_train)
        and f"best_{number.metric}" in runs
        and runs[f"best_{number.metric}"].notna().all()
    ]
    own = [number for number in fitting if number.model == cell["model"]]
    first_of_table = {number.key: number for number in reversed(fitting)}
    return own or list(first_of_table.values())


def obstacle(cell: dict, runs: pd.DataFrame, number: Published) -> str:
    """Say why a cell can't be compared with a number; "" where it can."""
    if number.doubt:
        return f"the number is in doubt: it {number.doubt}"
    if number.model != cell["model"]:
        return f"another model: the number is {number.model}'s"
    if METHODS[cell["method"]].trains == "adapter" and None in (number.rank, number.targets):
        return "the number's rank or targets are not stated"
    if number.split != "validation":
        return f"another split: the number is of {number.split}"
    splits = {"train": number.train_rows, "validation": None}
    if "_" in number.metric:  # accuracy_mismatched
        splits[number.metric.partition("_")[2]] = None
    for split, wanted in splits.items():
        published = runs.get(f"published_rows_{split}", pd.Series(dtype=float))
        if published.empty or published.isna().any():
            return "the published size of the task is not in tasks.yaml"
        wanted = wanted or int(published.iloc[0])
        if (runs[f"rows_{split}"] != wanted).any():
            count = int(runs[f"rows_{split}"].min())
            return f"a subset: {count:,} {split} rows, the number is for {wanted:,}"
    return ""


def _facts(
    study: Study, cell: dict, runs: pd.DataFrame, number: Published
) -> tuple[dict, list[float]]:
    """Return what is known of a cell and a number before any test, and the cell's scores.

    The scores are those of the last epoch if the number is of the last epoch, else of the best.
    """
    epoch = "last" if number.selection == "last epoch" else "best"
    scores = runs[f"{epoch}_{number.metric}"].tolist()
    ours = summarise(scores)
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
        "margin": study.margin,
        "local_copies": runs.local_copies.iloc[0],
        "reason": obstacle(cell, runs, number),
    }
    return row, scores


SAME = ("task", "model", "method", "rank", "targets", "metric", "split", "train_rows", "selection")


def published_verdicts(
    ours: Iterable[Published], theirs: Iterable[Published], margin: float, reading: str
) -> pd.DataFrame:
    """Set published per-seed results beside other published numbers of the same cell.

    Numbers in doubt are left out.

    Raises:
        UserError: no number of `theirs` agrees with one of `ours` in all fields of `SAME`.
    """
    theirs = list(theirs)
    same_cell = [
        (left, right)
        for left in ours
        for right in theirs
        if len(left.scores()) > 1
        and not (left.doubt or right.doubt)
        and all(getattr(left, name) == getattr(right, name) for name in SAME)
    ]
    if not same_cell:
        raise UserError(
            "published: no number of 'compare' that is not in doubt agrees with a per-seed result "
            f"of 'ours' in all of {', '.join(SAME)}"
        )
    matches = [([s / SCALE[left.unit] for s in left.scores()], right) for left, right in same_cell]
    judgements = judge_with_reasons(matches, margin, reading)
    rows = []
    for (left, right), (scores, _), judgement in zip(same_cell, matches, judgements, strict=True):
        summary = summarise(scores)
        published, assumed = published_mean(right, reading, math.nan)
        row: dict = {"ours": left.key, "published": right.key}
        row |= {"task": left.task, "metric": left.metric, "selection": left.selection}
        row |= {key: summary[key] for key in ("n", "mean", "sd", "median")}
        row["published_value"] = published.mean
        row["published_sd"] = math.nan if assumed else published.sd
        rows.append({**row, "published_n": right.n, "margin": margin, **judgement})
    return pd.DataFrame(rows)
