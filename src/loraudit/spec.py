"""What a study and a run are: frozen values, checked when they are read.

A `RunSpec` holds everything that can change a number. A `Study` is a list of named runs, expanded
from a YAML grid. This module imports no torch: the Snakefile reads it to build the DAG.
"""

import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loraudit.errors import UserError, unknown

MATRICES = ("q", "k", "v", "o", "up", "down")
"""Names of the adaptable weight matrices: attention's query, key, value, output; the MLP's two."""

METHOD_MODULES = {
    "lora": "loraudit.inject",
    "peft": "loraudit.peft_bridge",
    "head": "loraudit.baselines",
    "full": "loraudit.baselines",
}
"""Method name -> the module whose `apply` and `export` carry it out."""

ADAPTER_METHODS = ("lora", "peft")


class Frozen(BaseModel):
    """Base of all values: unchangeable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WheelSource(Frozen):
    """A file or folder inside a wheel on the package index, pinned by hash, never imported."""

    wheel: str = Field(pattern=r"^[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    path: str


class FolderSource(Frozen):
    """A local folder in the hub's layout (for data: with a config name inside)."""

    folder: str
    config: str | None = None


class HubSource(Frozen):
    """A repository on the Hugging Face hub at a pinned revision."""

    hub: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    config: str | None = None


Source = WheelSource | FolderSource | HubSource


class RatingRule(Frozen):
    """Turn a table with a mean human rating into a two-class task with a fixed split.

    The label is the sign of `column`; rows with |rating| < `neutral_below` are dropped, and so are
    rows whose text repeats an earlier one (case, punctuation and spacing aside). Rows are ordered
    by the SHA-256 of their normalised text; the first `validation_rows` are the validation split.
    """

    column: str
    neutral_below: float = Field(ge=0)
    validation_rows: int = Field(ge=1)


class TaskEntry(Frozen):
    """One entry of tasks.yaml."""

    name: str
    source: Source
    text: tuple[str, ...] = Field(min_length=1, max_length=2)
    label: str | None = None
    rating: RatingRule | None = None
    classes: tuple[str, ...] = ()
    train_split: str = "train"
    validation_split: str = "validation"
    metrics: tuple[Literal["accuracy", "f1", "matthews", "pearson", "spearman"], ...]
    headline: str

    @model_validator(mode="after")
    def _consistent(self) -> "TaskEntry":
        if self.headline not in self.metrics:
            raise ValueError(f"headline {self.headline!r} is not among metrics {self.metrics}")
        if (self.label is None) == (self.rating is None):
            raise ValueError("give exactly one of 'label' and 'rating'")
        if len(self.classes) == 1:
            raise ValueError("a classification task needs two classes or more (none: regression)")
        if self.rating and len(self.classes) != 2:
            raise ValueError("a 'rating' makes two classes; name both")
        return self

    @property
    def regression(self) -> bool:
        """Whether the label is a number to predict rather than a class."""
        return not self.classes


class ModelEntry(Frozen):
    """One entry of models.yaml, its family's module names filled in.

    In `modules`, `*` stands for a layer number: "encoder.layer.*.output.dense" is the MLP's
    down-projection and never matches "encoder.layer.0.attention.output.dense".
    """

    name: str
    source: Source
    modules: dict[Literal["q", "k", "v", "o", "up", "down"], str] = Field(min_length=1)
    head: tuple[str, ...] = Field(min_length=1)


Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class RunSpec(Frozen):
    """Everything that can change a run's numbers. config/defaults.yaml explains each field."""

    task: TaskEntry
    model: ModelEntry
    method: Literal["lora", "peft", "head", "full"]
    rank: Count | None
    alpha: Positive | None
    targets: tuple[Literal["q", "k", "v", "o", "up", "down"], ...] | None
    lora_dropout: Fraction | None
    init: Literal["kaiming", "gaussian"] | None
    head: Literal["trained", "frozen"]
    train_rows: Count | None
    validation_rows: Count | None
    global_batch: Count
    micro_batch: Count
    epochs: Count
    learning_rate: Positive
    schedule: Literal["linear", "constant", "cosine"]
    warmup_ratio: Fraction
    weight_decay: Annotated[float, Field(ge=0)]
    adam_beta1: Fraction
    adam_beta2: Fraction
    adam_epsilon: Positive
    max_grad_norm: Positive | None
    max_length: Annotated[int, Field(ge=4)]
    padding: Literal["dynamic", "max_length"]
    batching: Literal["shuffle", "length_grouped"]
    precision: Literal["fp32", "bf16"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]

    @model_validator(mode="after")
    def _consistent(self) -> "RunSpec":
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not divisible by micro_batch "
                f"{self.micro_batch} (legal micro_batch: a divisor of {self.global_batch})"
            )
        if self.method == "head" and self.head == "frozen":
            raise ValueError("method 'head' with head 'frozen' would train nothing")
        return self

    @property
    def adapter(self) -> bool:
        """Whether the method trains LoRA matrices."""
        return self.method in ADAPTER_METHODS


class Run(Frozen):
    """A named run: `id` is its folder below results/<study>/runs/."""

    id: str
    label: str
    spec: RunSpec


class Study(Frozen):
    """A question and the runs that answer it."""

    name: str
    question: str
    runs: tuple[Run, ...]

    def cells(self) -> dict[str, RunSpec]:
        """Return one spec per cross-check: the first run of each cell, whatever seed or method."""
        out: dict[str, RunSpec] = {}
        for run in self.runs:
            if run.spec.adapter:
                out.setdefault(cell_id(run), run.spec)
        return out


class Config(Frozen):
    """config/config.yaml, which explains each key."""

    study: str
    task: str | None
    model: str | None
    glue: str
    models: str
    launch: Literal["cpu", "cpu2", "gpu", "multi_gpu_bf16"] = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1


def validated(cls: type[BaseModel], data: dict, where: str) -> Any:
    """Make a `cls` from `data`.

    Raises:
        UserError: for the first thing that is wrong, with key, value and legal values.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected keys and values, got {data!r}")
    for key in data:
        if key not in cls.model_fields:
            raise unknown(f"{where}: key", key, cls.model_fields)
    try:
        return cls(**data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "literal_error":
            legal = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            raise unknown(f"{where}: {key}", first["input"], legal) from None
        if first["type"] == "missing":
            raise UserError(f"{where}: key {key!r} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        shown = f"{key} = {first['input']!r}: " if key else ""
        raise UserError(f"{where}: {shown}{message}") from None


def read_yaml(path: Path | str) -> dict:
    """Read a YAML mapping.

    Raises:
        UserError: no such file, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    return _read_yaml(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_yaml(path: Path, mtime: int) -> dict:
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys and values at the top level")
    return data


def load_task(name: str, path: Path | str = "config/tasks.yaml") -> TaskEntry:
    """Read one task's entry. Raises UserError if unknown or ill-formed."""
    tasks = read_yaml(path)
    if name not in tasks:
        raise unknown("task", name, tasks)
    return validated(TaskEntry, {"name": name, **tasks[name]}, f"{path}: {name}")


def load_model(name: str, path: Path | str = "config/models.yaml") -> ModelEntry:
    """Read one model's entry, with its family's module names. Raises UserError if ill-formed."""
    table = read_yaml(path)
    families, models = table.get("families", {}), table.get("models", {})
    if name not in models:
        raise unknown("model", name, models)
    entry = dict(models[name])
    family = entry.pop("family", None)
    if family is not None and family not in families:
        raise unknown(f"{path}: {name}: family", family, families)
    data = {"name": name, **families.get(family, {}), **entry}
    return validated(ModelEntry, data, f"{path}: {name}")


def parse_targets(value: str | Iterable[str], model: ModelEntry) -> tuple[str, ...]:
    """Turn "q+v", "all" or ["q", "v"] into matrix names in the order of `MATRICES`.

    Raises:
        UserError: a name that is no matrix, or that this model lacks.
    """
    if value == "all":
        return tuple(name for name in MATRICES if name in model.modules)
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
        overrides: RunSpec fields that hold for every run (command-line switches). They become
            part of the study's name, so that two switches never share results.
        folder: where defaults.yaml, tasks.yaml and models.yaml are.
        glue: "hub", or a local folder in the hub's layout that stands in for it.
        models: "hub", or a local folder with one sub-folder per model name.

    Raises:
        UserError: anything unknown, ill-formed, inconsistent or doubled.
    """
    path, folder = Path(path), Path(folder)
    raw = read_yaml(path)
    for key in raw:
        if key not in ("question", "defaults", "grid"):
            raise unknown(f"{path}: key", key, ("question", "defaults", "grid"))
    blocks = raw.get("grid")
    if not isinstance(blocks, list) or not blocks:
        raise UserError(f"{path}: grid: expected a list of blocks, got {blocks!r}")
    overrides = overrides or {}
    shared = {**read_yaml(folder / "defaults.yaml"), **(raw.get("defaults") or {})}
    local = {"glue": glue, "models": models}
    runs: list[Run] = []
    for number, block in enumerate(blocks, 1):
        runs += _expand(shared, block, overrides, folder, local, f"{path}: grid block {number}")
    for name, count in Counter(run.id for run in runs).items():
        if count > 1:
            raise UserError(f"{path}: {count} runs are called {name!r}; give a block a 'label'")
    suffix = "".join(f"-{value}" for _, value in sorted(overrides.items()))
    return Study(name=path.stem + suffix, question=raw.get("question", ""), runs=tuple(runs))


def _expand(
    shared: dict, block: dict, overrides: dict, folder: Path, local: dict, where: str
) -> list[Run]:
    """Expand one grid block: every list-valued key is an axis."""
    if not isinstance(block, dict):
        raise UserError(f"{where}: expected keys and values, got {block!r}")
    block = dict(block)
    label = str(block.pop("label", ""))
    legal = [*RunSpec.model_fields, "label"]
    for key in (*shared, *block, *overrides):
        if key not in legal:
            raise unknown(f"{where}: key", key, legal)
    merged = {**shared, **block, **overrides}
    axes = {key: value for key, value in merged.items() if isinstance(value, list)}
    named = ("task", "model", "method", "rank", "targets", "seed")
    runs = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        extra = [f"{key}{value}" for key, value in point.items() if key not in named]
        spec = _run_spec({**merged, **point}, folder, local, where)
        tag = "-".join(filter(None, [*extra, label]))
        runs.append(Run(id=run_id(spec, tag), label=tag, spec=spec))
    return runs


def _run_spec(fields: dict, folder: Path, local: dict, where: str) -> RunSpec:
    """Resolve names to entries and blank the fields that the method does not use."""
    fields = dict(fields)
    try:
        task = load_task(fields["task"], folder / "tasks.yaml")
        model = load_model(fields["model"], folder / "models.yaml")
        if fields.get("method") in ADAPTER_METHODS:
            fields["targets"] = parse_targets(fields["targets"], model)
        else:
            fields.update(rank=None, alpha=None, targets=None, lora_dropout=None, init=None)
    except KeyError as error:
        raise UserError(f"{where}: key {error} is missing") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if isinstance(task.source, HubSource) and local["glue"] != "hub":
        source = FolderSource(folder=local["glue"], config=task.source.config)
        task = task.model_copy(update={"source": source})
    if isinstance(model.source, HubSource) and local["models"] != "hub":
        source = FolderSource(folder=str(Path(local["models"], model.name)))
        model = model.model_copy(update={"source": source})
    spec = validated(RunSpec, {**fields, "task": task, "model": model}, where)
    if spec.adapter and None in (spec.rank, spec.alpha, spec.lora_dropout, spec.init):
        raise UserError(f"{where}: method {spec.method!r} needs rank, alpha, lora_dropout and init")
    return spec


def targets_name(spec: RunSpec) -> str:
    """Return "q+v" and so on, or "all" for every matrix that the model has."""
    names = spec.targets or ()
    return "all" if set(names) == set(spec.model.modules) else "+".join(names)


def run_id(spec: RunSpec, tag: str = "") -> str:
    """Name a run: <task>/<model>/<method>[-r<rank>-<targets>][-<tag>]/s<seed>."""
    parts = [spec.method, *_cell_parts(spec), tag]
    variant = "-".join(filter(None, parts))
    return f"{spec.task.name}/{spec.model.name}/{variant}/s{spec.seed}"


def cell_id(run: Run) -> str:
    """Name the cross-check of a run: <task>/<model>/r<rank>-<targets>[-<tag>]."""
    variant = "-".join(filter(None, [*_cell_parts(run.spec), run.label]))
    return f"{run.spec.task.name}/{run.spec.model.name}/{variant}"


def _cell_parts(spec: RunSpec) -> list[str]:
    return [f"r{spec.rank}", targets_name(spec)] if spec.adapter else []


def digest(value: BaseModel) -> str:
    """Return a SHA-256 of a value's canonical JSON."""
    text = json.dumps(value.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(seed: int, *names: object) -> int:
    """Derive a 63-bit seed for one purpose, so that no draw depends on another's count."""
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
