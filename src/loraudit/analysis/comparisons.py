"""Verdicts: a study's cells beside published numbers, and published seeds beside each other.

The number of another model, of a part of the data or of another metric is never called reproduced:
such rows say "not comparable" and why.
"""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from loraudit.analysis.statistics import (
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
from loraudit.base.errors import UserError
from loraudit.studies.methods import METHODS
from loraudit.studies.names import variant_of
from loraudit.studies.reference import Published
from loraudit.studies.study import Study

SCALE = {"percent": 100.0, "fraction": 1.0, "other": 1.0}


Contrasts = Sequence[tuple[str, str]]
Cell = tuple[dict, pd.DataFrame]
"""What names a cell, and its runs."""

Pair = tuple[Sequence[float], Published]
"""Scores over seeds, as fractions, and the published number that they are set beside."""


def published_summary(number: Published, reading: str, ours_sd: float) -> dict:
    """Return mean, sd and n of a published number, as fractions, and what had to be assumed.

    With per-seed scores they are computed. Otherwise the printed value stands for the mean (of a
    median too), and its ± is turned into an sd by the source's own meaning or, where that is
    unknown, by `reading`. A ± without n counts as the sd of a single value; without ± our own sd
    stands in, so that one published run is never taken for the exact truth.
    """
    scale = SCALE[number.unit]
    scores = number.scores()
    if len(scores) > 1:
        found = summarise([score / scale for score in scores])
        return {**{key: found[key] for key in ("mean", "sd", "n")}, "assumed": ""}
    mean, n = number.value / scale, number.n or 1
    if number.pm is None:
        return {"mean": mean, "sd": ours_sd, "n": n, "assumed": f"spread unpublished: ours, n={n}"}
    if n < 2:
        sd = number.pm / scale
        return {"mean": mean, "sd": sd, "n": 1, "assumed": "n unpublished: ± taken as one run's sd"}
    meaning = number.pm_means if number.pm_means not in (None, "unknown") else reading
    return {"mean": mean, "sd": spread_to_sd(number.pm / scale, n, meaning), "n": n, "assumed": ""}


def judge(pairs: Sequence[Pair], margin: float, reading: str) -> list[dict]:
    """Set scores beside published numbers, as one table of tests.

    Returns:
        Per pair: difference (ours minus published) with its 95 % interval low and high, p of
        Welch's test, p_holm (that p adjusted over the table), p_equivalent (TOST within `margin`),
        and the verdict, by p_holm and p_equivalent.
    """
    rows = []
    for scores, number in pairs:
        ours = summarise(scores)
        theirs = published_summary(number, reading, ours["sd"])
        left = ours["mean"], ours["sd"], len(scores)
        right = theirs["mean"], theirs["sd"], theirs["n"]
        different = welch(*left, *right)
        rows.append({**different, "p_equivalent": tost(*left, *right, margin=margin)})
    adjusted = holm([row["p"] for row in rows])
    return [
        {**row, "p_holm": p, "verdict": decide(p, row["p_equivalent"])}
        for row, p in zip(rows, adjusted, strict=True)
    ]


def judged(pairs: Sequence[Pair], margin: float, reading: str) -> list[dict]:
    """Judge pairs, and say in `reason` what was assumed and what other readings of ± would say."""
    tables = {name: judge(pairs, margin, name) for name in READINGS}
    rows = tables[reading]
    for place, ((scores, number), row) in enumerate(zip(pairs, rows, strict=True)):
        reasons = [published_summary(number, reading, summarise(scores)["sd"])["assumed"]]
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
    and training rows. Numbers of another model match only where none of the cell's own model does,
    one row per table, as "not comparable".
    """
    numbers = list(numbers)
    rows, pairs = [], []
    for key, runs in tidy.groupby(CELL, dropna=False, sort=False):
        cell = dict(zip(CELL, key, strict=True))
        for number in _matching(cell, runs, numbers):
            row, scores = _facts(study, cell, runs, number)
            rows.append(row)
            if not row["reason"]:
                pairs.append((scores, number))
    found = iter(judged(pairs, study.margin, study.reading))
    blank = dict.fromkeys(("difference", "low", "high", "p", "p_holm", "p_equivalent"), math.nan)
    table = [
        {**row, **blank, "verdict": "not comparable"} if row["reason"] else {**row, **next(found)}
        for row in rows
    ]
    for row in table:
        if row["verdict"] != "not comparable" and row["local_copies"]:
            row["reason"] += f"; local copy, not verified: {row['local_copies']}"
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
            found = int(runs[f"rows_{split}"].min())
            return f"a subset: {found:,} {split} rows, the number is for {wanted:,}"
    return ""


def _facts(
    study: Study, cell: dict, runs: pd.DataFrame, number: Published
) -> tuple[dict, list[float]]:
    """Return what is known of a cell and a number before any test, and the cell's scores."""
    epoch = "last" if number.selection == "last epoch" else "best"
    scores = runs[f"{epoch}_{number.metric}"].tolist()
    ours = summarise(scores)
    theirs = published_summary(number, study.reading, ours["sd"])
    row = {
        **cell,
        "metric": number.metric,
        "epoch": epoch,
        "published": number.key,
        "where": number.where,
        "published_value": theirs["mean"],
        "published_sd": math.nan if theirs["assumed"] else theirs["sd"],
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

    Raises:
        UserError: no number of `theirs` is of the same cell and epoch choice as one of `ours`.
    """
    theirs = list(theirs)
    matched = [
        (left, right)
        for left in ours
        for right in theirs
        if len(left.scores()) > 1
        and all(getattr(left, name) == getattr(right, name) for name in SAME)
    ]
    if not matched:
        raise UserError(
            "published: no number of 'compare' has the task, model, method, rank, targets and "
            "epoch choice of a per-seed result of 'ours'"
        )
    pairs = [([s / SCALE[left.unit] for s in left.scores()], right) for left, right in matched]
    rows = []
    for (left, right), (scores, _) in zip(matched, pairs, strict=True):
        found, theirs_found = summarise(scores), published_summary(right, reading, math.nan)
        row: dict = {"ours": left.key, "published": right.key}
        row |= {"task": left.task, "metric": left.metric}
        row |= {"selection": left.selection}
        row |= {key: found[key] for key in ("n", "mean", "sd", "median")}
        row |= {"published_value": theirs_found["mean"], "published_sd": theirs_found["sd"]}
        rows.append({**row, "published_n": right.n, "margin": margin})
    judgements = judged(pairs, margin, reading)
    return pd.DataFrame([{**row, **word} for row, word in zip(rows, judgements, strict=True)])


def method_pairs(tidy: pd.DataFrame, contrasts: Contrasts = ()) -> pd.DataFrame:
    """Compare methods on the same seeds: each adapter cell with each baseline and with its twin.

    A baseline of the adapter's own label is its partner, or else the unlabelled one. With
    `contrasts`, pairs of variants (`study.variant_of`), those and no others are compared. Returns a
    row per pair and epoch choice: mean difference, 95 % t interval, paired t test's p, and that p
    adjusted over the epoch choice's rows (Holm). Pairs without two common seeds are left out.
    """
    rows = []
    for (task, model), runs in tidy.groupby(["task", "model"], sort=False):
        cells = [
            ({**dict(zip(CELL, key, strict=True)), "label": text(key[CELL.index("label")])}, part)
            for key, part in runs.groupby(CELL, dropna=False, sort=False)
        ]
        for left, right in _contrasted(cells, contrasts) if contrasts else _partners(cells):
            rows += _pair_rows(task, model, left, right)
    return _with_holm(rows)


def _partners(cells: list[Cell]) -> list[tuple[Cell, Cell]]:
    """Pair each adapter cell with its baselines and its twin."""
    labels = {(cell["method"], cell["label"]) for cell, _ in cells}
    return [(one, two) for one in cells for two in cells if _is_pair(one[0], two[0], labels)]


def _contrasted(cells: list[Cell], contrasts: Contrasts) -> list[tuple[Cell, Cell]]:
    """Pick the cells of the contrasts; a task or model without one of them has no row for it."""
    named = {variant_of(part.run.iloc[0]): (cell, part) for cell, part in cells}
    return [(named[one], named[two]) for one, two in contrasts if one in named and two in named]


def _with_holm(rows: list[dict]) -> pd.DataFrame:
    """Make a table of tests, with p adjusted over the rows of each epoch choice."""
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = table.groupby("epoch").p.transform(lambda p: holm(p.tolist()))
    return table


def text(value: object) -> str:
    """Return a label as text; a missing one is empty."""
    return "" if pd.isna(value) else str(value)


def _is_pair(left: dict, right: dict, labels: set[tuple[str, str]]) -> bool:
    one, two = METHODS[left["method"]], METHODS[right["method"]]
    alike = all(left[key] == right[key] for key in ("rank", "targets"))
    if one.name == "lora" and two.name == one.twin:
        return alike and left["label"] == right["label"]
    if one.name == "lora" and two.moves_ranks:
        return alike and left["label"] in ("", right["label"])
    if one.trains != "adapter" or two.trains == "adapter":
        return False
    own = (right["method"], left["label"]) in labels
    return right["label"] == (left["label"] if own else "")


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
    return " ".join(filter(None, [cell["method"], rank, text(cell["label"])]))


def switch_effects(study: Study, tidy: pd.DataFrame, base: str) -> pd.DataFrame:
    """Compare each switch of an ablation with its base runs on the same seeds.

    Returns a row per task and switch (and epoch choice): mean difference (switch minus base), 95 %
    t interval, paired p, and Holm's over the epoch choice's rows. The row "last epoch, not the
    best" is the base against itself: what choosing the epoch on the validation split is worth. It
    can't be above 0, so it has no p.
    """
    rows = []
    for (task, model), runs in tidy.groupby(["task", "model"], sort=False):
        start = runs[runs.label == base]
        for switch in study.switches if len(start) else ():
            switched = runs[runs.label == switch.label]
            both = start.merge(
                switched, on="seed", suffixes=("_base", "_switch"), validate="one_to_one"
            )
            for epoch in ("best", "last") if len(both) > 1 else ():
                pair = paired(both[f"{epoch}_switch"].tolist(), both[f"{epoch}_base"].tolist())
                rows.append(_effect(task, model, switch.name, epoch, pair, start[epoch].mean()))
        if len(start) > 1:
            pair = paired(start["last"].tolist(), start["best"].tolist()) | {"p": math.nan}
            name = "last epoch, not the best"
            rows.append(_effect(task, model, name, "best", pair, start["best"].mean()))
    return _with_holm(rows)


def _effect(task: str, model: str, switch: str, epoch: str, pair: dict, base: float) -> dict:
    return {"task": task, "model": model, "switch": switch, "epoch": epoch, "base": base, **pair}
