"""Contrasts: methods and switches of one study, compared on the same seeds."""

import math
from collections.abc import Sequence

import pandas as pd

from loraudit.analysis.cells import SCORED_CELL, SUBJECT, cell_name, label_text
from loraudit.analysis.statistics import holm, paired
from loraudit.studies.methods import METHODS
from loraudit.studies.names import variant_of
from loraudit.studies.study import Study

Contrasts = Sequence[tuple[str, str]]
Cell = tuple[dict, pd.DataFrame]
"""What names a cell, and its runs."""


def method_contrasts(tidy: pd.DataFrame, contrasts: Contrasts = ()) -> pd.DataFrame:
    """Compare methods on the same seeds: each adapter cell with each baseline and with its twin.

    A baseline of the adapter's own label is its partner, or else the unlabelled one. With
    `contrasts` (each two variants, as `names.variant_of` names them), those and no others are
    compared. Contrasts without two common seeds are left out.

    Returns:
        A row per contrast and epoch choice: mean difference (left minus right), 95 % t interval,
        the paired t test's p, and that p adjusted over the epoch choice's rows (Holm).
    """
    rows = []
    for (task, model), runs in tidy.groupby(SUBJECT, sort=False):
        cells = _cells(runs)
        for left, right in _chosen(cells, contrasts) if contrasts else _partners(cells):
            rows += _contrast_rows(task, model, left, right)
    return _with_holm(rows)


def _cells(runs: pd.DataFrame) -> list[Cell]:
    cells = []
    for key, part in runs.groupby(SCORED_CELL, dropna=False, sort=False):
        cell = dict(zip(SCORED_CELL, key, strict=True))
        cells.append(({**cell, "label": label_text(cell["label"])}, part))
    return cells


def _partners(cells: list[Cell]) -> list[tuple[Cell, Cell]]:
    """Set each adapter cell beside its baselines and its twin."""
    labels = {(cell["method"], cell["label"]) for cell, _ in cells}
    return [(one, two) for one in cells for two in cells if _are_partners(one[0], two[0], labels)]


def _chosen(cells: list[Cell], contrasts: Contrasts) -> list[tuple[Cell, Cell]]:
    """Pick the cells of the contrasts; a task or model without one of them has no row for it."""
    named = {variant_of(part.run.iloc[0]): (cell, part) for cell, part in cells}
    return [(named[one], named[two]) for one, two in contrasts if one in named and two in named]


def _with_holm(rows: list[dict]) -> pd.DataFrame:
    """Make a table of tests, with p adjusted over the rows of each epoch choice."""
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = table.groupby("epoch").p.transform(lambda p: holm(p.tolist()))
    return table


def _are_partners(left: dict, right: dict, labels: set[tuple[str, str]]) -> bool:
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


def _contrast_rows(task: str, model: str, left: Cell, right: Cell) -> list[dict]:
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


def switch_effects(study: Study, tidy: pd.DataFrame, base: str) -> pd.DataFrame:
    """Compare each switch of an ablation with its base runs on the same seeds.

    The row "last epoch, not the best" is the base against itself: what choosing the epoch on the
    validation split is worth. It can't be above 0, so it has no p.

    Returns:
        A row per task and switch (and epoch choice): mean difference (switch minus base), 95 % t
        interval, paired p, and Holm's over the epoch choice's rows.
    """
    rows = []
    for (task, model), runs in tidy.groupby(SUBJECT, sort=False):
        base_runs = runs[runs.label == base]
        for switch in study.switches if len(base_runs) else ():
            switched = runs[runs.label == switch.label]
            both = base_runs.merge(
                switched, on="seed", suffixes=("_base", "_switch"), validate="one_to_one"
            )
            for epoch in ("best", "last") if len(both) > 1 else ():
                test = paired(both[f"{epoch}_switch"].tolist(), both[f"{epoch}_base"].tolist())
                mean = base_runs[epoch].mean()
                rows.append(_effect(task, model, switch.name, epoch, test, mean))
        if len(base_runs) > 1:
            test = paired(base_runs["last"].tolist(), base_runs["best"].tolist()) | {"p": math.nan}
            name = "last epoch, not the best"
            rows.append(_effect(task, model, name, "best", test, base_runs["best"].mean()))
    return _with_holm(rows)


def _effect(task: str, model: str, switch: str, epoch: str, test: dict, base: float) -> dict:
    return {"task": task, "model": model, "switch": switch, "epoch": epoch, "base": base, **test}
