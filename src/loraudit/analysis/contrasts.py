"""Contrasts: methods and switches of one study, set side by side.

Methods are compared by the spread that all cells of a task and model share (pooling.py). A seed
decides the start and the order of the data, and in some studies which training rows are drawn, so
that it may be lucky for all cells at once. Where two cells have the same seeds this cancels, and is
taken out of the spread (`pooling.by_seed`). So are an ablation's base and its switches compared, on
the seeds that both have. Twins are two codes of the same run, so they are compared by the
differences of the same seeds. The correlation by seed that is shown with both says what the pairing
was worth.

Rows of one table and one epoch choice make a family: their p-values are adjusted for
their number (Holm), and each interval is the one that belongs to its adjusted test. Rows whose
answer is known beforehand or said twice stay outside (`ROLES`).
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from loraudit.analysis.cells import (
    SCORED_CELL,
    SUBJECT,
    cell_name,
    choices_of,
    collapsed,
    label_text,
)
from loraudit.analysis.pooling import (
    Cell,
    Difference,
    Spread,
    own_spread,
    shared_spreads,
    summed,
    unpaired,
)
from loraudit.analysis.resampling import interquartile_difference
from loraudit.analysis.statistics import MARGIN, NO_SPREAD, SIGNIFICANCE, holm, holm_factors
from loraudit.studies.methods import METHODS
from loraudit.studies.names import variant_of
from loraudit.studies.scores import unit_of
from loraudit.studies.study import Study, Switch
from loraudit.studies.study_file import Contrast

ROLES = {
    "test": "tested",
    "twins": "twins",
    "copy": "repeats its twin's",
    "worth": "never better than 0",
}
"""What a row is to its family, in words: a test, which alone belongs to it; two codes of one
method, equal by design; a row of PEFT's that says what our row of the same cells says; what the
choice of the epoch is worth."""

Named = tuple[dict, pd.DataFrame]
"""What names a cell (SCORED_CELL and its variant), and its runs."""

Pair = tuple[Contrast, Named, Named]
"""A contrast, and its two cells in one task and model."""

Pool = tuple[dict[str, Cell], float]
"""{variant: its cell to test with} of one task and model, and the freedom of all."""


def method_contrasts(
    tidy: pd.DataFrame,
    contrasts: Sequence[Contrast] = (),
    margin: float | None = None,
    row_errors: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Compare methods in each task and model: the `contrasts`, or each adapter with each baseline.

    A baseline of the adapter's own label is its partner, or else the unlabelled one. Contrasts
    without two runs on either side are left out.

    Args:
        tidy: a row per run.
        contrasts: of variants, as `names.variant_of` names them.
        margin: what counts as equal, where a contrast asks for equivalence and has no own margin;
            None: `MARGIN`.
        row_errors: how far each difference depends on the validation rows, from
            `collect.row_errors`; None: not known, and the columns task_* are NaN.

    Returns:
        A row per contrast and epoch choice: difference (left minus right) of means, its interval
        (low, high) and p, and those adjusted over the family (p_holm; the interval has the
        confidence that belongs to p_holm). For asks "equivalence", p is TOST's. These hold for new
        seeds on the same validation rows; task_low, task_high, task_p and task_p_holm for new
        seeds and new rows. `correlation` is that by seed, of twins only. collapsed_left and
        collapsed_right count runs that collapsed, which the means include.
    """
    rows = []
    for (task, model), runs in tidy.groupby(SUBJECT, sort=False):
        cells = named_cells(runs)
        found = pairs(cells, contrasts)
        roles = roles_of(found)
        pools = {
            epoch: {same: _pooled_cells(cells, epoch, same) for same in (True, False)}
            for epoch in choices_of(runs)
        }
        for pair, epoch in itertools.product(found, pools):
            role = roles[pair[0].left, pair[0].right]
            row = _contrast_row(pair, epoch, pools[epoch], margin or MARGIN, role)
            rows += [{"task": task, "model": model, **row}] if row else []
    return _tested(_with_row_errors(rows, row_errors))


def named_cells(runs: pd.DataFrame) -> list[Named]:
    """Return the cells of one task and model, in the order in which they first appear."""
    cells = []
    for key, part in runs.groupby(SCORED_CELL, dropna=False, sort=False):
        cell = dict(zip(SCORED_CELL, key, strict=True))
        cell |= {"label": label_text(cell["label"]), "variant": variant_of(part.run.iloc[0])}
        cells.append((cell, part))
    return cells


def pairs(cells: list[Named], contrasts: Sequence[Contrast] = ()) -> list[Pair]:
    """Return the cells to compare in one task and model.

    A task or model without one of a contrast's variants has no row for it.
    """
    if contrasts:
        named = {cell["variant"]: (cell, part) for cell, part in cells}
        return [
            (contrast, named[contrast.left], named[contrast.right])
            for contrast in contrasts
            if contrast.left in named and contrast.right in named
        ]
    labels = {(cell["method"], cell["label"]) for cell, _ in cells}
    return [
        (Contrast(left=one[0]["variant"], right=two[0]["variant"]), one, two)
        for one in cells
        for two in cells
        if _are_partners(one[0], two[0], labels)
    ]


def _are_partners(left: dict, right: dict, labels: set[tuple[str, str]]) -> bool:
    """Tell whether an adapter cell stands beside a baseline of its, or beside its twin."""
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


def roles_of(found: list[Pair]) -> dict[tuple[str, str], str]:
    """Return {(left, right): role} of the pairs of one task and model."""
    known = {_names(left, right) for _, (left, _), (right, _) in found}
    roles = {}
    for _, (left, _), (right, _) in found:
        names, plain = _names(left, right), _names(_as_published(left), _as_published(right))
        copied = plain != names and plain in known
        role = "twins" if plain[0] == plain[1] else "copy" if copied else "test"
        roles[left["variant"], right["variant"]] = role
    return roles


def _names(left: dict, right: dict) -> tuple[str, str]:
    return cell_name(left), cell_name(right)


def _as_published(cell: dict) -> dict:
    """Return the cell with its method's twin that published numbers are of."""
    method = METHODS[cell["method"]]
    return {**cell, "method": method.published_as or method.name}


def _pooled_cells(cells: list[Named], epoch: str, same_seeds: bool) -> Pool:
    """Return {variant: its cell to test with}, of two runs or more, and all cells' freedom.

    What the seeds share is taken out for comparisons of cells of the `same_seeds`. Twins train the
    same runs, which may count once: a twin has the spread of its counterpart.
    """
    several = {
        cell_name(cell): (cell, part.set_index("seed")[epoch])
        for cell, part in cells
        if len(part) > 1
    }
    counterpart = {name: cell_name(_as_published(cell)) for name, (cell, _) in several.items()}
    counted = [n for n, other in counterpart.items() if other == n or other not in several]
    shared, freedom = shared_spreads([several[n][1] for n in counted], same_seeds)
    spreads = dict(zip(counted, shared, strict=True))
    made = {}
    for name, (cell, scores) in several.items():
        spread = spreads[name if name in spreads else counterpart[name]]
        made[cell["variant"]] = Cell(_mean(scores), len(scores), spread)
    return made, freedom


def _mean(scores: pd.Series) -> float:
    """Return the mean; NaN if a score is undefined, without which it would be too good."""
    return float(scores.mean(skipna=False))


def _contrast_row(
    pair: Pair, epoch: str, pools: Mapping[bool, Pool], margin: float, role: str
) -> dict:
    """Compare two cells; an empty row if one of them has fewer than two runs.

    `pools` are those for cells of the same seeds (True) and of others.
    """
    contrast, (left, one), (right, two) = pair
    cells, most = pools[set(one.seed) == set(two.seed)]
    if contrast.left not in cells or contrast.right not in cells:
        return {}
    correlation = math.nan
    difference = unpaired(cells[contrast.left], cells[contrast.right], most)
    if role == "twins":
        both = _same_seeds(two, one)
        if len(both) < 2:
            return {}
        correlation = correlation_by_seed(both[f"{epoch}_left"], both[f"{epoch}_right"])
        difference = one_sample(_gaps(both, epoch), own_spread(_gaps(both, epoch)))
    return {
        "metric": left["metric"],
        "epoch": epoch,
        "left": cell_name(left),
        "right": cell_name(right),
        "left_variant": contrast.left,
        "right_variant": contrast.right,
        "asks": contrast.asks,
        "margin": contrast.margin or margin,
        "role": role,
        "n_left": len(one),
        "n_right": len(two),
        "collapsed_left": int(collapsed(one, epoch).sum()),
        "collapsed_right": int(collapsed(two, epoch).sum()),
        "difference": difference.value,
        "error": difference.error,
        "freedom": difference.freedom,
        "correlation": correlation,
    }


def one_sample(gaps: pd.Series, spread: Spread) -> Difference:
    """Return the mean of differences on the same seeds, with the spread to test it with."""
    return Difference(
        _mean(gaps), *summed((math.sqrt(spread.variance / len(gaps)), spread.freedom))
    )


def correlation_by_seed(left: pd.Series, right: pd.Series) -> float:
    """Return the correlation of two methods' scores over seeds; NaN if one of them has no spread.

    Pairing by seed makes the variance of a difference smaller by this share.
    """
    if len(left) < 3 or min(left.std(), right.std()) < NO_SPREAD:
        return math.nan
    return float(left.corr(right))


def _with_row_errors(rows: list[dict], errors: pd.DataFrame | None) -> pd.DataFrame:
    """Add to each row how far its difference depends on the validation rows."""
    table = pd.DataFrame(rows)
    if errors is None or errors.empty or table.empty:
        return table.assign(rows=math.nan, row_error=math.nan) if len(table) else table
    keys = [*SUBJECT, "epoch", "left_variant", "right_variant"]
    return table.merge(errors, on=keys, how="left", validate="one_to_one")


def _tested(table: pd.DataFrame) -> pd.DataFrame:
    """Test each row, for these validation rows and for the task, and adjust over its family."""
    if table.empty:
        return table
    here, task = [], []
    for row in table.itertuples():
        difference = Difference(row.difference, row.error, row.freedom)
        here.append(difference)
        known = row.role == "test" and row.row_error == row.row_error
        task.append(difference.beyond(row.row_error, row.rows - 1) if known else None)
    table = with_tests(table, here)
    return with_tests(table, task, "task_").drop(columns=["freedom", "row_error"])


def with_tests(
    table: pd.DataFrame, differences: Sequence[Difference | None], prefix: str = ""
) -> pd.DataFrame:
    """Add the tests of rows and their adjustment over the family: the rows of an epoch choice.

    Args:
        table: has the columns epoch, asks, margin and role; roles other than "test" are outside.
        differences: one for each row; None: not known.
        prefix: of the columns' names.

    Returns:
        The table with p (TOST's where equivalence is asked), p_holm, family (its number of tests),
        low and high. The interval has the confidence 1 - 0.05 / f, or 1 - 0.1 / f for equivalence,
        where f is the factor of Holm's correction. So it leaves out 0, or lies within the margin,
        exactly if p_holm is below 0.05. It covers the difference in 95 % of studies or more (90 %
        for equivalence); it is no joint statement on all rows. Outside of the family f is 1.
    """
    rows = list(zip(table.itertuples(), differences, strict=True))
    p = pd.Series([_p(row, found) for row, found in rows], index=table.index, dtype=float)
    p = p.where(table.role != "worth")
    inside = p.where(table.role == "test")
    family = inside.groupby(table.epoch)
    factors = family.transform(lambda part: pd.Series(holm_factors(part.tolist()), part.index))
    bounds = [
        _interval(row, found, factor)
        for (row, found), factor in zip(rows, factors.fillna(1.0), strict=True)
    ]
    made = {
        "p": p,
        "p_holm": family.transform(lambda part: holm(part.tolist())),
        "family": family.transform("count").where(inside.notna()),
        "low": [low for low, _ in bounds],
        "high": [high for _, high in bounds],
    }
    return table.assign(**{prefix + name: values for name, values in made.items()})


def _p(row, difference: Difference | None) -> float:
    if difference is None:
        return math.nan
    if row.asks == "equivalence":
        return difference.p_equivalent(row.margin)
    return difference.p()


def _interval(row, difference: Difference | None, factor: float) -> tuple[float, float]:
    if difference is None:
        return math.nan, math.nan
    sides = 2 if row.asks == "equivalence" else 1
    return difference.interval(1 - sides * SIGNIFICANCE / factor)


def finding(
    asks: str, difference: float, margin: float, p_holm: float, metric: str = "accuracy"
) -> str:
    """Say in words what an adjusted test of a metric shows; "" where nothing was tested."""
    if p_holm != p_holm:
        return ""
    if p_holm >= SIGNIFICANCE:
        return "open"
    if asks == "equivalence" and unit_of(metric) != "points":
        return f"equal within {margin:g} {unit_of(metric)}".strip()
    if asks == "equivalence":
        return f"equal within {100 * margin:g} point{'' if margin == 0.01 else 's'}"
    return "higher" if difference > 0 else "lower"


def task_aggregates(tidy: pd.DataFrame, contrasts: Sequence[Contrast] = ()) -> pd.DataFrame:
    """Compare methods over all tasks that have both of them, if there are several.

    Tasks that predict text are left out: their scores are no fractions that could be averaged with
    others'.

    Returns:
        A row per contrast of two variants, model and epoch choice: the number of tasks and the
        fewest runs, how many of all collapsed, the difference of interquartile means with its
        bootstrap interval (95 %, not adjusted).
    """
    rows = []
    fractions = tidy[tidy.metric.map(unit_of) == "points"]
    for model, runs in fractions.groupby("model", sort=False):
        found: dict[tuple[str, str], list[Pair]] = {}
        for _, part in runs.groupby("task", sort=False):
            cells = named_cells(part)
            here = pairs(cells, contrasts)
            roles = roles_of(here)
            for pair in here:
                names = (pair[0].left, pair[0].right)
                if roles[names] == "test" and min(len(pair[1][1]), len(pair[2][1])) > 1:
                    found.setdefault(names, []).append(pair)
        for same in found.values():
            for epoch in choices_of(runs) if len(same) > 1 else ():
                rows.append({"model": model, **_aggregate_row(same, epoch)})
    return pd.DataFrame(rows)


def _aggregate_row(same: list[Pair], epoch: str) -> dict:
    """Compare the two sides of one contrast over its tasks."""
    _, (left, _), (right, _) = same[0]
    lefts = [part[epoch].to_numpy() for _, (_, part), _ in same]
    rights = [part[epoch].to_numpy() for _, _, (_, part) in same]
    return {
        "epoch": epoch,
        "left": cell_name(left),
        "right": cell_name(right),
        "tasks": len(same),
        "n": min(map(len, [*lefts, *rights])),
        "collapsed": sum(
            int(collapsed(part, epoch).sum()) for _, *sides in same for _, part in sides
        ),
        **interquartile_difference(lefts, rights),
    }


def switch_effects(study: Study, tidy: pd.DataFrame, base: str) -> pd.DataFrame:
    """Compare each switch of an ablation with its base runs on the same seeds.

    The spread is that of the base's and all switches' runs of a task and model together, without
    what their seeds share (`shared_spreads`): all switches are compared with the same base runs, so
    that their differences are no independent estimates of it. The row "last epoch, not the best" is
    the base against itself: what choosing the epoch on the validation split is worth. It can't be
    better than 0, so it has no p, and a 95 % interval of its own.

    Returns:
        A row per task and switch (and epoch choice): mean difference (switch minus base), n, how
        many runs of the base and of the switch collapsed (collapsed_base, collapsed), the
        correlation by seed, p, and p_holm and the interval that belongs to it (`with_tests`).
    """
    rows = [
        ({"task": task, "model": model, **row}, difference)
        for (task, model), runs in tidy.groupby(SUBJECT, sort=False)
        for row, difference in _switch_rows(study, runs, runs[runs.label == base])
    ]
    if not rows:
        return pd.DataFrame()
    facts, differences = zip(*rows, strict=True)
    return with_tests(pd.DataFrame(facts), differences)


def _switch_rows(
    study: Study, runs: pd.DataFrame, base: pd.DataFrame
) -> list[tuple[dict, Difference]]:
    """Compare each switch of one task and model with the base, and the base's last epoch."""
    if len(base) < 2:
        return []
    rows, epochs = [], choices_of(runs)
    labels = ((switch, runs[runs.label == switch.label]) for switch in study.switches)
    sides = [(switch, _same_seeds(base, switched)) for switch, switched in labels]
    sides = [(switch, both) for switch, both in sides if len(both) > 1]
    spreads = {epoch: _switch_spreads(base, sides, epoch) for epoch in epochs}
    for place, (switch, both) in enumerate(sides):
        for epoch in epochs:
            (of_base, *of_switches), most = spreads[epoch]
            switched = Cell(_mean(both[f"{epoch}_right"]), len(both), of_switches[place])
            unswitched = Cell(_mean(both[f"{epoch}_left"]), len(both), of_base)
            difference = unpaired(switched, unswitched, most)
            row = _effect(switch.name, epoch, base, difference, len(both))
            row["collapsed"] = int(collapsed(runs[runs.label == switch.label], epoch).sum())
            row |= {"asks": switch.asks, "margin": study.margin or MARGIN, "role": "test"}
            row["correlation"] = correlation_by_seed(both[f"{epoch}_left"], both[f"{epoch}_right"])
            rows.append((row, difference))
    if "best" not in epochs:
        return rows
    gaps = base["last"] - base["best"]
    difference = one_sample(gaps, own_spread(gaps))
    row = _effect("last epoch, not the best", "best", base, difference, len(base))
    row |= {
        "asks": "difference",
        "margin": study.margin or MARGIN,
        "role": "worth",
        "correlation": math.nan,
    }
    return [*rows, (row, difference)]


def _switch_spreads(
    base: pd.DataFrame, sides: Sequence[tuple[Switch, pd.DataFrame]], epoch: str
) -> tuple[list[Spread], float]:
    """Return the spreads of the base and of each switch to test with, and the freedom of all."""
    own = base.set_index("seed")[epoch]
    switched = [both.set_index("seed")[f"{epoch}_right"] for _, both in sides]
    return shared_spreads([own, *switched], same_seeds=True)


def _same_seeds(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    """Set the runs of the same seeds side by side; their columns end in _left and _right."""
    return left.merge(right, on="seed", suffixes=("_left", "_right"), validate="one_to_one")


def _gaps(both: pd.DataFrame, epoch: str) -> pd.Series:
    return both[f"{epoch}_right"] - both[f"{epoch}_left"]


def _effect(switch: str, epoch: str, base: pd.DataFrame, difference: Difference, n: int) -> dict:
    return {
        "metric": base.metric.iloc[0],
        "switch": switch,
        "epoch": epoch,
        "base": _mean(base[epoch]),
        "n": n,
        "collapsed_base": int(collapsed(base, epoch).sum()),
        "collapsed": 0,
        "difference": difference.value,
    }
