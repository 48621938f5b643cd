"""A study's tables: the rows of each from the tidy runs, and its form for readers.

summary (scores over seeds), verdicts (beside published numbers), switches (of an ablation), pairs
(methods compared), aggregates (over tasks) and cost; and the table of published numbers beside each
other.
"""

import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd
from humanize import naturalsize

from loraudit.analysis.cells import first_choice, label_text
from loraudit.analysis.contrasts import (
    ROLES,
    finding,
    method_contrasts,
    switch_effects,
    task_aggregates,
)
from loraudit.analysis.cost import TASKS, cost
from loraudit.analysis.judging import telling
from loraudit.analysis.statistics import aggregate
from loraudit.analysis.trials import chosen_settings
from loraudit.analysis.verdicts import verdicts
from loraudit.base.files import write_atomic, write_text
from loraudit.base.named_code import resolve
from loraudit.report import units
from loraudit.report.formatting import (
    JUDGED,
    cell_text,
    interval,
    label_words,
    markdown,
    of_which,
    p_value,
    percent,
    points,
    shown_name,
    values_text,
)
from loraudit.report.table_registry import (
    READ_LATE,
    SECTION7,
    Table,
    early_tables,
    late_tables,
    read_by_tables,
)
from loraudit.studies.advice import is_untuned
from loraudit.studies.methods import METHODS
from loraudit.studies.reference import load_models, select
from loraudit.studies.spec import CHOICES
from loraudit.studies.study import BASE, Study


def write_tables(study: Study, source: Path, out: Path) -> None:
    """Make out/tables from the tidy runs of source: CSV for programs, Markdown for readers."""
    tables = early_tables()
    files = {name: source / "tidy" / f"{name}.parquet" for name in read_by_tables()}
    tidy = {name: pd.read_parquet(file) for name, file in files.items()}
    for name, table in tables.items():
        further = (tidy[part] for part in table.tidy)
        rows = resolve(table.make)(study, tidy["runs"], *further)
        _write(table, rows, study, out / "tables" / name)


def write_late_tables(study: Study, source: Path, out: Path, updates: Path | None = None) -> None:
    """Make the tables of out/tables that also need section 7's, where `updates` has them.

    Args:
        study: its runs all have results.
        source: has tidy/ with the collected tables.
        out: gets tables/.
        updates: has tidy/ with section 7's tables; None: as `source`.
    """
    files = {name: source / "tidy" / f"{name}.parquet" for name in READ_LATE}
    files |= {name: (updates or source) / "tidy" / f"{name}.parquet" for name in SECTION7}
    tidy = {name: pd.read_parquet(file) for name, file in files.items() if file.is_file()}
    for name, table in late_tables().items():
        rows = resolve(table.make)(study, tidy["runs"], tidy)
        _write(table, rows, study, out / "tables" / name)


def _write(table: Table, rows: pd.DataFrame, study: Study, stem: Path) -> None:
    write_atomic(stem.with_suffix(".csv"), partial(rows.to_csv, index=False))
    write_text(stem.with_suffix(".md"), markdown(readable(table, rows, study)))


def readable(table: Table, rows: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return a study's table as its readers see it; one without rows has no columns either.

    A table of scores has a further column where a row's model was trained on the data of its task
    before, or of one of its tasks. Claims and methods compared have no column on the choice of an
    epoch, and no rows that differ in it alone, where all runs have one epoch; of an untuned study,
    methods are found to be "higher, untuned".
    """
    if rows.empty:
        return rows
    no_choice = table.name in ("claims", "pairs", "aggregates") and one_epoch(study)
    if no_choice and table.name == "claims":
        rows = rows.assign(epoch="")  # its remarks name it too
    if no_choice and table.name == "aggregates":
        rows = rows[rows.epoch == first_choice(rows)]
    shown = resolve(table.readable)(rows)
    shown = shown.drop(columns="epoch") if no_choice else shown
    if table.name == "pairs" and is_untuned(study):
        found = [name for name in shown if name.endswith(("finding", " epoch"))]
        shown[found] = shown[found].replace(r"\b(higher|lower)$", r"\1, untuned", regex=True)
    told = [_trained_before(row, study) for row in rows.itertuples()] if table.scores else []
    return shown.assign(contaminated=told) if any(told) else shown


def one_epoch(study: Study) -> bool:
    """Tell whether all runs of a study have one epoch, so that none is chosen."""
    return all(run.spec.epochs == 1 for run in study.runs)


def _trained_before(row, study: Study) -> str:
    """Name those of a row's tasks that its model knows; a row without a task is of all tasks."""
    tasks = [
        known.task
        for known in study.contaminations
        if known.model == row.model and getattr(row, "task", known.task) == known.task
    ]
    return f"{row.model} was trained on data of {', '.join(tasks)} before" if tasks else ""


def summary_rows(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Summarise scores over the seeds of each cell."""
    return aggregate(runs)


def verdict_rows(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Set each cell beside the published numbers that the study names."""
    return verdicts(study, runs, select(study.compare), load_models())


def switch_rows(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Compare each switch of an ablation with the base."""
    return switch_effects(study, runs, BASE)


def contrast_rows(study: Study, runs: pd.DataFrame, row_errors: pd.DataFrame) -> pd.DataFrame:
    """Compare methods, on these validation rows and for the task."""
    return method_contrasts(runs, study.contrasts, study.margin, row_errors)


def aggregate_rows(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Compare methods over all tasks of a study that has several."""
    return task_aggregates(runs, study.contrasts)


def tuning_rows(study: Study, runs: pd.DataFrame, tuning: pd.DataFrame) -> pd.DataFrame:
    """Say which of the values that were tried each cell takes."""
    return chosen_settings(tuning)


def cost_rows(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """List what each cell costs."""
    return cost(runs)


def summary_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Turn `statistics.aggregate`'s rows into a table for readers: the scores, then the sizes.

    Choices of an epoch that gave the same scores in every row, as all do where there is one epoch,
    have their columns once.
    """
    columns: dict[str, list] = {**cell_columns(summary)}
    groups, metrics = _distinct_choices(summary), list(map(units.of_row, summary.itertuples()))
    for same in groups:
        name = "" if len(groups) == 1 < len(same) else f"{' and '.join(same)} epoch: "
        epoch, short = same[0], name.replace(" epoch", "")
        means, sds = summary[f"{epoch}_mean"], summary[f"{epoch}_sd"]
        sick = summary[f"{epoch}_collapsed"]  # missing where a task does not make the choice
        columns[f"{name}mean ± SD, %"] = [
            units.score(metric, mean, sd) if made else ""
            for metric, mean, sd, made in zip(metrics, means, sds, sick.notna(), strict=True)
        ]
        columns[f"{short}median"] = [
            units.score(metric, median) if made else ""
            for metric, median, made in zip(
                metrics, summary[f"{epoch}_median"], sick.notna(), strict=True
            )
        ]
        columns |= _sick_column(f"{short}of which collapsed", sick)
    columns |= {
        "n": list(summary.n),
        **_sick_column("of which unmoved", summary.unmoved),
        "adapter parameters": [f"{count:,}" for count in summary.parameters_adapter],
        "trainable": [f"{count:,}" for count in summary.parameters_trainable],
    }
    return pd.DataFrame(columns)


def _distinct_choices(summary: pd.DataFrame) -> list[list[str]]:
    """Group the choices of an epoch whose columns are the same in every row."""
    groups: list[tuple[pd.DataFrame, list[str]]] = []
    for choice in CHOICES:
        if f"{choice}_mean" not in summary:
            continue
        names = [f"{choice}_{part}" for part in ("mean", "sd", "median", "collapsed")]
        values = summary[names].set_axis(range(len(names)), axis=1)
        same = next((group for known, group in groups if known.equals(values)), None)
        if same is None:
            groups.append((values, [choice]))
        else:
            same.append(choice)
    return [group for _, group in groups]


def _sick_column(name: str, *counts: Iterable[float]) -> dict[str, list[str]]:
    """Return a column that counts sick runs, of two sides "1 and 0"; none where all are well."""
    rows = [
        [0 if pd.isna(count) else int(count) for count in row] for row in zip(*counts, strict=True)
    ]
    if not any(map(any, rows)):
        return {}
    return {name: [" and ".join(map(str, row)) if any(row) else "" for row in rows]}


def tuning_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn `trials.chosen_settings`' rows into a table for readers."""
    ratios = zip(rows.rate_ratio, rows.ratio_low, rows.ratio_high, strict=True)
    metrics = list(map(units.of_row, rows.itertuples()))
    columns = {
        **cell_columns(rows),
        "takes": [values_text(values) for values in rows.chosen],
        "score on selection rows: mean ± SD, %": [
            units.score(metric, mean, sd)
            for metric, mean, sd in zip(metrics, rows["mean"], rows.sd, strict=True)
        ],
        "seeds": list(rows.n),
        **_sick_column("of which collapsed", rows.collapsed),
        **_sick_column("of which diverged", rows.diverged),
        "of so many tried": list(rows.tried),
        **_diverging(rows),
        "lead, points": [units.difference(*one) for one in zip(metrics, rows.lead, strict=True)],
        "over": [values_text(values) for values in rows.runner_up],
        "at the edge": [label_text(edge).replace("_", " ") for edge in rows.at_edge],
        "rate / full's": [
            "" if ratio != ratio else f"{ratio:.3g} [{low:.3g}, {high:.3g}]"
            for ratio, low, high in ratios
        ],
    }
    return pd.DataFrame(columns)


def _diverging(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Return a column of the values whose runs diverged, and how many did; none where none did."""
    if not rows.all_diverged.any():
        return {}
    said = [
        f"{count} at {'; '.join(values_text(json.dumps(value)) for value in json.loads(text))}"
        if count
        else ""
        for count, text in zip(rows.all_diverged, rows.diverging, strict=True)
    ]
    return {"diverged (counted as the worst)": said}


def verdict_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Turn `verdicts.verdicts`' rows into a table for readers."""
    rows = list(verdicts.itertuples())
    judged = _judged_difference(rows)
    return pd.DataFrame(
        {
            **cell_columns(verdicts),
            "ours: mean, %": [f"{100 * row.mean:.1f}" for row in rows],
            "n": [row.n for row in rows],
            **_sick_column("of which collapsed", verdicts.collapsed),
            "published": [published_value(row) for row in rows],
            "source": [row.published for row in rows],
            **{name: judged.pop(name) for name in ("difference", "95 % interval")},
            "verdict": [worded(row) for row in rows],
            "metric": [f"{row.metric}, {row.epoch} epoch" for row in rows],
            **judged,
            "why": ["" if pd.isna(row.reason) else row.reason for row in rows],
        }
    )


def _judged_difference(rows: list) -> dict[str, list]:
    """Return the columns of a difference that has a verdict, and of what it could have shown."""
    return {
        "difference": [points(row.difference, JUDGED) for row in rows],
        "95 % interval": [interval(row.low, row.high, JUDGED) for row in rows],
        "90 % interval": [interval(row.low90, row.high90, JUDGED) for row in rows],
        "margin": ["" if pd.isna(row.margin) else f"{100 * row.margin:g}" for row in rows],
        "p different (Holm)": [p_value(row.p_holm) for row in rows],
        "p equivalent": [p_value(row.p_equivalent) for row in rows],
        "p beyond the margin (Holm)": [p_value(row.p_exceeds_holm) for row in rows],
        "chance of reproduced if equal": [
            "" if pd.isna(row.chance) else f"{100 * row.chance:.0f} %" for row in rows
        ],
        "smallest difference found (80 %)": [
            "" if pd.isna(row.smallest) else f"{100 * row.smallest:.1f}" for row in rows
        ],
    }


PROTOCOLS = {
    "another": " (another protocol)",
    "partly stated": " (its protocol is stated in part)",
    "not stated": " (its protocol is not stated)",
}
"""What a verdict's word is about, where it is not the number under its own protocol."""


def worded(row) -> str:
    """Write a verdict with what it is about, and of how many collapsed runs of ours."""
    sick = getattr(row, "collapsed", 0)  # published seeds are not known to have collapsed
    also = f", with {of_which(sick, row.n, 'runs collapsed')}" if sick else ""
    return row.verdict + PROTOCOLS.get(row.protocol, "") + also


def switch_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Turn `contrasts.switch_effects`' rows into a table for readers."""
    rows = list(effects.itertuples())
    return pd.DataFrame(
        {
            **_subject_columns(effects),
            "switch": [row.switch for row in rows],
            "epoch": [row.epoch for row in rows],
            "base, %": [units.score(units.of_row(row), row.base) for row in rows],
            "n": [row.n for row in rows],
            **_sick_column(
                "of which collapsed, base and switched", effects.collapsed_base, effects.collapsed
            ),
            **_tested_difference(effects),
            "correlation by seed": [_two_digits(row.correlation) for row in rows],
            "family": [_family(row) for row in rows],
        }
    )


def contrast_table(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Turn `contrasts.method_contrasts`' rows into a table for readers, a row per pair.

    Its columns are of the first choice of an epoch that was made; what the others gave stands
    behind them in a column each.
    """
    places = {choice: place for place, choice in enumerate(CHOICES)}
    ordered = contrasts.sort_values("epoch", key=lambda epochs: epochs.map(places), kind="stable")
    others, contrasts = ordered, ordered.drop_duplicates(PAIR).sort_index()
    rows = list(contrasts.itertuples())
    task = contrasts.assign(
        p_holm=contrasts.task_p_holm, low=contrasts.task_low, high=contrasts.task_high
    )
    columns = {
        **_subject_columns(contrasts),
        "pair": [f"{shown_name(row.left)} - {shown_name(row.right)}" for row in rows],
        **_tested_difference(contrasts),
        **_tested_difference(task, "task: "),
        "n": [_both(row.n_left, row.n_right) for row in rows],
        **_sick_column("of which collapsed", contrasts.collapsed_left, contrasts.collapsed_right),
        "epoch": [row.epoch for row in rows],
        **_other_choices(contrasts, others),
        "correlation by seed": [_two_digits(row.correlation) for row in rows],
        "family": [_family(row) for row in rows],
    }
    del columns["task: difference"], columns["task: asks"]
    shown = {name: values for name, values in columns.items() if any(map(str, values))}
    return pd.DataFrame(shown)


PAIR = ["task", "model", "left", "right", "asks", "margin"]
"""Columns in which the rows of one contrast and several choices of an epoch are equal."""


def _other_choices(first: pd.DataFrame, rows: pd.DataFrame) -> dict[str, list[str]]:
    """Return a column for each further choice of an epoch; none where all gave the same."""
    columns = {}
    shown = first[[*PAIR, "epoch"]].rename(columns={"epoch": "shown"})
    for choice in dict.fromkeys(rows.epoch):
        found = shown.merge(rows[rows.epoch == choice], on=PAIR, how="left", validate="one_to_one")
        own = found.shown == choice
        same = (found.difference.to_numpy() == first.difference.to_numpy()) & (
            found.low.fillna(0).to_numpy() == first.low.fillna(0).to_numpy()
        )
        if not (own | same | found.difference.isna()).all():
            columns[f"{choice} epoch"] = [
                "" if row.shown == choice or pd.isna(row.difference) else _in_short(row)
                for row in found.itertuples()
            ]
    return columns


def _in_short(row) -> str:
    n = min(row.n_left, row.n_right)
    said, metric = found_text(row), units.of_row(row)
    span = units.interval_or_why(metric, row.low, row.high, n)
    text = f"{units.difference(metric, row.difference)} {span}"
    return f"{text}{f', {said}' if said else ''}"


def aggregate_table(aggregates: pd.DataFrame) -> pd.DataFrame:
    """Turn `contrasts.task_aggregates`' rows into a table for readers."""
    rows = list(aggregates.itertuples())
    several = aggregates.model.nunique() > 1
    return pd.DataFrame(
        {
            **({"model": list(aggregates.model)} if several else {}),
            "pair": [f"{shown_name(row.left)} - {shown_name(row.right)}" for row in rows],
            "epoch": [row.epoch for row in rows],
            "tasks": [row.tasks for row in rows],
            "n": [row.n for row in rows],
            **_sick_column("of all runs collapsed", aggregates.collapsed),
            "difference of interquartile means": [points(row.difference) for row in rows],
            "95 % interval": [interval(row.low, row.high) for row in rows],
        }
    )


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Turn `cost.cost`'s rows into a table for readers."""
    rows = list(costs.itertuples())
    table = {
        **cell_columns(costs),
        "adapter": [f"{row.parameters_adapter:,}" for row in rows],
        "head": [f"{row.parameters_head:,}" for row in rows],
        "trainable": [f"{row.parameters_trainable:,}" for row in rows],
        "share of the model": [
            f"{100 * row.parameters_trainable / row.parameters_model:.2f} %" for row in rows
        ],
        "disk per task": [naturalsize(row.bytes_task) for row in rows],
        f"disk for {TASKS} tasks": [naturalsize(row.bytes_tasks) for row in rows],
        "peak memory, MiB": [f"{row.peak_mib:,.0f}" for row in rows],
        "on the GPU, MiB": [
            "" if pd.isna(row.device_mib) else f"{row.device_mib:,.0f}" for row in rows
        ],
        "CPU time per step, ms": [
            _milliseconds(row.step, row.step_sd) if row.clock == "CPU" else "" for row in rows
        ],
        "time per step, ms": [_milliseconds(row.seconds_step) for row in rows],
        "rows per second": [f"{row.rows_second:.1f}" for row in rows],
        "seconds per run": [f"{row.seconds_run:.0f}" for row in rows],
        "padded / real tokens": [f"{row.padded_share:.2f}" for row in rows],
    }
    shown = {name: values for name, values in table.items() if any(map(str, values))}
    return pd.DataFrame(shown)


def _milliseconds(mean: float, sd: float = math.nan) -> str:
    """Write a time in milliseconds; nothing for a fit, which takes no steps."""
    if mean != mean:
        return ""
    return f"{1000 * mean:.0f}" + (f" ± {1000 * sd:.0f}" if sd == sd else "")


def published_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Turn `judging.published_verdicts`' rows into a table for readers.

    Beside the task it has those columns of a cell that tell its rows apart.
    """
    rows = list(verdicts.itertuples())
    return pd.DataFrame(
        {
            "task": [row.task for row in rows],
            **{name: map(cell_text, verdicts[name]) for name in telling(verdicts)},
            "source": [row.ours for row in rows],
            "n": [row.n for row in rows],
            "mean ± SD, %": [percent(row.mean, row.sd, digits=2) for row in rows],
            "median": [f"{100 * row.median:.2f}" for row in rows],
            "beside": [row.published for row in rows],
            "published": [
                percent(row.published_value, row.published_sd) if row.published else ""
                for row in rows
            ],
            **_judged_difference(rows),
            "verdict": [worded(row) for row in rows],
            "remarks": [row.reason for row in rows],
        }
    )


def published_value(row) -> str:
    """Write a published number with its ± (as an sd), its n and its statistic."""
    text = percent(row.published_value, row.published_sd)
    facts = [] if pd.isna(row.published_n) else [f"n={row.published_n:g}"]
    return f"{text} ({', '.join([*facts, row.published_statistic])})"


def _subject_columns(rows: pd.DataFrame) -> dict[str, list]:
    """Return the task, and the model where there are several."""
    several = rows.model.nunique() > 1
    return {"task": list(rows.task), **({"model": list(rows.model)} if several else {})}


def cell_columns(rows: pd.DataFrame) -> dict[str, list]:
    """Return the columns that name a cell, its task and model with it."""
    return {**_subject_columns(rows), **name_columns(rows)}


def name_columns(rows: pd.DataFrame) -> dict[str, list]:
    """Return the columns that name a cell of a task and model."""
    columns = {
        "method": [METHODS[method].label for method in rows.method],
        "rank": ["" if rank != rank else f"{rank:g}" for rank in rows["rank"]],
        "targets": ["" if pd.isna(name) else name for name in rows.targets],
    }
    labels = [label_words(label_text(label)) for label in rows.label]
    return {**columns, **({"variant": labels} if any(labels) else {})}


def _tested_difference(table: pd.DataFrame, prefix: str = "") -> dict[str, list]:
    """Return the columns of differences that `contrasts.with_tests` has tested."""
    rows = list(table.itertuples())
    asked = {"difference": "differ?", "equivalence": "equal?"}
    columns: dict[str, list] = {
        "asks": [asked[row.asks] for row in rows],
        "difference": [units.difference(units.of_row(row), row.difference) for row in rows],
        "interval": [
            units.interval_or_why(units.of_row(row), row.low, row.high, fewest(row)) for row in rows
        ],
        "p (Holm)": [p_value(row.p_holm) for row in rows],
        "finding": [found_text(row) for row in rows],
    }
    return {prefix + name: values for name, values in columns.items()}


def found_text(row) -> str:
    """Say in words what an adjusted test of a difference shows."""
    return finding(row.asks, row.difference, row.margin, row.p_holm, units.of_row(row))


def fewest(row) -> float:
    """Return the seeds of the smaller side of a difference."""
    return row.n if hasattr(row, "n") else min(row.n_left, row.n_right)


def _family(row) -> str:
    """Say to which tests a row's p and interval are adjusted, or why to none."""
    if row.role != "test":
        return f"outside: {ROLES[row.role]}"
    if pd.isna(row.family):
        return "not tested"
    return "1 test" if row.family == 1 else f"{row.family:.0f} tests"


def _both(left: int, right: int) -> str:
    return f"{left}" if left == right else f"{left} and {right}"


def _two_digits(value: float) -> str:
    return "" if value != value else f"{value:.2f}"
