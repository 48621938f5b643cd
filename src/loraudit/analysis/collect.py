"""A study's tidy tables: a row per run, two twins, epoch, layer's rank, and pair of methods."""

import csv
import functools
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from loraudit.analysis import contrasts
from loraudit.analysis.cells import CELL, SCORED_CELL, SUBJECT, cell_of, choices_of
from loraudit.analysis.resampling import resampled_scores, row_weights
from loraudit.analysis.statistics import agreement, mcnemar, same_rows
from loraudit.analysis.tidy_files import write_tidy
from loraudit.base.errors import UserError
from loraudit.base.files import read_json, write_atomic
from loraudit.base.progress import progress
from loraudit.studies.entries import FolderSource, place_of
from loraudit.studies.names import cell_id, score_name
from loraudit.studies.paths import training_log
from loraudit.studies.record import Train, read_record, selection_score
from loraudit.studies.spec import CHOICES
from loraudit.studies.study import Run, Study


def collected(study: Study, cells: Iterable[str], folder: Path) -> dict[str, pd.DataFrame]:
    """Make a study's tidy tables (`table_registry.TIDY`) from its folder.

    Args:
        study: the runs to collect.
        cells: the cross-checks to collect.
        folder: the study's folder, with runs/, crosscheck/ and, where the study has such jobs,
            forgetting/ and language_loss/.

    Raises:
        UserError: a record that is incomplete, was changed, or was made from another spec.
    """
    checks = [
        {"cell": cell, **row}
        for cell in cells
        for row in read_json(folder / "crosscheck" / f"{cell}.json")
    ]
    runs = tidy(study, folder / "runs")
    runs = runs.assign(majority=majority_scores(runs, folder / "runs"))
    return {
        "runs": runs,
        "crosscheck": pd.DataFrame(checks),
        "twins": pd.DataFrame(twins(study, folder / "runs")),
        "history": history(study, folder / "runs"),
        "ranks": ranks(study, folder / "runs"),
        "tuning": tuning(study, folder / "runs"),
        "row_errors": row_errors(study, runs, folder / "runs"),
        "forgetting": forgetting(study, folder / "forgetting"),
        "language_loss": language_loss(study, folder / "language_loss"),
    }


def tidy(study: Study, folder: Path) -> pd.DataFrame:
    """Read all records of a study into one row per run.

    Raises:
        UserError: a record that is incomplete or was made from another spec.
    """
    runs = progress(study.runs, len(study.runs), "read records")
    return pd.DataFrame([_tidy_row(run, Path(folder) / run.id) for run in runs])


def majority_scores(runs: pd.DataFrame, folder: Path) -> pd.Series:
    """Return what answering every validation row with the most frequent class scores, per run.

    Args:
        runs: as `tidy` returns them.
        folder: has the runs' folders. Runs of one task with as many rows have the same ones.

    Returns:
        The score by the run's headline metric; NaN where labels are no classes.
    """
    scores = pd.Series(math.nan, runs.index)
    by = ["task", "metric", "rows_validation"]
    for (_, metric, _), part in runs.groupby(by, sort=False):
        if metric in OF_CLASSES:
            file = folder / part.run.iloc[0] / "predictions.parquet"
            table = pd.read_parquet(file, columns=["split", "epoch", "label"])
            table = table[table.split == "validation"]
            labels = table.label[table.epoch == table.epoch.max()].to_numpy()
            answers = np.full(len(labels), np.bincount(labels.astype(int)).argmax())
            once = np.ones((1, len(labels)))
            scores[part.index] = resampled_scores(labels, answers, once, metric)[0]
    return scores


OF_CLASSES = ("accuracy", "f1", "matthews")
"""Metrics of tasks whose labels are classes."""


def write_collected(study: Study, cells: Iterable[str], source: Path, out: Path) -> None:
    """Write the tidy tables (`collected`, from `source`) and all records to out/tidy.

    The records are those of the runs that tune too.
    """
    for name, table in collected(study, cells, source).items():
        write_tidy(table, out / "tidy" / name)
    records = (read_json(source / "runs" / run.id / "record.json") for run in study.all_runs)
    write_atomic(out / "tidy" / "records.jsonl", lambda path: _write_lines(path, records))


def _write_lines(path: Path, records: Iterable[dict]) -> None:
    """Write one line of JSON per record, one record at a time."""
    with open(path, "w") as file:
        file.writelines(f"{json.dumps(record)}\n" for record in records)


def complete(study: Study, folder: Path) -> tuple[Study, list[str]]:
    """Return the study with the runs that have a result of its spec, and the cross-checks made."""
    runs, tuning = (
        tuple(run for run in part if not _lacks(run, folder / "runs" / run.id))
        for part in (study.runs, study.tuning)
    )
    checked = [c for c in study.cells() if (folder / "crosscheck" / f"{c}.json").is_file()]
    return study.model_copy(update={"runs": runs, "tuning": tuning}), checked


def _lacks(run: Run, folder: Path) -> str:
    """Say why a run has no result that counts; "" if it has one."""
    files = ("record.json", "history.csv", "predictions.parquet")
    if not all((folder / name).is_file() for name in files):
        return "no result"
    try:
        if run.spec.saves:
            _tidy_row(run, folder)
        elif read_record(folder / "record.json").spec != run.spec:
            return "made from another spec"
    except UserError as error:
        return str(error)
    trial = _missing_trial(run, folder.parents[3])
    return f"waits for {trial}, which tunes it" if trial else ""


FORGETTING = [
    *("run", *CELL, "seed", "earlier", "earlier_task", "distance", "metric", "headline"),
    *("before", "after", "forgotten"),
]


LANGUAGE = [
    *("run", *CELL, "seed", "text", "kind", "rows", "tokens"),
    *("before", "after", "rise", "why"),
]


def forgetting(study: Study, folder: Path) -> pd.DataFrame:
    """Stack what runs that started warm have forgotten (training/forgetting.py), where it is known.

    Returns a row per run, earlier run of its chain, and metric: the columns of the run's cell, the
    earlier run and its task, how many runs ago it was, the score before and after this run, and by
    how much it has become worse.
    """
    return _stacked([run for run in study.runs if run.spec.warm_start], folder, FORGETTING)


def language_loss(study: Study, folder: Path) -> pd.DataFrame:
    """Stack what runs did to their base as a language model (training/language_loss.py).

    Returns a row per run and text, where it is known: the columns of the run's cell, the task whose
    text was read, the kind of model ("" without a head), how many rows and tokens, the loss before
    and after in nats per token, its rise, and why there is none.
    """
    found = _stacked(study.language_runs(), folder, LANGUAGE)
    words = found[["kind", "why"]].astype(object)
    return found.assign(**{name: words[name].fillna("") for name in words})


def _stacked(runs: Iterable[Run], folder: Path, columns: list[str]) -> pd.DataFrame:
    """Stack the files that jobs beside the runs have written, with the columns of the runs' cells.

    Args:
        runs: those that have such a job; one without a file is left out.
        folder: of the jobs' files, <run>.csv.
        columns: of the table.
    """
    tables = [pd.DataFrame(columns=columns)]
    for run in runs:
        file = Path(folder) / f"{run.id}.csv"
        if file.is_file():
            cell = {**cell_of(run), "seed": run.spec.seed}
            tables.append(pd.read_csv(file).assign(**cell)[columns])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def _missing_trial(run: Run, runs: Path) -> str:
    """Return the first run that tries a value for this one and has no record; "" if all have."""
    trials = run.spec.tuned.runs if run.spec.tuned else ()
    return next((t for t in trials if not (runs / t / "record.json").is_file()), "")


def missing(
    planned: Study, study: Study, cells: list[str], folder: Path, logs: Path
) -> pd.DataFrame:
    """List what is planned and not there: what it is, its name, and what is known of it.

    What is known comes from its log (`logs/train`, `logs/crosscheck`): a job that was started and
    has left nothing is running, was stopped, or failed; the end of the log says more.
    """
    there = {run.id for run in study.all_runs}
    rows = []
    for run in (run for run in planned.all_runs if run.id not in there):
        known = _lacks(run, folder / "runs" / run.id)
        if known == "no result":
            known = _last_words(training_log(logs, run.id))
            if known == "not started" and (trial := _missing_trial(run, folder / "runs")):
                known = (
                    f"waits for {trial}, which tunes it: {_last_words(training_log(logs, trial))}"
                )
        rows.append(("run", run.id, known))
    for cell in planned.cells():
        if cell not in cells:
            rows.append(("cross-check", cell, _last_words(logs / "crosscheck" / f"{cell}.log")))
    return pd.DataFrame(rows, columns=["what", "name", "known"])


def _last_words(log: Path) -> str:
    """Return a log's last line that reports an error, else its last line."""
    if not log.is_file():
        return "not started"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return ": ".join(["started, no result", *(errors or lines)[-1:]])


def history(study: Study, folder: Path) -> pd.DataFrame:
    """Stack every run's scores per epoch: run, a cell's columns, seed, metric, epoch, loss, score.

    The score is of the rows that `split` names: validation, or the selection rows of a run that
    scores the validation rows at chosen epochs only. It is NaN at epochs that were not scored: all
    but the last of a run that scores that one only. `collapsed` tells of the epochs that the run
    reports whether it had collapsed there.
    """
    rows = []
    for run in study.runs:
        split = "selection" if run.spec.validate_epochs == "chosen" else "validation"
        name = score_name(run.spec.task.headline, split)
        train = read_record(Path(folder) / run.id / "record.json").train
        sick = {train.epochs[choice].epoch for choice in train.collapsed}
        with open(Path(folder) / run.id / "history.csv", newline="") as file:
            for line in csv.DictReader(file):
                epoch, values = int(line["epoch"]), (line["train_loss"], line[name])
                counts = run.id, split, epoch in sick, epoch, int(line["step"])
                rows.append((*counts, *map(float, values)))
    names = ["run", "split", "collapsed", "epoch", "step", "train_loss", "score"]
    epochs = pd.DataFrame(rows, columns=names)
    cells = [
        {
            "run": run.id,
            **cell_of(run),
            "seed": run.spec.seed,
            "metric": run.spec.task.headline,
        }
        for run in study.runs
    ]
    return pd.DataFrame(cells).merge(epochs, on="run", validate="one_to_many")


RANKS = ["run", *CELL, "seed", "step", "layer", "matrix", "in_use"]


def ranks(study: Study, folder: Path) -> pd.DataFrame:
    """Stack the ranks in use (ranks.csv) of the runs that move them or share them out.

    Returns a row per run, layer (a number), matrix, and step at which the run's ranks moved; the
    run's last step repeats what held then.
    """
    tables = [pd.DataFrame(columns=RANKS)]
    for run in study.runs:
        file = Path(folder) / run.id / "ranks.csv"
        if not run.spec.uneven_ranks or not file.is_file():
            continue
        moves = pd.read_csv(file)
        last = pd.read_csv(file.with_name("history.csv")).step.max()
        if moves.step.max() < last:
            moves = pd.concat([moves, moves[moves.step == moves.step.max()].assign(step=last)])
        places = [place_of(name, run.spec.model.modules) for name in moves.layer]
        cell = {"run": run.id, **cell_of(run), "seed": run.spec.seed}
        layers, matrices = zip(*places, strict=True)
        moves = moves.rename(columns={"rank": "in_use"})
        tables.append(moves.assign(**cell, layer=layers, matrix=matrices)[RANKS])
    return pd.concat(tables[1:] or tables, ignore_index=True)


TUNING = [
    *(*SCORED_CELL, "seed", "values", "learning_rate", "score", "epoch", "collapsed"),
    *("diverged", "chosen", "at_edge"),
]


def tuning(study: Study, folder: Path) -> pd.DataFrame:
    """List what each run that tunes scored on the selection rows, and whether it was chosen.

    Returns a row per cell of the study, combination of values, and seed; `values` is a JSON
    object, `learning_rate` stands beside it for figures. A run that diverged has no score.
    """
    rows, cells = [], set()
    trial_record = functools.cache(lambda name: read_record(Path(folder) / name / "record.json"))
    for run in study.runs:
        name = run.id.rpartition("/")[0]
        if run.spec.tuned is None or name in cells:
            continue
        cells.add(name)
        made = read_record(Path(folder) / run.id / "record.json").tuning
        for candidate in run.spec.tuned.candidates:
            chosen = made is not None and made.chosen == candidate.values
            for trial in candidate.runs:
                record = trial_record(trial)  # twins share it
                fields = {
                    "metric": run.spec.task.headline,
                    "seed": record.spec.seed,
                    "values": json.dumps(candidate.values),
                    "learning_rate": record.spec.learning_rate,
                    "score": _number(selection_score(record)),
                    "epoch": _selected_epoch(record.train),
                    "collapsed": "selected" in record.train.collapsed,
                    "diverged": record.train.diverged is not None,
                    "chosen": chosen,
                    "at_edge": ", ".join(made.at_edge) if made and chosen else "",
                }
                rows.append({**cell_of(run), **fields})
    return pd.DataFrame(rows, columns=TUNING)


def _selected_epoch(train: Train) -> float:
    """Return the epoch that a run's selection rows chose; NaN of one that diverged."""
    return math.nan if train.diverged is not None else train.epochs["selected"].epoch


def twins(study: Study, folder: Path) -> list[dict]:
    """Compare the runs that differ in lora or peft only, on their last epochs' rows.

    Returns a row per two twins: share of equal predictions, largest difference of a logit, rows
    that one alone got right and the exact McNemar p (classification only).
    """
    twin_runs: dict[tuple, dict[str, str]] = {}
    for run in study.runs:
        if run.spec.twins:
            cell = cell_id(run.spec, run.label)
            twin_runs.setdefault((cell, run.spec.seed), {})[run.spec.method] = run.id
    rows = []
    for (cell, seed), ids in progress(twin_runs.items(), len(twin_runs), "compare twins"):
        if len(ids) == 2:
            ours, peft = (
                pd.read_parquet(Path(folder) / ids[method] / "predictions.parquet")
                for method in ("lora", "peft")
            )
            ours, peft = same_rows(ours, peft)
            row = {"cell": cell, "seed": seed, **agreement(ours, peft)}
            if "logit_1" in ours:
                row |= _mcnemar(ours, peft)
            rows.append(row)
    return rows


def _mcnemar(left: pd.DataFrame, right: pd.DataFrame) -> dict[str, float]:
    test = mcnemar(left.prediction == left.label, right.prediction == right.label)
    names = {"only_left": "only_ours_right", "only_right": "only_peft_right", "p": "mcnemar_p"}
    return {names[key]: value for key, value in test.items()}


ROW_ERRORS = [*SUBJECT, "epoch", "left_variant", "right_variant", "rows", "row_error"]


def row_errors(study: Study, runs: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Say how far the difference of two methods depends on which validation rows there are.

    Both methods' runs are scored on the same resamples of the rows (`resampling`), for the pairs
    that the table of contrasts has.

    Args:
        runs: as `tidy` returns them.
        folder: has the runs' folders.

    Returns:
        A row per task, model, epoch choice and pair of variants: the number of rows, and the
        standard deviation over resamples of the difference of the two means over seeds. Pairs that
        were scored on different rows are left out, and so are resamples on which a run's score is
        undefined; where one of its runs has no score at all, a pair's deviation is NaN.
    """
    found = []
    for (task, model), part in runs.groupby(SUBJECT, sort=False):
        cells = contrasts.named_cells(part)
        chosen = [(p.left, p.right) for p, _, _ in contrasts.pairs(cells, study.contrasts)]
        needed = set(itertools.chain(*chosen))
        epochs = choices_of(part)
        means = {
            cell["variant"]: _resampled_means(own, epochs, folder)
            for cell, own in progress(cells, len(cells), f"resample the rows of {task}")
            if cell["variant"] in needed
        }
        for epoch in epochs:
            for left, right in chosen:
                (rows, one), (other, two) = means[left][epoch], means[right][epoch]
                if len(rows) and np.array_equal(rows, other):
                    gaps = (one - two)[~np.isnan(one - two)]
                    error = float(gaps.std(ddof=1)) if len(gaps) > 1 else math.nan
                    found.append((task, model, epoch, left, right, len(rows), error))
    return pd.DataFrame(found, columns=ROW_ERRORS)


def _resampled_means(
    runs: pd.DataFrame, epochs: list[str], folder: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return a cell's validation rows, and the mean over its runs of their score on each resample.

    They are given for each epoch choice. The rows are empty if its runs were scored on different
    ones.
    """
    kept = dict.fromkeys(epochs, np.array([]))
    scores: dict[str, list[np.ndarray]] = {epoch: [] for epoch in epochs}
    differ: set[str] = set()
    columns = ["split", "epoch", "row", "label", "prediction"]
    for run in runs.itertuples():
        table = pd.read_parquet(folder / run.run / "predictions.parquet", columns=columns)
        table = table[table.split == "validation"].sort_values("row")
        for epoch in epochs:
            own = table[table.epoch == getattr(run, f"{epoch}_epoch")]
            rows = own.row.to_numpy()
            if scores[epoch] and not np.array_equal(rows, kept[epoch]):
                differ.add(epoch)
                continue
            kept[epoch], weights = rows, row_weights(len(rows))
            values = own.label.to_numpy(), own.prediction.to_numpy()
            scores[epoch].append(resampled_scores(*values, weights, run.metric))
    nothing = np.array([]), np.array([])
    return {
        epoch: nothing if epoch in differ else (kept[epoch], np.mean(scores[epoch], axis=0))
        for epoch in epochs
    }


def _number(score: float | None) -> float:
    """Return a record's score as a table has it: NaN where it is undefined."""
    return math.nan if score is None else score


def _chosen_scores(train: Train, headline: str) -> dict:
    """Return the columns of each choice of an epoch: headline, epoch, all metrics; None if unmade.

    The headline stands under the choice's own name.
    """
    row: dict = {}
    for choice in CHOICES:
        chosen = train.epochs.get(choice)
        row[choice] = _number(chosen.scores.get(headline)) if chosen else None
        row[f"{choice}_epoch"] = chosen.epoch if chosen else None
        row[f"{choice}_collapsed"] = choice in train.collapsed if chosen else None
        scores = chosen.scores if chosen else {}
        row |= {f"{choice}_{name}": _number(value) for name, value in scores.items()}
    return row


def _tidy_row(run: Run, folder: Path) -> dict:
    record = read_record(folder / "record.json")
    if record.spec.planned() != run.spec:
        raise UserError(f"{folder}: made from another spec than the study asks for; delete it")
    spec, train = record.spec, record.train
    headline, flat = spec.task.headline, spec.flat()
    return {
        "run": run.id,
        **cell_of(run),
        "seed": spec.seed,
        "metric": headline,
        "learning_rate": spec.learning_rate,
        "alpha": spec.adapter.alpha if spec.adapter else None,
        "tuned": ", ".join(spec.tuned.fields) if spec.tuned else "",
        "at_edge": ", ".join(record.tuning.at_edge) if record.tuning else "",
        **_chosen_scores(train, headline),
        **{f"parameters_{name}": count for name, count in train.parameters.items()},
        **{f"bytes_{name}": count for name, count in train.bytes.items()},
        **{f"rows_{name}": count for name, count in train.rows.items()},
        **{f"published_rows_{name}": count for name, count in (spec.task.rows or {}).items()},
        "matrices": "+".join(spec.adapter.targets if spec.adapter else ()),
        "local_copies": ", ".join(
            entry.name
            for entry in (spec.task, spec.model)
            if isinstance(entry.source, FolderSource)
        ),
        "weights": record.environment.get("weights"),
        "unmoved": len(train.unmoved),
        "steps": train.steps,
        "seconds": train.seconds["total"],
        "seconds_train": train.seconds["train"],
        "seconds_evaluate": train.seconds["evaluate"],
        "cpu_seconds_train": train.cpu_seconds["train"] * record.environment.get("processes", 1),
        "device": str(record.environment.get("device", "cpu")),
        "tokens_real": train.tokens["real"],
        "tokens_padded": train.tokens["padded"],
        "peak_memory_mib": train.peak_memory_mib,
        # A run on the CPU beside a GPU that it may see has 0 in its record, and took none of it.
        "peak_device_memory_mib": train.peak_device_memory_mib or None,
        "copied_tensors": len(train.copied),
        "base_bits": spec.base_bits,
        **{f"counts_{name}": count for name, count in train.counts.items()},
        **{name: flat[name] for name in (spec.tuned.fields if spec.tuned else ())},
    }
