"""From a study's YAML file to its named runs.

A study's fields come in layers, later ones winning: config/defaults.yaml, the study's protocol
(config/protocols), the study's own `defaults`; then each layer's `per_task` and `per_method`; then
the grid block; then switches on the command line.
"""

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loraudit.base.errors import UserError, unknown
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.entries import MATRICES, FolderSource, HubSource, ModelEntry, TaskEntry
from loraudit.studies.entry_files import (
    LONGEST,
    _fit_for_a_path,
    load_model,
    load_task,
)
from loraudit.studies.methods import ADAPTER_METHODS, METHOD_MODULES
from loraudit.studies.names import run_id, targets_name, variant_of
from loraudit.studies.reference import select
from loraudit.studies.spec import ADAPTER_FIELDS, ADAPTER_OPTIONS, ADAPTIVE, RunSpec, digest
from loraudit.studies.study import BASE, Run, Study, Switch
from loraudit.studies.study_file import (
    RESERVED,
    AblationFile,
    Config,
    Layer,
    ProtocolFile,
    StudyFile,
)
from loraudit.studies.values import validated


def parse_targets(value: str | Iterable[str], model: ModelEntry) -> tuple[str, ...]:
    """Turn "q+v", "all" or ["q", "v"] into matrix names in the order of `MATRICES`.

    Raises:
        UserError: a name that is no matrix, or that this model lacks.
    """
    if value == "all":
        return tuple(name for name in MATRICES if name in model.modules)
    if not value or not isinstance(value, str | list | tuple):
        raise UserError(f"targets = {value!r}: expected matrices joined by +, such as q+v, or all")
    names = value.split("+") if isinstance(value, str) else list(value)
    for name in names:
        if name not in MATRICES:
            raise unknown("targets", name, [*MATRICES, "all"])
        if name not in model.modules:
            raise UserError(
                f"targets: model {model.name!r} has no matrix {name!r} "
                f"(legal: {', '.join(model.modules)})"
            )
    return tuple(name for name in MATRICES if name in names)


def load_configured(config: dict, folder: Path | str = "config") -> Study:
    """Load the study that a configuration (config.yaml with command-line changes) asks for.

    Raises:
        UserError: anything wrong in the configuration or the study.
    """
    checked: Config = validated(Config, config, "config")
    path = Path(checked.study)
    if path.suffix not in (".yaml", ".yml"):
        studies = Path(folder, "studies")
        path = studies / f"{checked.study}.yaml"
        if not path.is_file():
            raise unknown("config: study", checked.study, (p.stem for p in studies.glob("*.yaml")))
    switches = {"task": checked.task, "model": checked.model}
    overrides = {key: value for key, value in switches.items() if value is not None}
    return load_study(path, overrides, folder, checked.glue, checked.models)


def load_study(
    path: Path | str,
    overrides: dict[str, Any] | None = None,
    folder: Path | str = "config",
    glue: str = "hub",
    models: str = "hub",
) -> Study:
    """Read a study file and expand its grid.

    Args:
        path: the study's YAML file.
        overrides: task and model switches of the command line. A task that is one of several of
            the study's restricts it to that task (and the runs it starts from); any other replaces
            the study's own. They become part of the study's name: no two share results.
        folder: where defaults.yaml, tasks.yaml, models.yaml and protocols/ are.
        glue: "hub", or a local folder in the hub's layout that stands in for it.
        models: "hub", or a local folder with one sub-folder per model name.

    Raises:
        UserError: anything unknown, ill-formed, inconsistent or doubled.
    """
    path, folder = Path(path), Path(folder)
    if path.stem in RESERVED:
        raise UserError(f"{path}: a study can't be called {path.stem!r}: that folder is taken")
    _fit_for_a_path("study", path.stem)
    file: StudyFile = validated(StudyFile, read_yaml(path), str(path))
    overrides = dict(overrides or {})
    layers = _layers(file, path, folder)
    reader = _Reader(layers, folder, {"glue": glue, "models": models})
    blocks = _blocks(file, path)
    only = None
    if "task" in overrides:
        tasks = {p["task"] for where, block in blocks for p in reader.points(block, where)}
        only = overrides.pop("task") if len(tasks) > 1 and overrides["task"] in tasks else None
    points = [
        {**point, "where": where}
        for where, block in blocks
        for point in reader.points({**block, **overrides}, where)
    ]
    runs = _with_starts(reader, points)
    if only:
        runs = _restricted(runs, only)
        overrides["task"] = only
    _distinct(runs, path)
    variants = {variant_of(run.id) for run in runs}
    for name in itertools.chain(*file.contrasts):
        if name not in variants and not only:
            raise unknown(f"{path}: contrasts", name, variants)
    try:
        select(file.compare, folder / "reference")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    suffix = "".join(f"-{value}" for _, value in sorted(overrides.items()))
    return Study(
        name=path.stem + suffix,
        question=file.question.strip(),
        runs=tuple(runs),
        protocol=next((layer.source for layer in layers if isinstance(layer, ProtocolFile)), ""),
        switches=_switches(file),
        **{key: getattr(file, key) for key in ("compare", "margin", "reading", "contrasts")},
    )


def _distinct(runs: list[Run], path: Path) -> None:
    """Refuse runs of one name, and seeds of one cell that differ in more than their seed."""
    for name, count in Counter(run.id for run in runs).items():
        if count > 1:
            raise UserError(f"{path}: {count} runs are called {name!r}; give a block a 'label'")
    cells: dict[str, Run] = {}
    for run in runs:
        first = cells.setdefault(run.id.rpartition("/")[0], run)
        for field in RunSpec.model_fields:
            one, two = (getattr(r.spec, field) for r in (first, run))
            if one != two and field not in ("seed", "warm_start"):
                raise UserError(
                    f"{path}: {first.id} and {run.id} would be seeds of one cell, but {field} is "
                    f"{one!r} and {two!r}; give a block a 'label'"
                )


def _layers(file: StudyFile, path: Path, folder: Path) -> list[Layer]:
    """Return defaults, protocol and study, checked for unknown fields, tasks and methods."""
    shared = dict(read_yaml(folder / "defaults.yaml"))
    per_method = shared.pop("per_method", {})
    layers = {folder / "defaults.yaml": Layer(defaults=shared, per_method=per_method)}
    if file.protocol:
        source = folder / "protocols" / f"{file.protocol}.yaml"
        if not source.is_file():
            known = (known.stem for known in source.parent.glob("*.yaml"))
            raise unknown(f"{path}: protocol", file.protocol, known)
        layers[source] = validated(ProtocolFile, read_yaml(source), str(source))
    layers[path] = file
    tasks = read_yaml(folder / "tasks.yaml")
    for name, layer in layers.items():
        _known(layer.defaults, RunSpec.model_fields, f"{name}: defaults: key")
        _known(layer.per_task, tasks, f"{name}: per_task")
        _known(layer.per_method, METHOD_MODULES, f"{name}: per_method")
        for part in ("per_task", "per_method"):
            for key, fields in getattr(layer, part).items():
                _known(fields, RunSpec.model_fields, f"{name}: {part}: {key}: key")
    return list(layers.values())


def _known(keys: Iterable[str], legal: Iterable[str], where: str) -> None:
    for key in keys:
        if key not in legal:
            raise unknown(where, key, legal)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _switches(file: StudyFile) -> tuple[Switch, ...]:
    found = file.ablation.switches if file.ablation else {}
    return tuple(Switch(label=_slug(name), name=name, changes=c) for name, c in found.items())


def _blocks(file: StudyFile, path: Path) -> list[tuple[str, dict]]:
    """Return all grid blocks with their places; an ablation is a base block and one per switch."""
    blocks = file.grid
    if not isinstance(blocks, list) or not (blocks or file.ablation):
        raise UserError(f"{path}: grid: expected a list of blocks, got {blocks!r}")
    found = [(f"{path}: grid block {number}", block) for number, block in enumerate(blocks, 1)]
    for where, block in found:
        if not isinstance(block, dict):
            raise UserError(f"{where}: expected keys and values, got {block!r}")
    if file.ablation:
        base = file.ablation.base
        _check_ablation(file.ablation, f"{path}: ablation")
        found.append((f"{path}: ablation: base", {**base, "label": BASE}))
        found += [
            (f"{path}: ablation: {switch.name}", {**base, **switch.changes, "label": switch.label})
            for switch in _switches(file)
        ]
    return found


def _check_ablation(ablation: AblationFile, where: str) -> None:
    """Refuse an ablation whose base is not one cell per task and model."""
    axes = ("task", "model", "seed")
    for key, value in ablation.base.items():
        if isinstance(value, list) and key not in axes:
            raise UserError(f"{where}: base: {key} = {value!r}: a list is legal for {axes} only")
    for name, changes in ablation.switches.items():
        if _slug(name) in ("", BASE):
            raise UserError(f"{where}: switch {name!r}: its name needs letters or digits")
        for key, value in changes.items():
            if key in axes or isinstance(value, list):
                raise UserError(f"{where}: {name}: a switch can't set {key} to {value!r}")


NAMED = ("task", "model", "method", "rank", "targets", "seed")
"""Fields that show in a run's name by themselves; other axes are added to its label."""


MOST_RUNS = 100_000
"""Runs of one grid block: ten times what planning was measured with."""


def _tag(key: str, value: Any) -> str:
    """Name one value of an axis, fit for a path: alpha16, warm_start-mnli-adapter, peft-pissa."""
    if not isinstance(value, dict):
        return key + re.sub(r"[^\w.+-]+", "-", str(value))
    parts = [part if isinstance(part, str) else f"{name}{part}" for name, part in value.items()]
    return re.sub(r"[^\w.+-]+", "-", "-".join([key, *(parts or ["none"])]))


def _axes(fields: dict, where: str) -> dict[str, list]:
    """Return the list-valued fields of a block, whose product makes no more than `MOST_RUNS`."""
    axes = {key: value for key, value in fields.items() if isinstance(value, list)}
    for key, value in axes.items():
        if not value:
            raise UserError(f"{where}: {key}: an empty list makes no run")
    count = math.prod(map(len, axes.values()))
    if count > MOST_RUNS:
        raise UserError(f"{where}: {count:,} runs (legal: up to {MOST_RUNS:,})")
    return axes


class _Reader:
    """Turns grid blocks into points, and points into specs."""

    def __init__(self, layers: list[Layer], folder: Path, local: dict[str, str]):
        self.layers, self.folder, self.local = layers, folder, local
        self.task, self.model = functools.cache(self._task), functools.cache(self._model)

    def points(self, block: dict, where: str) -> list[dict]:
        """Expand one block: every list-valued key is an axis. Returns fields with their label."""
        _known(block, [*RunSpec.model_fields, "label"], f"{where}: key")
        plain = {k: v for layer in self.layers for k, v in layer.defaults.items()}
        fields = {**plain, **block}
        label = str(fields.pop("label", ""))
        if not re.fullmatch(r"[\w.+-]*", label):
            raise UserError(f"{where}: label {label!r}: legal are letters, digits and . + - _")
        axes = _axes(fields, where)
        found = []
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            extra = [_tag(key, value) for key, value in point.items() if key not in NAMED]
            chosen = {**fields, **point}
            for key in ("task", "model", "method"):
                if not isinstance(chosen.get(key), str):
                    raise UserError(f"{where}: {key} = {chosen.get(key)!r}: expected a name")
            for part in ("per_task", "per_method"):
                key = chosen["task" if part == "per_task" else "method"]
                for layer in self.layers:
                    special = getattr(layer, part).get(key, {})
                    chosen |= {k: v for k, v in special.items() if k not in block}
            if chosen.get("peft") and "peft" not in point:  # another method than PEFT's LoRA
                extra.append(_tag("peft", chosen["peft"]))
            found.append({**chosen, "label": "-".join(filter(None, [*extra, label]))})
        return found

    def _task(self, name: str) -> TaskEntry:
        """Load a task; a local folder stands in for the hub where `local` says so."""
        task = load_task(name, self.folder / "tasks.yaml")
        if not isinstance(task.source, HubSource) or self.local["glue"] == "hub":
            return task
        source = FolderSource(folder=self.local["glue"], config=task.source.config)
        return task.model_copy(update={"source": source})

    def _model(self, name: str) -> ModelEntry:
        """Load a model; a local folder stands in for the hub where `local` says so."""
        model = load_model(name, self.folder / "models.yaml")
        if not isinstance(model.source, HubSource) or self.local["models"] == "hub":
            return model
        source = FolderSource(folder=str(Path(self.local["models"], name)))
        return model.model_copy(update={"source": source})

    def run(self, point: dict, warm_start: dict | None) -> Run:
        """Resolve names to entries and blank the fields that the method does not use."""
        fields = {key: value for key, value in point.items() if key not in ("where", "label")}
        where = point["where"]
        try:
            task, model = self.task(fields["task"]), self.model(fields["model"])
            if fields.get("method") in ADAPTER_METHODS:
                fields["targets"] = parse_targets(fields["targets"], model)
                if fields["alpha"] == "rank":
                    fields["alpha"] = fields["rank"]
                fields |= _adaptive(fields)
                fields["warm_start"] = warm_start
            else:
                fields.update(dict.fromkeys(ADAPTER_FIELDS))
                fields = {k: v for k, v in fields.items() if k not in ADAPTER_OPTIONS}
            if fields.get("base_bits") is None:
                fields.pop("base_group", None)
        except KeyError as error:
            raise UserError(f"{where}: key {error} is missing") from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        spec = validated(RunSpec, {**fields, "task": task, "model": model}, where)
        init = spec.init if spec.method != "adalora" else "its own"
        if spec.adapter and None in (spec.rank, spec.alpha, spec.lora_dropout, init):
            needed = "rank, alpha, lora_dropout and init"
            raise UserError(f"{where}: method {spec.method!r} needs {needed}")
        if len(point["label"].encode()) > LONGEST:
            raise UserError(f"{where}: label {point['label']!r} is longer than {LONGEST} bytes")
        return Run(id=run_id(spec, point["label"]), label=point["label"], spec=spec)


def _adaptive(fields: dict) -> dict:
    """Return the settings of methods that move ranks, and what such a method does not use.

    Raises:
        UserError: settings that are wrong, or a warm start of such a method.
    """
    method = fields["method"]
    found: dict[str, Any] = dict.fromkeys(ADAPTIVE)
    if method in ADAPTIVE:
        found[method] = validated(ADAPTIVE[method], fields.get(method) or {}, method)
        if fields.get("warm_start"):
            raise UserError(
                f"warm_start: method {method!r} starts cold; set "
                f"per_method: {{{method}: {{warm_start: null}}}}"
            )
    return found | (dict.fromkeys(("init", "init_std")) if method == "adalora" else {})


def _with_starts(reader: _Reader, points: list[dict]) -> list[Run]:
    """Make the runs; one with a warm start gets the digest of the run that it starts from."""
    cold = [reader.run(point, None) for point in points if not _starts_warm(point)]
    starts: dict[tuple, Run] = {}
    for run in cold:
        starts.setdefault((run.spec.task.name, run.label, *_shared(run.spec)), run)
    digests = functools.cache(lambda key: digest(starts[key].spec))

    def warm(point: dict) -> Run:
        key = _start(point, reader.run(point, None).spec, starts)
        start = {"run": starts[key].id, "spec_sha256": digests(key)}
        return reader.run(point, {**start, "tensors": point["warm_start"]["tensors"]})

    runs = iter(cold)
    return [warm(point) if _starts_warm(point) else next(runs) for point in points]


def _starts_warm(point: dict) -> bool:
    return bool(point.get("warm_start")) and point.get("method") in ADAPTER_METHODS


def _shared(spec: RunSpec) -> tuple:
    """Return what a run has in common with the one that it starts from."""
    return spec.model.name, spec.method, spec.rank, spec.alpha, spec.seed, spec.targets


def _start(point: dict, spec: RunSpec, starts: dict[tuple, Run]) -> tuple:
    """Return the key of the run that a point starts from: the one equal in all that is `_shared`.

    Of several the one with the same label is taken, or else the unlabelled one.

    Args:
        spec: the point's own, without a start.
        starts: the runs that start cold, by task, label and what is shared.
    """
    asked, where = point["warm_start"], point["where"]
    if not isinstance(asked, dict) or set(asked) != {"task", "tensors"}:
        raise UserError(f"{where}: warm_start: expected {{task, tensors}} or null, got {asked!r}")
    for label in (point["label"], ""):
        key = (str(asked["task"]), label, *_shared(spec))
        if key in starts:
            return key
    wanted = (spec.model.name, spec.method, spec.rank, f"{spec.alpha:g}", spec.seed)
    raise UserError(
        f"{where}: warm_start: the study has no run on task {asked['task']!r} with model, method, "
        f"rank, alpha and seed {', '.join(map(str, wanted))} and targets {targets_name(spec)!r} "
        "that itself starts cold"
    )


def _restricted(runs: list[Run], task: str) -> list[Run]:
    """Keep one task's runs and those that they start from."""
    starts = (run.spec.warm_start for run in runs if run.spec.task.name == task)
    needed = {start.run for start in starts if start}
    return [run for run in runs if run.spec.task.name == task or run.id in needed]
