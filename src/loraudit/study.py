"""Studies: from a YAML file to named runs.

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
from typing import Annotated, Any, Literal

from pydantic import Field

from loraudit.errors import UserError, unknown
from loraudit.reference import Reading, select
from loraudit.spec import (
    ADAPTER_FIELDS,
    ADAPTER_METHODS,
    ADAPTER_OPTIONS,
    ADAPTIVE,
    MATRICES,
    METHOD_MODULES,
    FolderSource,
    Frozen,
    HubSource,
    ModelEntry,
    RunSpec,
    TaskEntry,
    digest,
    validated,
)
from loraudit.yaml_file import read_yaml

Margin = Annotated[float, Field(gt=0, le=0.1)]


class Run(Frozen):
    """A named run: `id` is its folder below results/<study>/runs/."""

    id: str
    label: str
    spec: RunSpec


class Switch(Frozen):
    """One switch of an ablation: the label of its runs, its name, and the fields it changes."""

    label: str
    name: str
    changes: dict


BASE = "base"
"""Label of the runs that an ablation's switches are compared with."""


class Study(Frozen):
    """A question and the runs that answer it.

    `protocol` says where the settings are from. `compare` names published tables
    (config/reference), `margin` is the largest difference, as a fraction, that still counts as
    equal (TOST), `reading` is what a published ± of unstated meaning is taken to be. `contrasts`
    are the pairs of variants to compare on the same seeds; none: each adapter with each baseline
    and with its twin.
    """

    name: str
    question: str
    runs: tuple[Run, ...]
    protocol: str = ""
    compare: tuple[str, ...] = ()
    margin: Margin = 0.01
    reading: Reading = "sd"
    switches: tuple[Switch, ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()

    def cells(self) -> dict[str, RunSpec]:
        """Return one spec per cross-check: the first run of each cell, whatever seed or method."""
        out: dict[str, RunSpec] = {}
        for run in self.runs:
            if run.spec.crosschecked:
                out.setdefault(cell_id(run), run.spec)
        return out

    def describe(self) -> str:
        """Count the study's runs by method, and its cross-checks, in one line."""
        counts = Counter(run.spec.method for run in self.runs)
        methods = ", ".join(f"{count} {method}" for method, count in counts.items())
        warm = sum(run.spec.warm_start is not None for run in self.runs)
        started = f"; {warm} of them start from another run's adapter" if warm else ""
        return f"{len(self.runs)} runs ({methods}{started}), {len(self.cells())} cross-checks"


class AblationFile(Frozen):
    """The `ablation` of a study file: a grid block, and the switches flipped on it one by one."""

    base: dict
    """a grid block; only task, model and seed may be lists"""
    switches: dict[str, dict] = Field(min_length=1)
    """`name: {field: value}`, one block of runs each"""


class Layer(Frozen):
    """Fields for all runs, for runs on one task, and for runs of one method."""

    defaults: dict[str, Any] = {}
    """fields of every run"""
    per_task: dict[str, dict[str, Any]] = {}
    """`task: {field: value}`, for the runs on that task"""
    per_method: dict[str, dict[str, Any]] = {}
    """`method: {field: value}`, for the runs of that method"""


class ProtocolFile(Layer):
    """A file of config/protocols; `source` says where the settings are from."""

    source: str
    """where the settings are from, and which are assumptions"""


class StudyFile(Layer):
    """A file of config/studies."""

    question: str = ""
    """what the study answers; the report opens with it"""
    protocol: str | None = None
    """file of config/protocols that the runs start from"""
    compare: tuple[str, ...] = ()
    """published tables to set the results beside, such as `hu2022.table2`"""
    margin: Margin = 0.01
    """largest difference, as a fraction, that still counts as equal (0.01: one point)"""
    reading: Reading = "sd"
    """what a published ± of unstated meaning is taken to be"""
    contrasts: tuple[tuple[str, str], ...] = ()
    """pairs of variants, `[alora-r4-all, lora-r4-all]`, that the table of pairs compares; left out:
    each adapter with each baseline and with its twin"""
    grid: Any = []
    """blocks of fields; every list in a block is an axis, and a block is the product of its axes"""
    ablation: AblationFile | None = None
    """a base block, and switches flipped on it one at a time"""


RESERVED = ("committed", "published")
"""Folders of results/ and figures/ that are no study's."""


class PublishedFile(Frozen):
    """config/published.yaml, which explains each key."""

    ours: tuple[str, ...]
    """tables of per-seed results"""
    compare: tuple[str, ...]
    """tables to set them beside"""
    margin: Margin
    """largest difference, as a fraction, that counts as equal"""
    reading: Reading
    """what a ± of unstated meaning is taken to be"""


class Config(Frozen):
    """config/config.yaml, which explains each key."""

    study: str
    task: str | None
    model: str | None
    glue: str
    models: str
    launch: Literal["cpu", "cpu2", "gpu", "multi_gpu_bf16", "two_nodes"] = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10


def load_task(name: str, path: Path | str = "config/tasks.yaml") -> TaskEntry:
    """Read one task's entry. Raises UserError if unknown, ill-formed or unfit for a path."""
    entry = _entry("task", name, read_yaml(path), path)
    _fit_for_a_path(f"{path}: task", name)
    return validated(TaskEntry, {"name": name, **entry}, f"{path}: {name}")


def load_model(name: str, path: Path | str = "config/models.yaml") -> ModelEntry:
    """Read one model's entry, with its family's module names. Raises UserError if ill-formed."""
    table = read_yaml(path)
    families = table.get("families", {})
    entry = dict(_entry("model", name, table.get("models", {}), path))
    _fit_for_a_path(f"{path}: model", name)
    family = entry.pop("family", None)
    shared = {} if family is None else _entry(f"{path}: {name}: family", family, families, path)
    return validated(ModelEntry, {"name": name, **shared, **entry}, f"{path}: {name}")


def _entry(what: str, name: Any, table: Any, path: Path | str) -> dict:
    """Return one entry of a table of mappings, by a name that is fit for a path."""
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected names and entries, got {table!r}")
    if not isinstance(name, str) or name not in table:
        raise unknown(what, name, map(str, table))
    if not isinstance(table[name], dict):
        raise UserError(f"{path}: {name}: expected keys and values, got {table[name]!r}")
    return table[name]


NAME, LONGEST = r"\w[\w.+-]*", 100
"""Of names of studies, tasks and models, which become folders: what is legal, and the bytes."""


def _fit_for_a_path(what: str, name: str) -> None:
    if not re.fullmatch(NAME, name) or len(name.encode()) > LONGEST:
        raise UserError(
            f"{what}: {name!r}: legal are letters, digits and . + - _, first a letter or digit, "
            f"{LONGEST} bytes at most"
        )


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


def targets_name(spec: RunSpec) -> str:
    """Return "q+v" and so on, or "all" for every matrix that the model has."""
    names = spec.targets or ()
    return "all" if set(names) == set(spec.model.modules) else "+".join(names)


def run_id(spec: RunSpec, tag: str = "") -> str:
    """Name a run: <task>/<model>/<method>[-r<rank>-<targets>][-<tag>]/s<seed>."""
    parts = [spec.method, *_cell_parts(spec), tag]
    variant = "-".join(filter(None, parts))
    return f"{spec.task.name}/{spec.model.name}/{variant}/s{spec.seed}"


def variant_of(run: str) -> str:
    """Return the variant in a run's name: method, rank, targets and label."""
    return run.split("/")[2]


def cell_id(run: Run) -> str:
    """Name the cross-check of a run: <task>/<model>/r<rank>-<targets>[-<tag>]."""
    variant = "-".join(filter(None, [*_cell_parts(run.spec), run.label]))
    return f"{run.spec.task.name}/{run.spec.model.name}/{variant}"


def _cell_parts(spec: RunSpec) -> list[str]:
    return [f"r{spec.rank}", targets_name(spec)] if spec.adapter else []
