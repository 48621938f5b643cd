"""What a task and a model are: their entries in config/tasks.yaml and config/models.yaml."""

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from loraudit.studies.values import Count, Frozen

Matrix = Literal["q", "k", "v", "o", "gate", "up", "down"]


MATRICES: tuple[Matrix, ...] = get_args(Matrix)
"""Names of the adaptable weight matrices: attention's query, key, value, output; the MLP's: into it
(`up`, and in a gated MLP `gate`, whose outputs go through the activation) and out of it (`down`).
"""


class WheelSource(Frozen):
    """A file or folder inside a wheel on the package index, pinned by hash, never imported."""

    wheel: str = Field(pattern=r"^[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*$")
    """name==version on the package index"""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """digest of the wheel; a file with another digest is refused"""
    path: str
    """a folder (models) or a table (tasks) in it: CSV, or .txt or .tsv with tabs and no quotes"""


class PartsSource(Frozen):
    """A zip file that is cut into parts, each a file inside a wheel of its own."""

    parts: tuple[WheelSource, ...] = Field(min_length=2)
    """the wheels in the order of the parts; the `path` of each is that of the part, one file"""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """digest of the parts joined, which are a zip file; one with another digest is refused"""
    path: str
    """a folder (models) or a table (tasks) in the zip file, as in a wheel"""


class FolderSource(Frozen):
    """A local folder in the hub's layout (for data: with a config name inside)."""

    folder: str
    """its path, relative to the folder in which Snakemake is run"""
    config: str | None = None
    """configuration named in the folder's README.md; null: the folder holds one data set"""


class HubSource(Frozen):
    """A repository on the Hugging Face hub at a pinned revision."""

    hub: str
    """owner/name"""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """the commit"""
    config: str | None = None
    """configuration of a data set"""


KINDS = ("wheel", "parts", "folder", "hub")
"""The keys that tell the kind of a source: it has one of them."""


def _kind(source: Any) -> str | None:
    """Return which of `KINDS` a source has, in a file or made; None unless it is exactly one."""
    keys = type(source).model_fields if isinstance(source, Frozen) else source
    given = [kind for kind in KINDS if kind in keys] if isinstance(keys, Mapping) else []
    return given[0] if len(given) == 1 else None


Source = Annotated[
    Annotated[WheelSource, Tag("wheel")]
    | Annotated[PartsSource, Tag("parts")]
    | Annotated[FolderSource, Tag("folder")]
    | Annotated[HubSource, Tag("hub")],
    Discriminator(
        _kind,
        custom_error_type="source_kind",
        custom_error_message=f"a source has exactly one of the keys {', '.join(KINDS)}",
    ),
]


class RatingRule(Frozen):
    """Turn a table with a mean human rating into a two-class task with a fixed split.

    The label is the sign of `column`; rows with |rating| < `neutral_below` are dropped, and so are
    rows whose text repeats an earlier one (case, punctuation and spacing aside). Rows are ordered
    by the SHA-256 of their normalised text; the first `validation_rows` are the validation split.
    """

    column: str
    """column of the mean rating"""
    neutral_below: float = Field(ge=0)
    """rows rated closer to 0 than this are dropped"""
    validation_rows: int = Field(ge=1)
    """rows of the validation split"""


Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "log_loss", "perplexity"]

FITTING: dict[Metric, str] = {
    "accuracy": "classes",
    "f1": "two classes",
    "matthews": "classes",
    "pearson": "a number to predict",
    "spearman": "a number to predict",
    "log_loss": "text to predict",
    "perplexity": "text to predict",
}
"""What each metric is of. F1 is of the second of two classes."""


class TaskEntry(Frozen):
    """One entry of tasks.yaml.

    `also_validate` maps a name to a further split of the source that is scored after each epoch
    beside the validation split (MNLI's mismatched). `rows` are the published sizes: a run on other
    sizes is a subset and is never compared with a published number.

    A task of kind "causal_lm" has no labels: a decoder predicts each token of a text from those
    before it. Of one text column every token but the first is predicted. Of two columns the first
    is the prompt and the second the completion, and only the completion's tokens are predicted.
    """

    name: str
    """the entry's own key"""
    source: Source
    """where the data come from"""
    kind: Literal["labels", "causal_lm"] = "labels"
    """what is predicted: `labels`, that is classes or a number for each row, or the text itself,
    token by token (`causal_lm`)"""
    text: tuple[str, ...] = Field(min_length=1, max_length=2)
    """one or two text columns; of `causal_lm`, two are a prompt and its completion"""
    label: str | None = None
    """label column: class numbers from 0, names of `classes`, or numbers to predict; null where
    `rating` is set"""
    rating: RatingRule | None = None
    """make two classes and a validation split from one table with ratings"""
    validation_rows: Count | None = None
    """of `causal_lm` on a single table: how many of its texts validate, the first in the order of
    the SHA-256 of their normalised text; texts that repeat another are dropped"""
    classes: tuple[str, ...] = ()
    """names of the classes in label order, two or more; left out if a number is to be predicted"""
    train_split: str = "train"
    """split to train on"""
    validation_split: str = "validation"
    """split to choose the epoch on and to score"""
    also_validate: dict[Annotated[str, Field(pattern=r"^[a-z_]+$")], str] = {}
    """`name: split` of further splits to score; MNLI's `mismatched`, for example"""
    rows: dict[str, int] | None = None
    """published number of rows of each split; a run on other numbers is called a subset"""
    metrics: tuple[Metric, ...]
    """scores to compute; accuracy and matthews are of classes, f1 is of two classes, pearson and
    spearman are of a number to predict, log_loss and perplexity are of `causal_lm`"""
    headline: str
    """the one of `metrics` that chooses the best epoch and is reported"""

    @model_validator(mode="after")
    def _consistent(self) -> "TaskEntry":
        if self.headline not in self.metrics:
            raise ValueError(f"headline {self.headline!r} is not among metrics {self.metrics}")
        self._check_kind()
        if len(self.classes) == 1:
            raise ValueError("a classification task needs two classes or more (none: regression)")
        self._check_metrics()
        if {"train", "validation"} & set(self.also_validate):
            raise ValueError("also_validate: 'train' and 'validation' are taken")
        splits = {"train", "validation", *self.also_validate}
        if self.rows is not None and set(self.rows) != splits:
            raise ValueError(f"rows: name each of {', '.join(sorted(splits))}, or leave it out")
        if self.rating and len(self.classes) != 2:
            raise ValueError("a 'rating' makes two classes; name both")
        return self

    def _check_kind(self) -> None:
        """Refuse labels of a task that predicts text, and a task of labels without them."""
        if self.causal_lm:
            for key in ("label", "rating", "classes"):
                if getattr(self, key):
                    raise ValueError(f"kind 'causal_lm' predicts the text: leave out {key!r}")
            table = isinstance(self.source, WheelSource | PartsSource)
            if table != (self.validation_rows is not None):
                raise ValueError(
                    "validation_rows: a single table in a wheel needs it, to be split"
                    if table
                    else "validation_rows splits a single table in a wheel; this source has splits"
                )
        elif (self.label is None) == (self.rating is None):
            raise ValueError("give exactly one of 'label' and 'rating'")
        elif self.validation_rows is not None:
            raise ValueError("validation_rows goes with kind 'causal_lm' only")

    def _check_metrics(self) -> None:
        """Refuse metrics that can't be computed of what the task predicts."""
        count = len(self.classes)
        kinds = {0: ["a number to predict"], 2: ["classes", "two classes"]}.get(count, ["classes"])
        if self.causal_lm:
            kinds = ["text to predict"]
        legal = [name for name, kind in FITTING.items() if kind in kinds]
        for name in self.metrics:
            if name not in legal:
                has = f"{count} classes" if count else kinds[0]
                raise ValueError(
                    f"metric {name!r} is of {FITTING[name]}, and the task has {has} "
                    f"(legal: {', '.join(legal)})"
                )

    @property
    def causal_lm(self) -> bool:
        """Whether each token of a text is to be predicted from those before it."""
        return self.kind == "causal_lm"

    @property
    def regression(self) -> bool:
        """Whether the label is a number to predict rather than a class."""
        return not self.classes and not self.causal_lm


class ListedTask(TaskEntry):
    """A task as tasks.yaml lists it, with what is known of it that changes no number."""

    shares_texts_with: dict[str, str] = {}
    """other tasks that are largely made of the same texts, and how far: such tasks never count as
    confirmation of each other, and no run may start from a run on the other"""


class FusedPart(Frozen):
    """A matrix that a model keeps in one layer with others, side by side along its outputs.

    GPT-2's query, key and value are thirds of one layer: `{module: h.*.attn.c_attn, part: 0, of:
    3}` is its query. Shares that depend on the model's sizes are given by names of its config:
    `of: [num_attention_heads, num_key_value_heads, num_key_value_heads]`. If the parts follow each
    other again in every head, `repeats: num_attention_heads` says so.
    """

    module: str
    """name of the layer, `*` for the layer number"""
    part: int = Field(ge=0)
    """which part of the layer it is, counted from 0"""
    of: Annotated[int, Field(ge=2)] | Annotated[tuple[Count | str, ...], Field(min_length=2)]
    """how many equal parts the layer has, or the share of each: whole numbers, or names of numbers
    in the model's config"""
    repeats: Count | str = 1
    """how often all parts follow each other along the outputs: a whole number, or the name of one
    in the model's config"""

    @model_validator(mode="after")
    def _consistent(self) -> "FusedPart":
        count = self.of if isinstance(self.of, int) else len(self.of)
        if self.part >= count:
            raise ValueError(f"part {self.part} of {count} (legal: 0 to {count - 1})")
        return self


Rows = tuple[tuple[int, int], ...]
"""Some outputs of a layer, as ranges (first, after the last) in rising order."""


def range_sizes(rows: Rows) -> list[int]:
    """Return the number of outputs of each range."""
    return [stop - start for start, stop in rows]


Module = str | FusedPart
"""What a model's entry says of a matrix: the name of a layer, or a part of one."""


def layer_pattern(module: Module) -> str:
    """Return the name of the layer that has a matrix, `*` for the layer number."""
    return module.module if isinstance(module, FusedPart) else module


def parsed_modules(modules: Mapping[str, Any]) -> dict[str, Module]:
    """Return the `modules` of a family as models.yaml has them, with parts as `FusedPart`."""
    return {
        matrix: FusedPart(**module) if isinstance(module, dict) else module
        for matrix, module in modules.items()
    }


def adapter_pattern(matrix: str, module: Module) -> str:
    """Return the name of a matrix's adapter: the layer's, with `.q` and so on for a part of it."""
    return f"{module.module}.{matrix}" if isinstance(module, FusedPart) else module


class ModelEntry(Frozen):
    """One entry of models.yaml, its family's module names filled in.

    In `modules`, `*` stands for a layer number, once in each name: "encoder.layer.*.output.dense"
    is the MLP's down-projection and never matches "encoder.layer.0.attention.output.dense". A layer
    is known by its number and its matrix (`place_of`), so no two may share them. `output` is the
    head's last layer, which has one row per class; left out, it is the last module of `head`.
    `first_token` names the attention blocks, of BERT's kind (with `self` and `output` inside) or of
    MPNet's (with `attn` inside), in a model whose head reads the first token alone; the fast path
    cuts the last of them down to it.
    """

    name: str
    """the entry's own key"""
    source: Source
    """where config, weights (safetensors) and tokenizer come from"""
    modules: dict[Matrix, Module] = Field(min_length=1)
    """module name of each weight matrix, `*` for the layer number, or which part of a module it is;
    `family` fills it in"""
    some_layers: tuple[Matrix, ...] = ()
    """matrices that only some of the layers have; any other one has to be in every layer"""
    shared_layers: bool = False
    """whether all layers are one block of weights, as in ALBERT, so that an adapter in it is shared
    by all of them too; `plan` says so"""
    head: tuple[str, ...]
    """modules of the classification head; `family` fills it in. A run on a task of `causal_lm` has
    none"""
    output: str | None = None
    """the head's last layer, if it is not the last of `head`"""
    first_token: str | None = None
    """the attention blocks of a model whose head reads the first token alone; `family` fills it
    in"""
    pooler: str | None = None
    """the dense layer of BERT's kind of model between its first token and the head; `family` fills
    it in"""
    pretrained_pooler: bool = True
    """whether the checkpoint's pooler was trained; false: it belongs to the head, so that the seed
    draws it, it is trained with the head, and its parameters count as the head's. A pooler whose
    biases are all 0 was never trained"""
    max_tokens: Annotated[int, Field(ge=4)] | None = None
    """most tokens of an input that the model can read, so that a longer `max_length` is refused
    before anything starts (RoBERTa's 514 positions are 512 tokens); null: it is found when the
    model is loaded"""

    @model_validator(mode="before")
    @classmethod
    def _with_pooler(cls, data: Any) -> Any:
        """Add a pooler that was never trained to the head."""
        if isinstance(data, dict) and data.get("pretrained_pooler", True) is False:
            pooler, head = data.get("pooler"), data.get("head")
            if pooler is None:
                raise ValueError("pretrained_pooler false: name the layer as `pooler`")
            if isinstance(head, list | tuple) and pooler not in head:
                return {**data, "head": [pooler, *head]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "ModelEntry":
        patterns = {f"modules: {name}": layer_pattern(m) for name, m in self.modules.items()}
        if self.first_token is not None:
            patterns["first_token"] = self.first_token
        for key, pattern in patterns.items():
            _check_pattern(key, pattern)
        for one, two in itertools.combinations(self.modules, 2):
            _check_pair(one, two, self.modules[one], self.modules[two])
        for matrix in self.some_layers:
            if matrix not in self.modules:
                legal = ", ".join(self.modules)
                raise ValueError(f"some_layers: {matrix!r} is not in modules (legal: {legal})")
        if not self.head and (self.output or self.first_token or self.pooler):
            raise ValueError("head: name the modules of the classification head")
        for outer, inner in itertools.permutations(self.head, 2):
            if f"{inner}.".startswith(f"{outer}."):
                raise ValueError(f"head: {inner!r} lies in {outer!r}; leave it out")
        return self

    @property
    def output_layer(self) -> str:
        """The module whose shape depends on the number of classes; "" of a model without head."""
        return self.output or (self.head[-1] if self.head else "")

    def without_head(self) -> "ModelEntry":
        """Return the entry of the same model as a language model, which has no head to train.

        The layer that turns hidden states into scores of tokens belongs to the base.
        """
        heads = {"head": (), "output": None, "first_token": None, "pooler": None}
        return ModelEntry(**{**dict(self), **heads, "pretrained_pooler": True})


def _check_pair(one: str, two: str, first: Module, second: Module) -> None:
    """Refuse two matrices that are the same outputs of one layer."""
    pattern = layer_pattern(first)
    if pattern != layer_pattern(second):
        return
    if not (isinstance(first, FusedPart) and isinstance(second, FusedPart)):
        raise ValueError(f"modules: {one} and {two} are both {pattern!r}")
    if (first.of, first.repeats) != (second.of, second.repeats):
        raise ValueError(
            f"modules: {one} and {two} cut {pattern!r} in two ways: give both one `of`"
        )
    if first.part == second.part:
        raise ValueError(f"modules: {one} and {two} are both part {first.part} of {pattern!r}")


def _check_pattern(key: str, pattern: str) -> None:
    """Refuse a module name in which not exactly one part is `*`, the layer number."""
    if pattern.count("*") != 1 or "*" not in pattern.split("."):
        raise ValueError(
            f"{key} = {pattern!r}: one part of the name has to be *, which stands for the layer "
            "number (legal: encoder.layer.*.attention.self.query, for example)"
        )


class ListedModel(ModelEntry):
    """A model as models.yaml lists it, with what is known of it that changes no number."""

    trained_on: dict[str, str] = {}
    """tasks on whose data the model was trained before, and what these were in: `plan` and the
    report say so where model and task meet"""


def place_of(adapter: str, modules: Mapping[Any, Module]) -> tuple[int, str] | None:
    """Return the number of a layer and its matrix (q k v o gate up down); None if no name fits it.

    Args:
        adapter: full name of an adapter in the model: the layer's name, and for a part of a layer
            the matrix after it.
        modules: module name of each matrix as in models.yaml, `*` for the layer number.
    """
    for matrix, module in modules.items():
        pattern = re.escape(adapter_pattern(matrix, module)).replace(r"\*", r"(\d+)")
        if hit := re.search(rf"(?:^|\.){pattern}$", adapter):
            return int(hit[1]), matrix
    return None
