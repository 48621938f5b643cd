"""Verify a study from its files: is every number what its evidence gives, and is it current?

A run's record is checked against its seal, its own history and predictions, its adapter, the
fetched data and model, and the spec and code of today. Tables, figures and the page are made again
and compared (remade.py). A seal shows edits and bit rot, not a forger who seals anew: scores are
recomputed from the predictions in any case. A file that can't be read is a problem like others, and
the checks go on.
"""

import html
import math
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from loraudit.base.errors import UserError
from loraudit.base.files import cached_by_file, folder_fingerprint, leftovers, read_json, sha256
from loraudit.base.progress import progress
from loraudit.base.shipped import shipped
from loraudit.report.products import Places, Product, products, published_product
from loraudit.studies import paths
from loraudit.studies.entries import FolderSource, HubSource, range_sizes
from loraudit.studies.entry_files import load_model, load_task
from loraudit.studies.expand import load_configured
from loraudit.studies.names import score_name
from loraudit.studies.packs import packed_code
from loraudit.studies.record import RunRecord, load_record, run_files, seal
from loraudit.studies.scores import goodness
from loraudit.studies.spec import CHOSEN_ON, digest
from loraudit.studies.study import Run, Study, read_study
from loraudit.studies.training_code import SCRIPT, training_code
from loraudit.tools.remade import COMPARE, PICTURES, Finding, Findings, guarded, reason, rounded


def verify(folder: Path, config: dict | None = None, slow: bool = True) -> Findings:
    """Check everything of a study.

    Args:
        folder: results/<study>.
        config: the configuration that the study was asked with; None finds it by the name.
        slow: make section 7's tables, which are measured on every adapter, the pictures and the
            page again too.

    Raises:
        UserError: a configuration that is wrong.
    """
    try:
        study = read_study(folder / "study.json")
    except UserError as error:
        text = str(error).removeprefix(f"{folder}/study.json: ")
        yield Finding("problem", str(folder / "study.json"), text)
        return
    expected, notes = expected_runs(study, config)
    yield from notes
    for run in progress(study.all_runs, len(study.all_runs), "verify runs"):
        yield from check_run(folder / "runs" / run.id, run, expected)
    yield from check_products(study, folder, slow)
    for place in (folder, paths.RESOURCES):
        for path in leftovers(place, deep=True):
            yield Finding("note", str(path), LEFT)


LEFT = "left by a killed process, if nothing runs now: the next job there deletes it, or you may"
"""What is said of temporary files and folders."""


def sentences(name: str, findings: list[Finding]) -> list[str]:
    """Say what was found: a line per problem, notes of one text together, and the counts."""
    problems = [finding for finding in findings if finding.kind == "problem"]
    notes: dict[str, list[str]] = {}
    for finding in findings:
        if finding.kind == "note":
            notes.setdefault(finding.text, []).append(finding.artefact)
    said = [f"problem: {finding.artefact}: {finding.text}" for finding in problems]
    for text, artefacts in notes.items():
        names = sorted(set(artefacts))
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        said.append(f"note: {names[0]}{more}: {text}")
    files = len({finding.artefact for finding in problems})
    verdict = f"{len(problems)} problems in {files} files" if problems else "no problem found"
    return [*said, f"{name}: {verdict}, {len(notes)} notes"]


def expected_runs(study: Study, config: dict | None) -> tuple[dict[str, Run] | None, list[Finding]]:
    """Return the runs that the study's file asks for today, and where study.json differs."""
    where = f"{study.name}/study.json"
    found = config or paths.settings(study.name, **local_copies(study))
    if found is None:
        text = "no file of config/studies has this name: not compared with today's settings"
        return None, [Finding("note", where, text)]
    try:
        asked = load_configured(found)
    except UserError as error:
        if config:
            raise
        return None, [Finding("problem", where, f"not compared with today's settings: {error}")]
    if asked.name != study.name:
        raise UserError(f"config: it asks for study {asked.name!r}, not for {study.name!r}")
    runs = {run.id: run for run in asked.all_runs}
    if digest(asked) == digest(study):
        return runs, []
    names = [name for name in type(study).model_fields if name not in ("runs", "tuning")]
    changed = [name for name in names if getattr(asked, name) != getattr(study, name)]
    had = {run.id: run for run in study.all_runs}
    changed += [f"{len(had.keys() ^ runs.keys())} runs"] if had.keys() != runs.keys() else []
    count = sum(had[key].spec != runs[key].spec for key in had.keys() & runs.keys())
    changed += [f"the specs of {count} runs"] if count else []
    text = f"not what the study's file asks for today: it differs in {', '.join(changed)}"
    return runs, [Finding("problem", where, text)]


def local_copies(study: Study) -> dict[str, str]:
    """Return the local folders that stood in for the hub: config keys glue and models."""
    folders = {}
    for run in study.runs:
        for key, entry, load in (
            ("glue", run.spec.task, load_task),
            ("models", run.spec.model, load_model),
        ):
            if isinstance(entry.source, FolderSource) and _from_hub(entry.name, load):
                folder = Path(entry.source.folder)
                folders[key] = str(folder if key == "glue" else folder.parent)
    return folders


def _from_hub(name: str, load: Callable) -> bool:
    try:
        return isinstance(load(name).source, HubSource)
    except UserError:
        return False


@dataclass
class Case:
    """A run under check: its folder, its record as read, and the problems' artefact name."""

    folder: Path
    record: RunRecord

    def problem(self, name: str, text: str) -> Finding:
        """Make a finding about one of the run's files."""
        return Finding("problem", str(self.folder / name), text)

    def note(self, name: str, text: str) -> Finding:
        """Make a note about one of the run's files."""
        return Finding("note", str(self.folder / name), text)


def check_run(folder: Path, run: Run, expected: dict[str, Run] | None) -> Findings:
    """Check one run's folder."""
    path = folder / "record.json"
    if not path.is_file():
        yield Finding("problem", str(path), "missing: the run is not finished")
        return
    try:
        text, record = load_record(path)
    except UserError as error:
        yield Finding("problem", str(path), str(error).removeprefix(f"{path}: "))
        return
    case = Case(folder, record)
    for findings in (
        _check_seal(case, text),
        _check_spec(case, run, expected),
        _check_tuning(case, run),
        _check_code(case),
        _check_evidence(case),
        _check_adapter(case) if record.spec.saves else iter(()),
        _check_sources(case),
    ):
        yield from guarded(folder, findings)


def _check_seal(case: Case, text: str) -> Findings:
    """Compare the record with its own digest, and the run's files with the record's hashes."""
    record = case.record
    if record.record_sha256 is None or record.files is None:
        yield case.note("record.json", "unsealed (older than seals): edits show in scores only")
        return
    if seal(text) != record.record_sha256:
        yield case.problem("record.json", "changed after the run: its seal is broken")
    hashes = run_files(case.folder)
    for name, value in record.files.items():
        if name not in hashes:
            yield case.problem(name, "missing, but the record has its hash")
        elif hashes[name] != value:
            yield case.problem(name, "changed after the run: its hash is not the record's")
    for name in hashes.keys() - record.files.keys():
        yield case.problem(name, "not of this run: the record does not name it")


def _check_spec(case: Case, run: Run, expected: dict[str, Run] | None) -> Findings:
    """Compare the record's spec with its digest, with spec.json, and with what is asked today."""
    record = case.record
    if digest(record.spec) != record.spec_sha256:
        yield case.problem("record.json", "the spec was changed after the run (its digest differs)")
    try:
        written = read_json(case.folder / "spec.json")
    except (OSError, ValueError):
        written = None
    if written != record.spec.model_dump(mode="json"):
        yield case.problem("spec.json", "not the spec of record.json")
    asked = run if expected is None else expected.get(run.id)
    if asked is None:
        yield case.problem("record.json", "stale: the study no longer asks for this run")
    elif asked.spec != record.spec.planned():
        wanted, has = asked.spec.flat(), record.spec.planned().flat()
        fields = [name for name in wanted | has if wanted.get(name) != has.get(name)]
        text = f"stale: made from another spec than the study asks for ({', '.join(fields)})"
        yield case.problem("record.json", text)


def _check_tuning(case: Case, run: Run) -> Findings:
    """Choose the values of a run's tuned fields again, and compare them with the record's."""
    if run.spec.tuned is None or case.record.spec.tuned is None:
        return
    from loraudit.training.tuning import choose

    try:
        found = choose(run.spec, _runs_folder(case))
    except UserError as error:
        yield case.problem("record.json", f"its values can't be chosen again: {error}")
        return
    values = case.record.spec.flat()
    for field, value in found.chosen.items():
        if values[field] != value:
            text = f"{field} is {values[field]!r}, the runs that tune choose {value!r}"
            yield case.problem("record.json", text)
    if case.record.tuning != found:
        yield case.problem("record.json", "`tuning` is not what the runs that tune say")


def _check_code(case: Case) -> Findings:
    """Compare the code that trained the run with today's."""
    said = case.record.code_sha256
    if said is None:
        yield case.note("record.json", "the code that made it is not recorded: may be stale")
    elif not shipped(SCRIPT).is_file():
        yield case.note("record.json", f"no {SCRIPT} here to compare its code with")
    elif said != _code_of_today(case.record):
        yield case.problem("record.json", "stale: made by other code than today's")


def _code_of_today(record: RunRecord) -> str:
    """Return the digest of what would train a run today, alone or in a pack as it was."""
    if "packed" in record.environment:
        return packed_code()
    return training_code(record.spec.method)


def _check_evidence(case: Case) -> Findings:
    """Recompute the scores from predictions.parquet, and compare history.csv with the record."""
    if case.record.train.diverged is not None:
        yield from guarded(case.folder, _check_diverged(case))
        return
    yield from guarded(case.folder / "history.csv", _check_history(case))
    predictions = case.folder / "predictions.parquet"
    yield from guarded(predictions, _check_predictions(case, predictions))


def _check_predictions(case: Case, file: Path) -> Findings:
    predictions = pd.read_parquet(file)
    for check in (_check_scores, _check_collapsed, _check_labels):
        yield from guarded(file, check(case, predictions))


def _check_scores(case: Case, predictions: pd.DataFrame) -> Findings:
    from loraudit.training import metrics

    record = case.record
    task, train = record.spec.task, record.train
    logits = predictions.filter(like="logit_").to_numpy()
    if not np.array_equal(metrics.predictions(logits, task), predictions.prediction):
        yield case.problem("predictions.parquet", "a prediction is not what its logits say")
    for name, chosen in train.epochs.items():
        said, computed = chosen.scores, dict[str, float]()
        shown = predictions[predictions.epoch == chosen.epoch]
        for split, rows in shown.groupby("split", sort=False):
            values = rows.filter(like="logit_").to_numpy()
            scores = metrics.compute(values, rows.label.to_numpy(), task)
            computed |= {score_name(metric, str(split)): score for metric, score in scores.items()}
            if len(rows) != train.rows.get(str(split)):
                yield case.problem("predictions.parquet", f"{len(rows)} rows of {split}")
        for metric in said.keys() | computed.keys():
            if not _same_score(said.get(metric), computed.get(metric)):
                yield case.problem(
                    "record.json",
                    f"{name} {metric} is {said.get(metric)}, the predictions give "
                    f"{computed.get(metric)}",
                )


def _check_diverged(case: Case) -> Findings:
    """Check that a run which diverged only tunes, stopped in the middle, and has no scores."""
    train, history = case.record.train, pd.read_csv(case.folder / "history.csv")
    if case.record.spec.saves or train.epochs:
        yield case.problem(
            "record.json", "says that it diverged, but only a run without scores may"
        )
    if len(pd.read_parquet(case.folder / "predictions.parquet")):
        yield case.problem("predictions.parquet", "predictions of a run that diverged")
    if len(history) >= case.record.spec.epochs or (history.step > train.steps).any():
        text = f"{len(history)} whole epochs, but the run diverged at step {train.diverged}"
        yield case.problem("history.csv", text)


def _check_collapsed(case: Case, predictions: pd.DataFrame) -> Findings:
    """Tell again from the predictions at which of the chosen epochs the run had collapsed."""
    from loraudit.training.health import collapsed

    train, spec = case.record.train, case.record.spec
    table = predictions[predictions.split == spec.reported_split]
    found = []
    for choice, chosen in train.epochs.items():
        rows = table[table.epoch == chosen.epoch]
        logits = rows.filter(like="logit_").to_numpy()
        if collapsed(logits, rows.label.to_numpy(), spec.task):
            found.append(choice)
    if found != list(train.collapsed):
        said = ", ".join(train.collapsed) or "none"
        text = f"collapsed at the epochs: {said}; the predictions give {', '.join(found) or 'none'}"
        yield case.problem("record.json", text)


def _same_score(one: float | None, two: float | None) -> bool:
    """Tell whether two scores are equal up to rounding, or both undefined (None or NaN)."""
    left, right = (math.nan if value is None else value for value in (one, two))
    return rounded(left, right) or (math.isnan(left) and math.isnan(right))


def _check_history(case: Case) -> Findings:
    history = pd.read_csv(case.folder / "history.csv")
    train, headline = case.record.train, case.record.spec.task.headline
    scored = {c: score_name(headline, on) for c, on in CHOSEN_ON.items() if c in train.epochs}
    last = train.epochs["last"].epoch
    if len(history) != last or not set(scored.values()) <= set(history):
        yield case.problem("history.csv", f"{len(history)} epochs, the record has {last}")
        return
    for choice, column in scored.items():
        worth = history[column].map(lambda value: goodness(headline, value))
        found = int(history.loc[worth.idxmax(), "epoch"])
        said_epoch = train.epochs[choice].epoch
        if found != said_epoch:
            text = f"its {choice} epoch is {found}, the record says {said_epoch}"
            yield case.problem("history.csv", text)
    if history.step.iloc[-1] != train.steps:
        text = f"{history.step.iloc[-1]} steps, the record says {train.steps}"
        yield case.problem("history.csv", text)
    for epoch, said in {(c.epoch, tuple(c.scores.items())) for c in train.epochs.values()}:
        row = (
            history[history.epoch == epoch].iloc[0].to_dict() if epoch in set(history.epoch) else {}
        )
        for metric, value in said:
            said_there = row.get(metric)
            if said_there != value and not (value is None and pd.isna(said_there)):
                text = f"epoch {epoch}: {metric} is {said_there}, the record says {value}"
                yield case.problem("history.csv", text)


def _check_labels(case: Case, predictions: pd.DataFrame) -> Findings:
    """Compare the labels that were scored with the fetched task's, where it is here.

    Where text is predicted, the label is a number of tokens, which the fetched task does not have.
    """
    if case.record.spec.task.causal_lm:
        return
    task = paths.RESOURCES / "tasks" / case.record.spec.task.name
    for split, rows in predictions.groupby("split", sort=False):
        source = "train" if split == "selection" else split  # held out of it
        table = task / f"{source}.parquet"
        yield from guarded(table, _check_split_labels(case, table, rows))


def _check_split_labels(case: Case, table: Path, rows: pd.DataFrame) -> Findings:
    if not table.is_file():
        return
    known = _labels(table)
    labels = known.reindex(rows.row).to_numpy()
    if rows.split.iloc[0] == "selection":
        from loraudit.data.batches import held_out

        drawn = known.index[held_out(known.to_numpy(), case.record.spec)]
        for epoch, part in rows.groupby("epoch"):
            if set(part.row) != set(drawn):
                text = f"epoch {epoch}: its selection rows are not those that the task's name draws"
                yield case.problem("predictions.parquet", text)
    if not np.array_equal(labels, rows.label.to_numpy()):
        yield case.problem("predictions.parquet", f"labels of {table.stem} are not the task's")


@cached_by_file
def _labels(path: Path) -> pd.Series:
    table = pd.read_parquet(path, columns=["row", "label"])
    return table.set_index("row").label


def _as_many(case: Case, adapter: int) -> bool:
    """Tell whether a folder may hold so many values of A and B.

    AdaLoRA's has no masked ranks. Other methods of PEFT save what they do not train, too.
    """
    said, lora = case.record.train.parameters["adapter"], case.record.spec.adapter
    if lora and "peft_type" in lora.peft:
        return True
    return adapter <= said if case.record.spec.facts.masks_ranks else adapter == said


def _check_adapter(case: Case) -> Findings:
    """Read every saved tensor; count them, and the bytes, against the record."""
    train, folder = case.record.train, case.folder / "adapter"
    size, adapter, still = 0, 0, 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        size += file.stat().st_size
        if file.suffix == ".safetensors":
            try:
                whole = case.record.spec.method == "peft"  # its unmoved B are those of whole layers
                values, zero = _adapter_values(file, whole)
                adapter, still = adapter + values, still + zero
            except (SafetensorError, OSError, ValueError) as error:
                yield case.problem(f"adapter/{file.name}", f"unreadable: {error}")
    if size != train.bytes["adapter"]:
        text = f"{size} bytes, the record says {train.bytes['adapter']}"
        yield case.problem("adapter", text)
    elif not _as_many(case, adapter):
        text = f"{adapter} values of A and B, the record says {train.parameters['adapter']}"
        yield case.problem("adapter", text)
    elif still != len(train.unmoved):
        text = f"{still} matrices B are zero, the record says {len(train.unmoved)}"
        yield case.problem("adapter", text)


def _adapter_values(file: Path, whole: bool) -> tuple[int, int]:
    """Read a file's tensors; returns how many values lie in A and B, and how many B are zero.

    Zeros that pad the parts of a fused layer (adapters/parts.py) do not count. Each part's B counts
    as one, or with `whole` each layer's.
    """
    parts = file.with_name("parts.json")
    fused = read_json(parts) if parts.is_file() else {}
    count = still = 0
    with safe_open(file, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            values = tensors.get_tensor(name)
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds values that are not finite")
            count += values.size if "lora_" in name else 0
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            blocks = [values]
            if layer in fused:
                ranks = [rank for _, rank, _ in fused[layer][1]]
                cut = np.split(values, np.cumsum(ranks)[:-1], axis=1)
                blocks = blocks if whole else cut
                count -= sum(
                    rank * (len(values) - sum(range_sizes(rows)))
                    for _, rank, rows in fused[layer][1]
                )
            for block in blocks if "lora_B" in name else ():
                still += bool(block.size) and not block.any()
    return count, still


def _check_sources(case: Case) -> Findings:
    """Compare the fingerprints of data, model and start with the files that are here."""
    spec, environment = case.record.spec, case.record.environment
    task = paths.RESOURCES / "tasks" / spec.task.name
    for split, said in (environment.get("data") or {}).items():
        sha = _hash(task / f"{split}.parquet")
        if sha is None:
            yield Finding("note", str(task), "not fetched here: the data were not checked")
            break
        if sha != said:
            text = f"{split} of {task} is not the data that it was made from"
            yield case.problem("record.json", text)
    model = paths.RESOURCES / "models" / spec.model.name / "model.safetensors"
    if (sha := _hash(model)) is None:
        yield Finding("note", str(model), "not fetched here: the weights were not checked")
    elif sha != environment.get("weights"):
        yield case.problem("record.json", f"{model} is not the model that it was made from")
    if spec.warm_start:
        adapter = _runs_folder(case) / spec.warm_start.run / "adapter"
        if folder_fingerprint(adapter) != environment.get("started_from"):
            yield case.problem("record.json", f"{adapter} is not the adapter that it started from")


def _runs_folder(case: Case) -> Path:
    return case.folder.parents[3]


def _hash(path: Path) -> str | None:
    return _sha256(path) if path.is_file() else None


_sha256 = cached_by_file(sha256)


def check_products(study: Study, folder: Path, slow: bool) -> Findings:
    """Make tidy tables, tables, figures and the page again, and compare.

    Args:
        study: as planned.
        folder: results/<study>.
        slow: make section 7's tables, the pictures and the page too.
    """
    yield from _check_crosschecks(study, folder)
    asked = _asked_with(folder / "report.html")
    there = Places(folder, folder, _root(folder) / paths.FIGURES / study.name)
    with tempfile.TemporaryDirectory() as temporary:
        again = Places(folder, Path(temporary) / "results", Path(temporary) / "figures")
        had, made = (
            products(study, places, updates=slow, switches=asked) for places in (there, again)
        )
        for old, new in zip(had, made, strict=True):
            yield from _check_product(old, new, again, slow)


def _root(folder: Path) -> Path:
    """Return the folder in which the results lie that have a study's folder.

    It is relative if `folder` is, which may be `.` or begin with `..`.
    """
    root = Path(os.path.abspath(folder)).parents[1]
    return root if folder.is_absolute() else Path(os.path.relpath(root))


ASKED = re.compile(r"<code>snakemake --cores 1 \S+ --config ([^<]*)</code>")
"""A command on a page that makes a figure again."""


def _asked_with(page: Path) -> str | None:
    """Return what the commands on a page ask for the study with; None if it shows no command.

    This is taken from the page, for a study may have been asked for in several ways.
    """
    try:
        found = ASKED.search(page.read_text())
    except (OSError, ValueError):  # said where the page is compared
        return None
    return html.unescape(found[1]) if found else None


def _check_product(old: Product, new: Product, again: Places, slow: bool) -> Findings:
    """Make one product again, if its inputs are here, and compare its files.

    Args:
        old: the product as it is.
        new: the product as it is made again.
        again: where products are made again.
        slow: whether to make pictures and the page.
    """
    made = again.results.parent
    absent = [path for path in new.inputs if not path.is_file()]
    if fetched := [path.parent.name for path in absent if not path.is_relative_to(made)]:
        text = f"not made again: no {', '.join(fetched)} in {absent[0].parents[1]}"
        yield Finding("note", f"{old.files[0].parent}: {old.name}", text)
    drawn = {path.suffix for path in new.files} & PICTURES.keys()
    skipped = bool(absent or (drawn and not slow))
    if not skipped:
        try:
            new.make()
        except Exception as error:  # what it is made from may be damaged in any way
            text = f"not checked, because it can't be made again: {reason(error)}"
            yield Finding("note", f"{old.files[0].parent}: {old.name}", text)
            skipped = True
    for had, wanted in zip(old.files, new.files, strict=True):
        if not skipped:
            yield from COMPARE[had.suffix](had, wanted)
        elif not had.is_file():
            yield Finding("problem", str(had), "missing")


def verify_published() -> Findings:
    """Make the comparison of published numbers again, and compare."""
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        old = published_product(paths.RESULTS, paths.FIGURES)
        new = published_product(made / "results", made / "figures")
        again = Places(made, made / "results", made / "figures")
        yield from _check_product(old, new, again, True)


def _check_crosschecks(study: Study, folder: Path) -> Findings:
    for cell in study.cells():
        path = folder / "crosscheck" / f"{cell}.json"
        if path.is_file():
            yield from guarded(path, _check_crosscheck(path))
        else:
            yield Finding("problem", str(path), "missing")


def _check_crosscheck(path: Path) -> Findings:
    for row in read_json(path):
        check, ok = f"{row['check']}, {row['dtype']}, {row['against']}", row["ok"]
        if ok != (row["difference"] <= row["tolerance"]):
            text = f"{check}: 'ok' does not fit difference and tolerance"
            yield Finding("problem", str(path), text)
        elif not ok:
            yield Finding("problem", str(path), f"{check}: the difference is above tolerance")
