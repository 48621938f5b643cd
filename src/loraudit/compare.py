"""Verdicts: a study's cells beside published numbers, and published seeds beside each other.

The number of another model, of a part of the data or of another metric is never called reproduced:
such rows say "not comparable" and why.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from loraudit.reference import Published
from loraudit.spec import ADAPTER_METHODS
from loraudit.statistics import (
    CELL,
    READINGS,
    decide,
    holm,
    paired,
    spread_to_sd,
    summarise,
    tost,
    welch,
)
from loraudit.study import Study

SCALE = {"percent": 100.0, "fraction": 1.0, "other": 1.0}


def published_summary(number: Published, reading: str) -> dict:
    """Return mean, sd and n of a published number, as fractions.

    With per-seed scores they are computed. Otherwise the printed value stands for the mean (of a
    median too), its ± is turned into an sd by the source's own meaning or, where that is unknown,
    by `reading`. Without ± or n the value counts as exact: sd 0 and n None.
    """
    scale = SCALE[number.unit]
    scores = number.scores(number.selection)
    if len(scores) > 1:
        found = summarise([score / scale for score in scores])
        return {key: found[key] for key in ("mean", "sd", "n")}
    if number.pm is None or number.n is None or number.n < 2:
        return {"mean": number.value / scale, "sd": 0.0, "n": None}
    meaning = reading if number.pm_means == "unknown" else number.pm_means
    sd = spread_to_sd(number.pm / scale, number.n, meaning)
    return {"mean": number.value / scale, "sd": sd, "n": number.n}


def judge(scores: Sequence[float], number: Published, margin: float, reading: str) -> dict:
    """Set scores over seeds (fractions) beside one published number.

    Returns:
        difference (ours minus published) with its 95 % interval low and high, p of Welch's test,
        p of TOST within `margin`, and the verdict under `reading`.
    """
    ours, theirs = summarise(scores), published_summary(number, reading)
    numbers = ours["mean"], ours["sd"], ours["n"], *(theirs[key] for key in ("mean", "sd", "n"))
    test = welch(*numbers)
    p_equivalent = tost(*numbers, margin=margin)
    return {**test, "p_equivalent": p_equivalent, "verdict": decide(test["p"], p_equivalent)}


def readings(scores: Sequence[float], number: Published, margin: float) -> str:
    """Say whether the verdict depends on what ± means: "" where it does not or is known."""
    if number.pm is None or number.pm_means != "unknown" or not number.n or number.n < 2:
        return ""
    found = {name: judge(scores, number, margin, name)["verdict"] for name in READINGS}
    if len(set(found.values())) == 1:
        return "same under every reading of ±"
    return "; ".join(f"{name}: {verdict}" for name, verdict in found.items())


def verdicts(study: Study, tidy: pd.DataFrame, numbers: Iterable[Published]) -> pd.DataFrame:
    """Compare every cell of a study with every published number that matches it.

    A number matches by task, method (either LoRA implementation is "lora"), metric, and by rank
    and targets where it has them. Numbers of another model match only where none of the cell's own
    model does, one row per table, as "not comparable". p-values of Welch's test are also given
    adjusted for the table's size (Holm), and the verdict uses these.
    """
    numbers = list(numbers)
    rows = []
    for key, runs in tidy.groupby(CELL, dropna=False, sort=False):
        cell = dict(zip(CELL, key, strict=True))
        for number in _matching(cell, runs, numbers):
            rows.append({**cell, **_verdict(study, cell, runs, number)})
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = holm(table["p"].tolist())
        judged = table.verdict != "not comparable"
        table.loc[judged, "verdict"] = [
            decide(row.p_holm, row.p_equivalent) for row in table[judged].itertuples()
        ]
    return table


def _matching(cell: dict, runs: pd.DataFrame, numbers: list[Published]) -> list[Published]:
    method = "lora" if cell["method"] in ADAPTER_METHODS else cell["method"]
    fitting = [
        number
        for number in numbers
        if (number.task, number.method) == (cell["task"], method)
        and number.rank in (None, cell["rank"])
        and number.targets in (None, cell["targets"])
        and f"best_{number.metric}" in runs
        and runs[f"best_{number.metric}"].notna().all()
    ]
    own = [number for number in fitting if number.model == cell["model"]]
    first_of_table = {number.key: number for number in reversed(fitting)}
    return own or list(first_of_table.values())


def obstacle(cell: dict, runs: pd.DataFrame, number: Published) -> str:
    """Say why a cell can't be compared with a number; "" where it can."""
    if number.model != cell["model"]:
        return f"another model: the number is {number.model}'s"
    if number.split != "validation":
        return f"another split: the number is of {number.split}"
    row = runs.iloc[0]
    if pd.isna(row.published_rows_train):
        return "the published size of the task is not in tasks.yaml"
    if row.rows_train != (number.train_rows or row.published_rows_train):
        wanted = number.train_rows or int(row.published_rows_train)
        return f"a subset: {row.rows_train:,} training rows, the number is for {wanted:,}"
    if row.rows_validation != row.published_rows_validation:
        wanted = int(row.published_rows_validation)
        return f"a subset: {row.rows_validation:,} validation rows of {wanted:,}"
    return ""


def _verdict(study: Study, cell: dict, runs: pd.DataFrame, number: Published) -> dict:
    epoch = "last" if number.selection == "last epoch" else "best"
    scores = runs[f"{epoch}_{number.metric}"].tolist()
    reason = obstacle(cell, runs, number)
    theirs = published_summary(number, study.reading)
    row = {
        "metric": number.metric,
        "epoch": epoch,
        "published": number.key,
        "where": number.where,
        "published_value": number.value / SCALE[number.unit],
        "published_sd": theirs["sd"],
        "published_n": theirs["n"],
        "published_statistic": number.statistic,
        "n": len(scores),
        "mean": summarise(scores)["mean"],
        "median": summarise(scores)["median"],
        "margin": study.margin,
    }
    if reason:
        blank = dict.fromkeys(("difference", "low", "high", "p", "p_equivalent"), float("nan"))
        return {**row, **blank, "verdict": "not comparable", "reason": reason}
    judged = judge(scores, number, study.margin, study.reading)
    return {**row, **judged, "reason": readings(scores, number, study.margin)}


def published_verdicts(
    ours: Iterable[Published], theirs: Iterable[Published], margin: float, reading: str
) -> pd.DataFrame:
    """Set published per-seed results beside other published numbers of the same cell.

    Returns the columns of `verdicts`; Holm over the rows of each epoch choice.
    """
    theirs = list(theirs)
    rows = []
    for left in ours:
        for right in theirs:
            same = all(
                getattr(left, name) == getattr(right, name)
                for name in ("task", "model", "method", "rank", "targets", "metric")
            )
            for epoch in ("best", "last") if same else ():
                scores = [score / SCALE[left.unit] for score in left.scores(f"{epoch} epoch")]
                rows.append(
                    {
                        "ours": left.key,
                        "published": right.key,
                        "task": left.task,
                        "metric": left.metric,
                        "epoch": epoch,
                        "n": len(scores),
                        **{k: summarise(scores)[k] for k in ("mean", "sd", "median")},
                        "published_value": right.value / SCALE[right.unit],
                        "published_sd": published_summary(right, reading)["sd"],
                        "published_n": right.n,
                        "margin": margin,
                        **judge(scores, right, margin, reading),
                        "reason": readings(scores, right, margin),
                    }
                )
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("epoch").p.transform(lambda p: holm(p.tolist()))
    table["verdict"] = [decide(row.p_holm, row.p_equivalent) for row in table.itertuples()]
    return table


def method_pairs(tidy: pd.DataFrame) -> pd.DataFrame:
    """Compare methods on the same seeds: each adapter cell with each baseline and with its twin.

    Returns a row per pair and epoch choice: mean difference, 95 % t interval, paired t test's p,
    and that p adjusted over the table (Holm). Pairs without two seeds in common are left out.
    """
    rows = []
    for (task, model), runs in tidy.groupby(["task", "model"], sort=False):
        cells = [(dict(zip(CELL, key, strict=True)), part) for key, part in _cells(runs)]
        for left, part in cells:
            for right, other in cells:
                if _is_pair(left, right):
                    rows += _pair_rows(task, model, (left, part), (right, other))
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = table.groupby("epoch").p.transform(lambda p: holm(p.tolist()))
    return table


def _cells(runs: pd.DataFrame) -> Iterable[tuple[tuple, pd.DataFrame]]:
    return runs.groupby(CELL, dropna=False, sort=False)


def _is_pair(left: dict, right: dict) -> bool:
    if left["method"] == "lora" and right["method"] == "peft":
        return all(left[key] == right[key] for key in ("rank", "targets", "label"))
    return left["method"] in ADAPTER_METHODS and right["method"] not in ADAPTER_METHODS


def _pair_rows(task: str, model: str, left: tuple, right: tuple) -> list[dict]:
    (cell, part), (other_cell, other) = left, right
    both = part.merge(other, on="seed", suffixes=("_left", "_right")).sort_values("seed")
    if len(both) < 2:
        return []
    return [
        {
            "task": task,
            "model": model,
            "epoch": epoch,
            "left": cell_name(cell),
            "right": cell_name(other_cell),
            **paired(both[f"{epoch}_left"].tolist(), both[f"{epoch}_right"].tolist()),
        }
        for epoch in ("best", "last")
    ]


def cell_name(cell: dict) -> str:
    """Name a cell within its task and model: "lora r8 q+v label"."""
    rank = "" if pd.isna(cell["rank"]) else f"r{cell['rank']:g} {cell['targets']}"
    label = "" if pd.isna(cell["label"]) else str(cell["label"])
    return " ".join(filter(None, [cell["method"], rank, label]))


def switch_effects(study: Study, tidy: pd.DataFrame, base: str) -> pd.DataFrame:
    """Compare each switch of an ablation with its base runs on the same seeds.

    Returns a row per task and switch (and epoch choice): mean difference (switch minus base), 95 %
    t interval, paired p, and Holm's over the table. The row "last epoch, not the best" is the base
    against itself: what choosing the epoch on the validation split is worth.
    """
    rows = []
    for (task, model), runs in tidy.groupby(["task", "model"], sort=False):
        start = runs[runs.label == base]
        for switch in study.switches if len(start) else ():
            both = start.merge(
                runs[runs.label == switch.label], on="seed", suffixes=("_base", "_switch")
            )
            for epoch in ("best", "last") if len(both) > 1 else ():
                pair = paired(both[f"{epoch}_switch"].tolist(), both[f"{epoch}_base"].tolist())
                rows.append(_effect(task, model, switch.name, epoch, pair, start[epoch].mean()))
        if len(start) > 1:
            pair = paired(start["last"].tolist(), start["best"].tolist())
            name = "last epoch, not the best"
            rows.append(_effect(task, model, name, "best", pair, start["best"].mean()))
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = table.groupby("epoch").p.transform(lambda p: holm(p.tolist()))
    return table


def _effect(task: str, model: str, switch: str, epoch: str, pair: dict, base: float) -> dict:
    return {"task": task, "model": model, "switch": switch, "epoch": epoch, "base": base, **pair}
