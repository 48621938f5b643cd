"""What a run is: a frozen value, checked when it is read.

A `RunSpec` holds everything that can change a number. How studies expand into runs is in expand.py:
training does not import it, so an edit there retrains nothing. The Snakefile imports this module to
build the DAG, so it does without torch.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from loraudit.base.named_code import resolve
from loraudit.studies.entries import FusedPart, Matrix, ModelEntry, TaskEntry
from loraudit.studies.method_settings import MethodSettings
from loraudit.studies.methods import METHODS, MethodEntry
from loraudit.studies.peft_options import check_options
from loraudit.studies.values import Count, Fraction, Frozen, Positive

EpochChoice = Literal["selected", "best", "last"]
"""How the epoch of a score is chosen: the best on the selection rows, the best on the validation
rows themselves, or the last."""

CHOICES: tuple[EpochChoice, ...] = get_args(EpochChoice)
"""All choices of an epoch, the one to be preferred first."""

CHOSEN_ON: dict[EpochChoice, str] = {"selected": "selection", "best": "validation"}
"""The split whose score makes a choice; the last epoch is not chosen by any."""


class WarmStart(Frozen):
    """Start from another run's adapter (paper, appendix D.1: MRPC, RTE and STS-B from MNLI).

    `spec_sha256` is the digest of that run's spec, so that a run's spec fixes all that it comes
    from. `tensors` says what is copied: lora_A and lora_B alone, or also the head's hidden layers
    (RoBERTa's classifier.dense, which the released code would load too). The output layer is never
    copied. Of a method that trains weights of the model, these stand for lora_A and lora_B.
    """

    run: str
    spec_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensors: Literal["adapter", "adapter+head"]

    @property
    def task(self) -> str:
        """The task of the run that is started from."""
        return self.run.partition("/")[0]


class Candidate(Frozen):
    """Values that a run may get, and the runs that try them: {run: digest of its spec}."""

    values: dict[str, Any]
    runs: dict[str, str] = Field(min_length=1)


class Tuned(Frozen):
    """Fields of a run whose values other runs choose, on rows held out of the training split.

    The run waits for the runs of all candidates, and takes the values of the candidate that scores
    highest. They are named with the digests of their specs, so that a run's spec fixes all that it
    comes from. Until the choice is made, the fields hold the first candidate's values; the spec in
    a run's record holds the chosen ones.
    """

    candidates: tuple[Candidate, ...] = Field(min_length=1)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that are chosen."""
        return tuple(self.candidates[0].values)

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs of all candidates."""
        return tuple(run for candidate in self.candidates for run in candidate.runs)


class AdapterSpec(Frozen):
    """A run's LoRA matrices; config/defaults.yaml explains each field.

    `init` is None for methods that start A and B their own way.
    """

    rank: Count
    alpha: Positive
    targets: tuple[Matrix, ...] = Field(min_length=1)
    lora_dropout: Fraction
    init: Literal["kaiming", "gaussian", "error", "loftq"] | None
    init_std: Positive | None
    lora_plus: Positive | None
    ranks: Literal["uniform", "error"]
    least_rank: Annotated[int, Field(ge=0)]
    loftq_steps: Count
    peft: dict[str, Any]

    @property
    def scaling(self) -> float:
        """The factor alpha / r of the update B A."""
        return self.alpha / self.rank

    @property
    def from_error(self) -> bool:
        """Whether ranks or starting values are computed from the base's quantisation error."""
        return self.ranks == "error" or self.init in ("error", "loftq")

    @model_validator(mode="after")
    def _consistent(self) -> "AdapterSpec":
        if self.init_std and self.init != "gaussian":
            raise ValueError(f"init_std {self.init_std:g} goes with init 'gaussian' only")
        if self.peft:
            check_options(self.peft)
            if kind := self.peft.get("peft_type"):
                legal = {"lora_dropout": 0, "lora_plus": None, "init": "kaiming"}
                for key, value in legal.items():
                    if getattr(self, key) != value:
                        raise ValueError(f"{key} {getattr(self, key)!r} is of LoRA, not {kind}")
            if "init_lora_weights" in self.peft and self.init != "kaiming":
                raise ValueError(
                    f"init {self.init!r} and peft's init_lora_weights: set one of them"
                )
        return self


class RunSpec(Frozen):
    """Everything that can change a run's numbers. config/defaults.yaml explains each field.

    `adapter` is None for methods without LoRA matrices, and `settings` for methods that have no
    settings of their own.
    """

    task: TaskEntry
    model: ModelEntry
    method: str
    adapter: AdapterSpec | None
    settings: SerializeAsAny[MethodSettings] | None
    head: Literal["trained", "frozen"]
    train_rows: Count | None
    train_draw: Literal["seed", "first"]
    selection_rows: Count | None
    validation_rows: Count | None
    validate_epochs: Literal["all", "chosen", "last", "none"]
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
    precision: Literal["fp32", "tf32", "bf16"]
    compute: Literal["fast", "plain", "compiled"]
    recompute: Literal["none", "blocks"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    base_bits: Literal[2, 3, 4, 8] | None
    base_group: Count | None
    warm_start: WarmStart | None
    tuned: Tuned | None = None

    @field_validator("method")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in METHODS:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(METHODS)})
        return value

    @field_validator("model")
    @classmethod
    def _as_the_task_needs_it(cls, value: ModelEntry, info: ValidationInfo) -> ModelEntry:
        """Leave the classification head out of a run that predicts text."""
        task = info.data.get("task")
        if isinstance(task, TaskEntry) and not task.causal_lm and not value.head:
            raise ValueError(f"model {value.name!r} has no head, and task {task.name!r} needs one")
        return value.without_head() if task and task.causal_lm and value.head else value

    @field_validator("settings", mode="before")
    @classmethod
    def _of_the_methods_class(cls, value: Any, info: ValidationInfo) -> Any:
        """Turn a mapping into the class of settings that the method's entry names."""
        method = METHODS.get(info.data.get("method", ""))
        if method is None or not isinstance(value, dict):
            return value
        if method.settings is None:
            raise ValueError(f"method {method.name!r} has no settings of its own")
        return resolve(method.settings)(**value)

    @model_validator(mode="after")
    def _consistent(self) -> "RunSpec":
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not divisible by micro_batch "
                f"{self.micro_batch} (legal micro_batch: a divisor of {self.global_batch})"
            )
        if self.facts.trains == "head" and self.task.causal_lm:
            raise ValueError(
                f"method {self.method!r} trains a classification head, and task "
                f"{self.task.name!r} predicts text: it has none"
            )
        if self.facts.trains == "head" and self.head == "frozen":
            raise ValueError(f"method {self.method!r} with head 'frozen' would train nothing")
        most = self.model.max_tokens
        if most and self.max_length > most:
            raise ValueError(
                f"max_length {self.max_length} is more than model {self.model.name!r} can read "
                f"(legal: 4 to {most})"
            )
        self._check_method()
        self._check_bits()
        self._check_epochs()
        if self.recompute == "blocks" and self.compute == "compiled":
            raise ValueError("recompute 'blocks' goes with compute fast or plain, not 'compiled'")
        if self.tuned and self.selection_rows is None:
            raise ValueError("tuned fields are chosen on selection_rows: set them")
        if self.settings:
            self.settings.check(self)
        return self

    def _check_epochs(self) -> None:
        """Check that rows are held out if they choose an epoch, and are not if none is chosen."""
        asked, held = self.validate_epochs, self.selection_rows
        if asked in ("chosen", "none") and held is None:
            raise ValueError(
                f"validate_epochs {asked!r} chooses the epoch on rows held out of the training "
                "split: set selection_rows (or validate_epochs: all or last)"
            )
        if asked == "last" and held is not None:
            raise ValueError(
                f"validate_epochs 'last' reports the last epoch, so that selection_rows {held} "
                "would choose none: leave them out (or set validate_epochs: all or chosen)"
            )

    def _check_method(self) -> None:
        """Check that the run has the adapter and settings that its method needs, and no others."""
        if (self.adapter is None) == (self.facts.trains == "adapter"):
            word = "needs an" if self.adapter is None else "has no"
            raise ValueError(f"method {self.method!r} {word} adapter")
        if (self.settings is None) != (self.facts.settings is None):
            word = "needs" if self.settings is None else "has no"
            raise ValueError(f"method {self.method!r} {word} settings of its own")
        for key, value in self.facts.fixed.items():
            if getattr(self, key) != value:
                raise ValueError(f"method {self.method!r} goes with {key} {value!r} only")
        if self.warm_start and not self.facts.starts_warm:
            raise ValueError(f"method {self.method!r} starts cold (legal warm_start: null)")
        if self.adapter is None:
            return
        if self.adapter.init is None and not self.facts.own_init:
            raise ValueError(f"method {self.method!r} needs an init")
        if self.adapter.peft and self.method != "peft":
            raise ValueError(
                f"peft {self.adapter.peft} goes with method 'peft' only, not {self.method!r}"
            )
        self._check_parts(self.adapter)
        if self.adapter.peft and self.warm_start:
            raise ValueError("a warm_start copies plain LoRA matrices: leave peft empty")

    def _check_parts(self, adapter: AdapterSpec) -> None:
        """Refuse what only whole layers can have where a target is a part of a fused layer."""
        modules = self.model.modules
        parts = [name for name in adapter.targets if isinstance(modules.get(name), FusedPart)]
        needs = {
            f"method {self.method!r}": self.facts.whole_layers,
            f"peft {adapter.peft}": bool(adapter.peft),
            f"init {adapter.init!r}": adapter.init in ("error", "loftq"),
            f"ranks {adapter.ranks!r}": adapter.ranks == "error",
        }
        for what, whole in needs.items():
            if parts and whole:
                legal = [name for name in modules if not isinstance(modules[name], FusedPart)]
                raise ValueError(
                    f"{what} adapts whole layers only, and model {self.model.name!r} has "
                    f"{', '.join(parts)} as parts of a layer (legal targets: "
                    f"{', '.join(legal) or 'none'})"
                )

    def _check_bits(self) -> None:
        """Check that the other fields go with a quantised base, or with an unquantised one."""
        if self.base_bits is None:
            self._check_unquantised()
        elif self.facts.trains == "weights":
            legal = ", ".join(name for name, m in METHODS.items() if m.trains != "weights")
            raise ValueError(
                f"method {self.method!r} trains weights that base_bits {self.base_bits} freezes "
                f"(legal: {legal})"
            )
        elif self.base_group is None:
            raise ValueError(f"base_bits {self.base_bits} needs a base_group")
        elif self.precision == "bf16" or self.compute == "compiled":
            raise ValueError("base_bits goes with precision fp32 or tf32 and compute fast or plain")
        elif self.adapter and self.adapter.peft:
            options = self.adapter.peft
            changed = options.get("init_lora_weights", True) not in (True, False, "gaussian")
            if changed or options.get("lora_bias") or options.get("peft_type"):
                raise ValueError(f"peft {options} does not go with a quantised base (base_bits)")

    def _check_unquantised(self) -> None:
        """Refuse ranks and starts from the quantisation error: an unquantised base has none."""
        if self.adapter and self.adapter.from_error:
            key = "init" if self.adapter.init in ("error", "loftq") else "ranks"
            raise ValueError(
                f"{key} {getattr(self.adapter, key)!r} starts from the quantisation error: set "
                "base_bits (legal: 2, 3, 4, 8)"
            )

    @property
    def facts(self) -> MethodEntry:
        """The entry of the run's method in methods.yaml."""
        return METHODS[self.method]

    @property
    def lora(self) -> AdapterSpec:
        """The adapter, for code that runs only where there is one.

        Raises:
            TypeError: the method has no adapter.
        """
        if self.adapter is None:
            raise TypeError(f"method {self.method!r} has no adapter")
        return self.adapter

    @property
    def saves(self) -> bool:
        """Whether the run saves what it trained; one that only tunes does not."""
        return self.validate_epochs != "none"

    @property
    def reported_split(self) -> str:
        """The split whose scores are reported: a run that only tunes has those of its selection."""
        return "validation" if self.saves else "selection"

    def with_values(self, values: dict[str, Any]) -> "RunSpec":
        """Return the run with other values of some fields, by their names in a study file.

        Raises:
            ValidationError: a value is not legal, or does not go with the others.
        """
        fields = dict(self)
        adapter = {key: value for key, value in values.items() if key in AdapterSpec.model_fields}
        fields |= {key: value for key, value in values.items() if key not in adapter}
        if adapter:
            fields["adapter"] = AdapterSpec(**{**dict(self.lora), **adapter})
        return RunSpec(**fields)

    def planned(self) -> "RunSpec":
        """Return the run as a study plans it, before values are chosen for its tuned fields."""
        return self.with_values(self.tuned.candidates[0].values) if self.tuned else self

    @property
    def choices(self) -> tuple[EpochChoice, ...]:
        """How the epochs of the run's scores are chosen; weights of the first one are saved."""
        made = {"selected": self.selection_rows is not None, "best": self.validate_epochs == "all"}
        return tuple(choice for choice in CHOICES if made.get(choice, True))

    @property
    def uneven_ranks(self) -> bool:
        """Whether the layers' ranks may differ, so that the run writes down those in use."""
        return self.adapter is not None and (
            self.adapter.ranks != "uniform" or self.facts.moves_ranks
        )

    @property
    def twins(self) -> bool:
        """Whether both our code and PEFT's can train this run."""
        return self.facts.twin is not None and not self.lora.peft

    @property
    def crosschecked(self) -> bool:
        """Whether our code and PEFT's can both make the start of this run."""
        return self.facts.crosschecked and not self.lora.peft

    def flat(self) -> dict[str, Any]:
        """Return the fields by their names in a study file, as JSON values.

        The adapter's fields stand beside the others, all None without an adapter; the method's own
        settings stand under the method's name. `tuned` lists the fields whose values are chosen.
        """
        fields = self.model_dump(mode="json")
        adapter, settings = fields.pop("adapter"), fields.pop("settings")
        fields["tuned"] = list(self.tuned.fields) if self.tuned else None
        own = {self.method: settings} if settings else {}
        return {**fields, **(adapter or dict.fromkeys(AdapterSpec.model_fields)), **own}


FLAT_FIELDS = (
    *(name for name in RunSpec.model_fields if name not in ("adapter", "settings", "tuned")),
    *AdapterSpec.model_fields,
)
"""The names of a run's fields in a study file; methods' own settings stand under their names."""


ADAPTER_FIELDS = frozenset({*AdapterSpec.model_fields, "warm_start"})
"""Fields that mean nothing to full fine-tuning as it is published: those of an adapter, and what it
starts from."""


def digest(value: BaseModel) -> str:
    """Return the SHA-256 of a value written as JSON with sorted keys."""
    text = json.dumps(value.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(seed: int, *names: object) -> int:
    """Derive a 63-bit seed for the purpose that `names` say.

    With a seed for each purpose, no draw depends on how many numbers another purpose has drawn.
    """
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
