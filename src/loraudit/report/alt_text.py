"""What a figure shows, in a sentence or two with its numbers, from the rows that it draws.

For readers who do not see the figure: the `alt` of the report's images.
"""

from collections.abc import Callable, Iterable

import pandas as pd

from loraudit.analysis.comparisons import cell_name
from loraudit.analysis.cost import PRICES, TASKS, without_twins
from loraudit.report.figures import CELL
from loraudit.report.tables import METHOD_NAMES, interval, points

MOST = 8
"""Items that a sentence lists; it counts the others."""


def describe(name: str, rows: pd.DataFrame) -> str:
    """Say what the figure of that name shows of its rows (`gallery.DRAWN`)."""
    if rows.empty:
        return "Empty figure: the study has no rows for it."
    return DESCRIBE[name](rows)


def listed(items: Iterable[str], most: int = MOST) -> str:
    """Join items, and count those beyond the first few."""
    items = list(items)
    more = len(items) - most
    return "; ".join(items[:most]) + (f"; and {more} more in the CSV" if more > 0 else "")


def _subjects(rows: pd.DataFrame, say: Callable[[pd.DataFrame], str]) -> str:
    """Say something of every task and model, the first three of them."""
    parts = [
        f"{task}, {model}: {say(part)}"
        for (task, model), part in rows.groupby(["task", "model"], sort=False)
    ]
    return listed(parts, 3) + "."


def _series(rows: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Split a score figure's rows into its lines; PEFT's twins of ours are left out."""
    for (method, targets, label), part in without_twins(rows).groupby(
        ["method", "targets", "label"], dropna=False, sort=False
    ):
        if method == "published":
            yield f"published {label}", part
        else:
            names = [METHOD_NAMES[method], targets, label]
            yield " ".join(str(name) for name in names if name and not pd.isna(name)), part


def _scores(rows: pd.DataFrame, x: str, at: str) -> str:
    """Say each line's last-epoch means (published numbers: whichever epoch they are of)."""

    def say(part: pd.DataFrame) -> str:
        shown = []
        for name, line in _series(part):
            score = line["last"].fillna(line.best)
            means = score.groupby(line[x], dropna=False).mean()
            values = [
                f"{100 * mean:.1f}" + ("" if pd.isna(place) else at.format(f"{place:,.0f}"))
                for place, mean in means.items()
            ]
            shown.append(f"{name} {', '.join(values)}")
        return listed(shown, 6)

    return f"Mean scores of the last epoch in percent. {_subjects(rows, say)}"


def _verdicts(rows: pd.DataFrame) -> str:
    rows = rows[rows.verdict != "not comparable"]
    if rows.empty:
        return "Empty: no cell of this study can be compared with a published number."
    counts = ", ".join(f"{n} {word}" for word, n in rows.verdict.value_counts().items())
    shown = [
        f"{row['task']} {cell_name(row)} {points(row['difference'])} "
        f"{interval(row['low'], row['high'])} {row['verdict']}"
        for row in rows.to_dict("records")
    ]
    return f"Differences to published numbers in points, {counts}. {listed(shown)}."


def _switches(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        best = part[part.epoch == "best"]
        found = best.itertuples()
        return listed(f"{r.switch} {points(r.difference)} {interval(r.low, r.high)}" for r in found)

    return f"Switched minus base, best epoch, in points with 95 % interval. {_subjects(rows, say)}"


def _learning_curves(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        shown = []
        for _, line in part.groupby(CELL[2:], dropna=False, sort=False):
            means = line.groupby("epoch").score.mean()
            ends = f"{100 * means.iloc[0]:.1f} to {100 * means.iloc[-1]:.1f}"
            shown.append(f"{cell_name(line.iloc[0].to_dict())} {ends}")
        return listed(shown, 6)

    return (
        f"Validation score in percent, first to last epoch, mean of seeds. {_subjects(rows, say)}"
    )


def _span(part: pd.DataFrame, column: str, unit: float = 1) -> str:
    """Say the smallest and largest value with their cells."""
    cells = part.to_dict("records")
    low, high = (pick(cells, key=lambda cell: cell[column]) for pick in (min, max))
    return " to ".join(f"{cell[column] / unit:,.0f} ({cell_name(cell)})" for cell in (low, high))


def _cost(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        return (
            f"disk for {TASKS} tasks {_span(part, 'bytes_tasks', 1e6)} MB, peak memory "
            f"{_span(part, 'peak_mib')} MiB, time per step {_span(part, 'seconds_step', 1e-3)} ms"
        )

    return f"Cost from the cheapest to the dearest cell. {_subjects(rows, say)}"


def _pareto(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        fronts = []
        for price, name in PRICES.items():
            front = part[part[f"front_{price}"]].sort_values(price).to_dict("records")
            cells = [f"{cell_name(cell)} ({100 * cell['last_mean']:.1f} %)" for cell in front]
            fronts.append(f"by {name} {', '.join(cells)}")
        return listed(fronts)

    return f"Cells that no other beats in score and price. {_subjects(rows, say)}"


def _crosscheck(rows: pd.DataFrame) -> str:
    parts = []
    for dtype, part in rows.groupby("dtype", sort=False):
        worst = part.loc[part.difference.idxmax()]
        zero = int((part.difference == 0).sum())
        parts.append(
            f"{dtype}: {zero} of {len(part)} checks differ by exactly 0, the largest difference is "
            f"{worst.difference:.2g} ({worst.check}; tolerance {worst.tolerance:.2g})"
        )
    return f"Largest difference per check. {listed(parts)}."


def _spectra(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        grid = part.pivot(index=["layer", "matrix"], columns="index", values="singular_value")
        text = f"largest value {grid[1].min():.2g} to {grid[1].max():.2g}"
        if 2 in grid and grid[1].any():
            text += f", the second in the median {(grid[2] / grid[1]).median():.2g} of the first"
        return text

    return f"Singular values of the update over layers and matrices. {_subjects(rows, say)}"


def _stable_rank(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        means = part.groupby(["matrix", "layer"]).stable_rank.mean().dropna()
        if means.empty:
            return "not defined, no adapter has moved"
        places = (("lowest", means.idxmin()), ("highest", means.idxmax()))
        shown = [f"{word} {means[at]:.2f} in {at[0]} of layer {at[1]}" for word, at in places]
        return ", ".join(shown)

    return f"Stable rank, mean over cells and seeds. {_subjects(rows, say)}"


def _amplification(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        middle = part.median(numeric_only=True)
        return (
            f"the update's norm {middle.update_norm:.2g}, W in its own directions "
            f"{middle.projected_weight:.2g}, in the update's {middle.projected_update:.2g}, in "
            f"random ones {middle.projected_random:.2g}"
        )

    return f"Median Frobenius norms over layers and matrices. {_subjects(rows, say)}"


def _subspaces(rows: pd.DataFrame) -> str:
    def largest(part: pd.DataFrame) -> str:
        top = part.loc[part.phi.idxmax()]
        return f"{top.phi:.2g} ({top.matrix}, layer {top.layer}, i={top.i}, j={top.j})"

    control = rows.control.astype(bool)
    text = f"Similarity of directions, largest phi {largest(rows[~control])}"
    return (
        f"{text}; of random directions {largest(rows[control])}." if control.any() else f"{text}."
    )


def _bits(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        shown = []
        for name, line in part.groupby("line", sort=False):
            means = line.groupby("base_bits", dropna=False)["last"].mean()
            at = ["full precision" if bits != bits else f"{bits:g} bits" for bits in means.index]
            shown.append(
                f"{name} "
                + ", ".join(f"{100 * m:.1f} at {a}" for m, a in zip(means, at, strict=True))
            )
        return listed(shown, 6)

    return f"Mean scores of the last epoch in percent. {_subjects(rows, say)}"


def _ranks(rows: pd.DataFrame) -> str:
    def say(part: pd.DataFrame) -> str:
        shown = []
        for _, cell in part.groupby(CELL[2:], dropna=False, sort=False):
            means = cell[cell.step == cell.step.max()].groupby("matrix").in_use.mean()
            ends = ", ".join(f"{matrix} {mean:.1f}" for matrix, mean in means.items())
            shown.append(f"{cell_name(cell.iloc[0].to_dict())} {ends}")
        return listed(shown, 6)

    return f"Mean rank per matrix after the last step. {_subjects(rows, say)}"


DESCRIBE: dict[str, Callable[[pd.DataFrame], str]] = {
    "verdicts": _verdicts,
    "switches": _switches,
    "score_vs_rank": lambda rows: _scores(rows, "rank", " at r={}"),
    "score_vs_parameters": lambda rows: _scores(
        rows, "parameters_trainable", " with {} parameters"
    ),
    "score_vs_rows": lambda rows: _scores(rows, "rows_train", " on {} rows"),
    "score_vs_bits": _bits,
    "learning_curves": _learning_curves,
    "ranks": _ranks,
    "cost": _cost,
    "pareto": _pareto,
    "crosscheck": _crosscheck,
    "spectra": _spectra,
    "stable_rank": _stable_rank,
    "amplification": _amplification,
    "subspace_ranks": _subspaces,
    "subspace_seeds": _subspaces,
    "subspace_weights": _subspaces,
}
