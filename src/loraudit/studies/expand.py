"""From a study's YAML file to its named runs.

A run's fields are looked up in three files, of which a later one overrides an earlier one:
config/defaults.yaml, the study's protocol (config/protocols) and the study file itself. Each is a
`Layer`; grid.py says how layers and the grid's blocks combine. The command line's switches (task
and model) override all of them. What the working folder's own config/ leaves out is as shipped
(shipped.py).
"""

import functools
import itertools
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from loraudit.base.errors import UserError, unknown
from loraudit.base.named_code import resolve
from loraudit.base.shipped import own_and_shipped, own_or_shipped, read_table
from loraudit.base.written_yaml import read_written, refuse_doubled
from loraudit.studies.accounts import accounts
from loraudit.studies.alpha import alpha_of
from loraudit.studies.claims import select_claims
from loraudit.studies.entries import (
    MATRICES,
    FolderSource,
    HubSource,
    Matrix,
    ModelEntry,
    TaskEntry,
)
from loraudit.studies.entry_files import LONGEST, check_name, load_model, load_task
from loraudit.studies.grid import (
    Block,
    Point,
    check_ablation_points,
    expand_block,
    legal_fields,
    refuse_bools,
    study_blocks,
    study_switches,
)
from loraudit.studies.known import check_start, contaminations, shared_texts
from loraudit.studies.method_settings import ALoRASettings
from loraudit.studies.methods import METHODS
from loraudit.studies.names import run_id, targets_name, variant_of
from loraudit.studies.reference import select
from loraudit.studies.spec import AdapterSpec, Candidate, RunSpec, Tuned, digest
from loraudit.studies.study import Run, Study
from loraudit.studies.study_file import RESERVED, Config, Layer, ProtocolFile, StudyFile, TuneFile
from loraudit.studies.tune import check_tune, trials, tried
from loraudit.studies.values import check_known, validated


def parse_targets(value: str | Iterable[str], model: ModelEntry) -> tuple[Matrix, ...]:
    """Turn "q+v", "all" or ["q", "v"] into matrix names in the order of `MATRICES`.

    Raises:
        UserError: a name is no matrix, or this model has no such matrix.
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
        UserError: something is wrong in the configuration or the study.
    """
    checked: Config = validated(Config, config, "config")
    if (own := Path(folder, "config.yaml")).is_file():
        refuse_doubled(own)
    path = Path(checked.study)
    if path.suffix not in (".yaml", ".yml"):
        studies = Path(folder, "studies")
        path = own_or_shipped(studies / f"{checked.study}.yaml")
        if not path.is_file():
            known = (known.stem for known in own_and_shipped(studies))
            raise unknown("config: study", checked.study, known)
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
        overrides: task and model from the command line. If the study has several tasks and the
            given one is among them, only its runs are kept, with the runs that they start from;
            otherwise the given task or model replaces the study's own. Both become part of the
            study's name, so that differently switched studies never share results. A task that
            replaces the study's own is used whole where the study asks for more rows than the
            task's entry says that it has.
        folder: where defaults.yaml, tasks.yaml, models.yaml and protocols/ are.
        glue: "hub", or a local folder in the hub's layout that stands in for it.
        models: "hub", or a local folder with one sub-folder per model name.

    Raises:
        UserError: anything unknown, ill-formed, inconsistent or doubled.
    """
    path, folder = Path(path), Path(folder)
    if path.stem in RESERVED:
        raise UserError(f"{path}: a study can't be called {path.stem!r}: that folder is taken")
    check_name("study", path.stem)
    file: StudyFile = validated(StudyFile, read_written(path), str(path))
    for table in (folder / name for name in ("defaults.yaml", "tasks.yaml", "models.yaml")):
        if table.is_file():
            refuse_doubled(table)
    overrides = dict(overrides or {})
    name = _study_name(path, folder, overrides)
    layers = _layers(file, path, folder)
    only = _only_task(file, path, layers, overrides)
    if only:  # expand all tasks: a run that is kept may start from a run on another task
        del overrides["task"]
    points = [
        point
        for block in study_blocks(file, path)
        for point in expand_block(Block({**block.fields, **overrides}, block.where), layers)
    ]
    if file.tune:
        check_tune(file.tune, f"{path}: tune")
    check_ablation_points(file, points, path)
    resolver = _Resolver(folder, glue, models, file.tune, replaced="task" in overrides)
    runs = _with_starts(resolver, points)
    if only:
        runs = _restricted(runs, only)
        overrides["task"] = only  # for the study's name
    _check_distinct(runs, path)
    _check_names(file, runs, path, folder, restricted=bool(only))
    met = [(run.spec.model.name, run.spec.task.name) for run in runs]
    shared = shared_texts((task for _, task in met), folder / "tasks.yaml")
    for run in runs:
        if run.spec.warm_start:
            check_start(run.spec.task.name, run.spec.warm_start.task, shared, str(path))
    tuning = _needed_tuning(resolver.tuning, runs, path)
    source = None if overrides else _settings_from(file, runs, path, folder)
    protocol = next((layer for layer in layers if isinstance(layer, ProtocolFile)), None)
    return Study(
        name=name,
        question=file.question.strip(),
        runs=tuple(runs),
        protocol=protocol.source if protocol else "",
        not_run=protocol.not_run if protocol else (),
        switches=study_switches(file),
        contaminations=contaminations(met, folder / "models.yaml"),
        shared_texts=shared,
        tuning=tuning,
        settings_from=source,
        **{key: getattr(file, key) for key in ("compare", "margin", "reading", "contrasts")},
        claims=file.claims,
        language_loss=file.language_loss,
    )


def _study_name(path: Path, folder: Path, overrides: Mapping[str, Any]) -> str:
    """Return a study's name; what the command line overrides is a part of it.

    Raises:
        UserError: a study file has that name, so that the two would share a folder of results.
    """
    name = path.stem + "".join(f"-{value}" for _, value in sorted(overrides.items()))
    others = own_or_shipped(folder / "studies" / f"{name}.yaml"), path.with_name(f"{name}.yaml")
    for other in others if overrides else ():
        if other.is_file():
            asked = " ".join(f"{key}={value}" for key, value in overrides.items())
            raise UserError(
                f"{path} with {asked} would be called {name!r}, as {other} is, and get the same "
                f"folder of results; set study={name}, or copy {path.name} to another name"
            )
    return name


def _settings_from(file: StudyFile, runs: list[Run], path: Path, folder: Path) -> str | None:
    """Return the study that a file's settings come from, after a look at its `tune`.

    Raises:
        UserError: there is no such study, it tunes nothing or the study itself tunes, or a seed
            that is reported here was tuned with there.
    """
    name, studies = file.settings_from, folder / "studies"
    if name is None:
        return None
    where = f"{path}: settings_from"
    source = own_or_shipped(studies / f"{name}.yaml")
    if not source.is_file():
        raise unknown(where, name, (known.stem for known in own_and_shipped(studies)))
    tune = validated(StudyFile, read_written(source), str(source)).tune
    if file.tune or tune is None:
        raise UserError(f"{where}: {name}: expected a study with `tune`, in a study without one")
    if both := sorted({run.spec.seed for run in runs} & set(tune.seeds)):
        seeds = ", ".join(map(str, both))
        raise UserError(f"{where}: seeds: {seeds} tuned with in {name}; report other seeds")
    return name


def _layers(file: StudyFile, path: Path, folder: Path) -> list[Layer]:
    """Return the layers in the order in which they override each other, the study file last.

    Unknown fields, tasks and methods are refused.
    """
    shared = read_table(folder / "defaults.yaml", "per_method")
    per_method = shared.pop("per_method", {})
    fields = {"defaults": shared, "per_method": per_method}
    source = folder / "defaults.yaml"
    layers: dict[Path, Layer] = {source: validated(Layer, fields, str(source))}
    if file.protocol:
        source = own_or_shipped(folder / "protocols" / f"{file.protocol}.yaml")
        if not source.is_file():
            known = (known.stem for known in own_and_shipped(folder / "protocols"))
            raise unknown(f"{path}: protocol", file.protocol, known)
        layers[source] = validated(ProtocolFile, read_written(source), str(source))
    layers[path] = file
    tasks, legal = read_table(folder / "tasks.yaml"), legal_fields()
    for name, layer in layers.items():
        check_known(layer.defaults, legal, f"{name}: defaults: key")
        check_known(layer.per_task, tasks, f"{name}: per_task")
        check_known(layer.per_method, METHODS, f"{name}: per_method")
        for part in ("per_task", "per_method"):
            for key, fields in getattr(layer, part).items():
                check_known(fields, legal, f"{name}: {part}: {key}: key")
                refuse_bools(fields, f"{name}: {part}: {key}")
    return list(layers.values())


def _only_task(file: StudyFile, path: Path, layers: list[Layer], overrides: dict) -> str | None:
    """Return the one of a study's several tasks that the command line asks for; None: it asks for
    none, or for a task that replaces the study's own.
    """
    if "task" not in overrides:
        return None
    blocks = study_blocks(file, path)
    tasks = {point.fields["task"] for block in blocks for point in expand_block(block, layers)}
    return overrides["task"] if len(tasks) > 1 and overrides["task"] in tasks else None


def _check_distinct(runs: list[Run], path: Path) -> None:
    """Refuse runs of the same name, and runs of one cell that differ in more than their seed."""
    for name, count in Counter(run.id for run in runs).items():
        if count > 1:
            raise UserError(f"{path}: {count} runs are called {name!r}; give a block a 'label'")
    cells: dict[str, Run] = {}
    for run in runs:
        first = cells.setdefault(run.id.rpartition("/")[0], run)
        if first.spec.model_copy(update={"seed": run.spec.seed}) == run.spec:
            continue
        one, two = first.spec.flat(), run.spec.flat()
        for field in one:
            if one[field] != two[field] and field not in ("seed", "warm_start"):
                raise UserError(
                    f"{path}: {first.id} and {run.id} would be seeds of one cell, but {field} is "
                    f"{one[field]!r} and {two[field]!r}; give a block a 'label'"
                )


def _check_names(
    file: StudyFile, runs: list[Run], path: Path, folder: Path, restricted: bool
) -> None:
    """Check the variants of `contrasts`, the tables of `compare` and the `claims`.

    All have to exist, none may stand there twice, and how the tables' numbers were made has to be
    legible. A study that is `restricted` to one task may lack variants.
    """
    variants = {variant_of(run.id) for run in runs}
    for name in itertools.chain(*((pair.left, pair.right) for pair in file.contrasts)):
        if name not in variants and not restricted:
            raise unknown(f"{path}: contrasts", name, variants)
    pairs = [" and ".join(sorted((pair.left, pair.right))) for pair in file.contrasts]
    for key, names in (("contrasts", pairs), ("compare", file.compare), ("claims", file.claims)):
        for name, count in Counter(names).items():
            if count > 1:
                raise UserError(f"{path}: {key}: {name}: {count} times (legal: once)")
    try:
        for number in select(file.compare, folder / "reference"):
            accounts(number)
        select_claims(file.claims, folder / "claims")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_rounds(spec: RunSpec, where: str) -> None:
    """Check that an ALoRA run is long enough for a rank to move; it would end in an error."""
    if isinstance(spec.settings, ALoRASettings) and spec.settings.first >= spec.epochs:
        raise UserError(
            f"{where}: alora.first: the first round would be after {spec.settings.first:g} epochs, "
            f"the run has {spec.epochs} (legal: below {spec.epochs})"
        )


def _whole_where_fewer(spec: RunSpec) -> dict[str, None]:
    """Return the fields that ask for more rows than the task has, set to all that it has."""
    rows = spec.task.rows
    if rows is None:
        return {}
    most = {
        "train_rows": rows["train"] - (spec.selection_rows or 0),
        "validation_rows": rows["validation"],
    }
    asked = {name: getattr(spec, name) for name in most}
    return {name: None for name, count in asked.items() if count and count > most[name]}


class _Resolver:
    """Turns points into named runs, and the names of tasks and models into their entries.

    Args:
        folder: where tasks.yaml and models.yaml are.
        glue, models: "hub", or the local folder that stands in for the hub.
        tune: what to try before a run; None tries nothing.
        replaced: whether the study was written for other tasks.

    `tuning` collects the runs that try values, by their names.
    """

    def __init__(self, folder: Path, glue: str, models: str, tune: TuneFile | None, replaced: bool):
        self.folder, self.glue, self.models, self.tune = folder, glue, models, tune
        self.replaced = replaced
        self.tuning: dict[str, Run] = {}
        self.task, self.model = functools.cache(self._task), functools.cache(self._model)

    def _task(self, name: str) -> TaskEntry:
        task = load_task(name, self.folder / "tasks.yaml")
        if not isinstance(task.source, HubSource) or self.glue == "hub":
            return task
        source = FolderSource(folder=self.glue, config=task.source.config)
        return task.model_copy(update={"source": source})

    def _model(self, name: str) -> ModelEntry:
        model = load_model(name, self.folder / "models.yaml")
        if not isinstance(model.source, HubSource) or self.models == "hub":
            return model
        source = FolderSource(folder=str(Path(self.models, name)))
        return model.model_copy(update={"source": source})

    def run(self, point: Point, warm_start: dict | None) -> Run:
        """Make the run of a point, which starts from the run in `warm_start`, or cold if None."""
        fields, where = dict(point.fields), point.where
        try:
            entries = {"task": self.task(fields["task"]), "model": self.model(fields["model"])}
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        fields |= entries
        spec = make_spec({**fields, "warm_start": warm_start}, where)
        if self.replaced and (whole := _whole_where_fewer(spec)):
            fields |= whole
            spec = make_spec({**fields, "warm_start": warm_start}, where)
        _check_rounds(spec, where)
        if not spec.saves:
            raise UserError(
                f"{where}: validate_epochs 'none' is for the runs that `tune` makes; a run that is "
                "reported is scored on validation rows (legal: all, chosen, last)"
            )
        if self.tune and (axes := tried(self.tune, point)):
            spec = self._tuned(spec, axes, self.tune.seeds, point, fields)
        if len(point.label.encode()) > LONGEST:
            raise UserError(f"{where}: label {point.label!r} is longer than {LONGEST} bytes")
        return Run(id=run_id(spec, point.label), label=point.label, spec=spec)

    def _tuned(
        self, spec: RunSpec, axes: dict[str, list], seeds: Iterable[int], point: Point, fields: dict
    ) -> RunSpec:
        """Return a run that takes the best of the values that `axes` says, and add what tries them.

        Twins are tuned by the same runs, those of the method that stands first in methods.yaml.
        """
        if spec.selection_rows is None:
            raise UserError(f"{point.where}: tune: values are chosen on selection_rows; set them")
        refuse_bools(axes, f"{point.where}: tune")
        twins = {spec.method, spec.facts.twin} if spec.twins else {spec.method}
        method = next(name for name in METHODS if name in twins)
        candidates: list[Candidate] = []
        for values, label in trials(axes, point.label):
            runs = {}
            for seed in seeds:
                own = {"method": method, "seed": seed, "validate_epochs": "none"}
                trial = make_spec({**fields, **values, **own}, f"{point.where}: tune: {label}")
                run = Run(id=run_id(trial, label), label=label, spec=trial)
                if self.tuning.setdefault(run.id, run).spec != trial:
                    raise UserError(
                        f"{point.where}: tune: {run.id} would try two things; give a block a label"
                    )
                runs[run.id] = digest(trial)
            found = trial.flat()
            candidate = Candidate(values={field: found[field] for field in axes}, runs=runs)
            if candidate.values not in [other.values for other in candidates]:
                candidates.append(candidate)  # rules for alpha may give one value twice
        if len(candidates) < 2:
            raise UserError(
                f"{point.where}: tune: {', '.join(axes)} leave one combination for method "
                f"{spec.method!r}; give it axes of its own, or per_method: {{{spec.method}: {{}}}}"
            )
        tuned = Tuned(candidates=tuple(candidates))
        return spec.model_copy(update={"tuned": tuned}).planned()


def make_spec(fields: Mapping[str, Any], where: str) -> RunSpec:
    """Make a run from its fields by their names in a study file.

    The adapter's fields go into an `AdapterSpec`, the method's own settings into an object of their
    class. Fields that the method has no use for are dropped, or get the value that its entry fixes.

    Args:
        fields: side by side as in config/defaults.yaml, but `task` and `model` are entries.
        where: the place in the study file, for error messages.

    Raises:
        UserError: a key is missing or a value wrong; the message says where.
    """
    own = {name: fields.get(name) for name, method in METHODS.items() if method.settings}
    values = {key: value for key, value in fields.items() if key not in own}
    if (name := values.get("method")) not in METHODS:
        raise unknown(f"{where}: method", name, METHODS)
    method = METHODS[str(name)]
    adapter = {key: values.pop(key) for key in AdapterSpec.model_fields if key in values}
    values |= {"adapter": None, "settings": None, **method.fixed}
    if method.trains == "adapter":
        values["adapter"] = _adapter(adapter, method.own_init, values["model"], where)
    if method.settings:
        cls = resolve(method.settings)
        values["settings"] = validated(cls, own[method.name] or {}, f"{where}: {method.name}")
    if values.get("base_bits") is None:
        values["base_group"] = None
    if not (method.starts_warm or method.moves_ranks):  # the latter are told that they can't
        values["warm_start"] = None
    return validated(RunSpec, values, where)


def _adapter(fields: dict, own_init: bool, model: ModelEntry, where: str) -> AdapterSpec:
    """Make a run's adapter; with `own_init` the method starts A and B, and `init` is dropped."""
    if "targets" in fields:
        try:
            fields["targets"] = parse_targets(fields["targets"], model)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    fields |= {"alpha": alpha_of(fields.get("alpha"), fields.get("rank"), where)}
    if own_init:
        fields |= {"init": None, "init_std": None}
    adapter: AdapterSpec = validated(AdapterSpec, fields, where)
    if adapter.from_error and adapter.peft.get("use_rslora"):
        key = "init" if adapter.init in ("error", "loftq") else "ranks"
        raise UserError(
            f"{where}: {key} = {getattr(adapter, key)!r}: it is computed for the scaling alpha / "
            "rank, and peft's use_rslora trains with alpha / sqrt(rank); leave one of them out"
        )
    return adapter


def _needed_tuning(tuning: dict[str, Run], runs: list[Run], path: Path) -> tuple[Run, ...]:
    """Return the runs that tune those of a study; refuse seeds that are reported too."""
    needed = dict.fromkeys(name for run in runs if run.spec.tuned for name in run.spec.tuned.runs)
    seeds = {tuning[name].spec.seed for name in needed}
    reported = {run.spec.seed for run in runs}
    if seeds & reported:
        both = ", ".join(map(str, sorted(seeds & reported)))
        raise UserError(f"{path}: tune: seeds: {both} also reported; tune with other seeds")
    return tuple(tuning[name] for name in needed)


def _with_starts(resolver: _Resolver, points: list[Point]) -> list[Run]:
    """Make the runs in the order of the points.

    A run that starts warm holds the name and digest of the run that it starts from, which is made
    first. That one may itself start warm, so that tasks make a chain.

    Raises:
        UserError: no run fits a `warm_start`, or runs start from each other in a circle.
    """
    cold = [resolver.run(point, None) for point in points]
    order = sorted(range(len(points)), key=lambda place: points[place].starts_warm)
    starts: dict[tuple, int] = {}
    for place in order:  # where a cold and a warm run have the same key, the cold one is meant
        run = cold[place]
        starts.setdefault((run.spec.task.name, run.label, *_shared(run.spec)), place)
    made: dict[int, Run] = {}

    def make(place: int, waiting: tuple[int, ...] = ()) -> Run:
        if place not in made:
            point = points[place]
            made[place] = warm(place, waiting) if point.starts_warm else cold[place]
        return made[place]

    def warm(place: int, waiting: tuple[int, ...]) -> Run:
        point = points[place]
        _check_cold_method(point)
        first = starts[_start(point, cold[place].spec, starts)]
        if first in (place, *waiting):
            raise UserError(
                f"{point.where}: warm_start: {cold[place].id} would start from itself; a chain "
                "begins with a run whose warm_start is null"
            )
        start = make(first, (place, *waiting))
        if start.spec.tuned and "alpha" in start.spec.tuned.fields:
            raise UserError(
                f"{point.where}: warm_start: {start.id} has its alpha tuned, so that its adapter "
                "may be scaled in another way than this run's"
            )
        tensors = point.fields["warm_start"]["tensors"]
        found = {"run": start.id, "spec_sha256": digests(first), "tensors": tensors}
        return resolver.run(point, found)

    digests = functools.cache(lambda place: digest(made[place].spec))
    return [make(place) for place in range(len(points))]


def _check_cold_method(point: Point) -> None:
    """Refuse a warm start of a method that moves ranks; the message has the line that mends it."""
    name = point.fields["method"]
    if METHODS[name].moves_ranks:
        raise UserError(
            f"{point.where}: warm_start: method {name!r} starts cold; set "
            f"per_method: {{{name}: {{warm_start: null}}}}"
        )


def _shared(spec: RunSpec) -> tuple:
    """Return the values that a run must share with the one that it starts from."""
    adapter = spec.adapter
    own = (adapter.rank, adapter.alpha, adapter.targets) if adapter else ()
    base = spec.model.name, spec.base_bits, spec.base_group
    return *base, *_loftq(adapter), spec.method, spec.seed, *own


def _loftq(adapter: AdapterSpec | None) -> tuple:
    """Return what makes a LoftQ start, which changes the frozen base as well; () for another."""
    if adapter is None or adapter.init != "loftq":
        return ()
    return adapter.init, adapter.loftq_steps


def _start(point: Point, spec: RunSpec, starts: Container[tuple]) -> tuple:
    """Return the key in `starts` of the run that a point starts from.

    That is the run on the asked task with equal `_shared` values and the point's label; if there is
    none, the one without a label.

    Args:
        point: the point, with a `warm_start`.
        spec: the spec of its run, as if it started cold.
        starts: has the keys of all runs: task, label and `_shared` values.

    Raises:
        UserError: `warm_start` is ill-formed, or no run fits.
    """
    asked, where = point.fields["warm_start"], point.where
    if not isinstance(asked, dict) or set(asked) != {"task", "tensors"}:
        raise UserError(f"{where}: warm_start: expected {{task, tensors}} or null, got {asked!r}")
    for label in (point.label, ""):
        key = (str(asked["task"]), label, *_shared(spec))
        if key in starts:
            return key
    wanted: list[object] = [spec.model.name, spec.method, spec.seed]
    names, targets = "model, method and seed", ""
    if spec.adapter:
        wanted[2:2] = [spec.adapter.rank, f"{spec.adapter.alpha:g}"]
        names, targets = (
            "model, method, rank, alpha and seed",
            f" and targets {targets_name(spec)!r}",
        )
    if spec.base_bits:
        targets += f", of the same base (base_bits {spec.base_bits}, group {spec.base_group}"
        targets += "".join(f", {part}" for part in _loftq(spec.adapter)) + ")"
    raise UserError(
        f"{where}: warm_start: the study has no run on task {asked['task']!r} with {names} "
        f"{', '.join(map(str, wanted))}{targets}"
    )


def _restricted(runs: list[Run], task: str) -> list[Run]:
    """Keep the runs on one task, and all the runs that these start from."""
    by_name = {run.id: run for run in runs}
    needed: set[str] = set()
    waiting = [run for run in runs if run.spec.task.name == task]
    while waiting:
        run = waiting.pop()
        needed.add(run.id)
        if (start := run.spec.warm_start) and start.run not in needed:
            waiting.append(by_name[start.run])
    return [run for run in runs if run.id in needed]
