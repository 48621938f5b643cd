"""What a run is: a frozen value, checked when it is read.

A `RunSpec` holds everything that can change a number. How studies expand into runs is in expand.py,
apart from here, so that an edit there retrains nothing. No torch is imported: the Snakefile reads
this module to build the DAG.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from loraudit.studies.entries import Matrix, ModelEntry, TaskEntry
from loraudit.studies.method_settings import MethodSettings
from loraudit.studies.methods import METHODS, MethodEntry, resolve
from loraudit.studies.peft_options import check_options
from loraudit.studies.values import Count, Fraction, Frozen, Positive


class WarmStart(Frozen):
    """Start from another run's adapter (paper, appendix D.1: MRPC, RTE and STS-B from MNLI).

    `spec_sha256` is the digest of that run's spec, so that the value of a run holds all that it
    comes from. `tensors` says what is copied: lora_A and lora_B alone, or the head's hidden layers
    with them (RoBERTa's classifier.dense, as the released code's loading would). The output layer
    is never copied.
    """

    run: str
    spec_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensors: Literal["adapter", "adapter+head"]


class AdapterSpec(Frozen):
    """A run's LoRA matrices; config/defaults.yaml explains each field.

    `init` is None for methods that start A and B in a way of their own.
    """

    rank: Count
    alpha: Positive
    targets: tuple[Matrix, ...] = Field(min_length=1)
    lora_dropout: Fraction
    init: Literal["kaiming", "gaussian", "error", "loftq"] | None
    init_std: Positive | None
    warm_start: WarmStart | None
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
        """Whether ranks or starts come from the quantisation error of the base."""
        return self.ranks == "error" or self.init in ("error", "loftq")

    @model_validator(mode="after")
    def _consistent(self) -> "AdapterSpec":
        if self.init_std and self.init != "gaussian":
            raise ValueError(f"init_std {self.init_std:g} goes with init 'gaussian' only")
        if self.peft:
            check_options(self.peft)
            if self.warm_start:
                raise ValueError("a warm_start copies plain LoRA matrices: leave peft empty")
            if "init_lora_weights" in self.peft and self.init != "kaiming":
                raise ValueError(
                    f"init {self.init!r} and peft's init_lora_weights: set one of them"
                )
        return self


class RunSpec(Frozen):
    """Everything that can change a run's numbers. config/defaults.yaml explains each field.

    `adapter` is None for methods without LoRA matrices, `settings` for methods without settings of
    their own.
    """

    task: TaskEntry
    model: ModelEntry
    method: str
    adapter: AdapterSpec | None
    settings: SerializeAsAny[MethodSettings] | None
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
    precision: Literal["fp32", "tf32", "bf16"]
    compute: Literal["fast", "plain", "compiled"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    base_bits: Literal[2, 3, 4, 8] | None
    base_group: Count | None

    @field_validator("method")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in METHODS:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(METHODS)})
        return value

    @field_validator("settings", mode="before")
    @classmethod
    def _of_the_methods_class(cls, value: Any, info: ValidationInfo) -> Any:
        """Make the settings of the class that the method's entry names."""
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
        if self.facts.trains == "head" and self.head == "frozen":
            raise ValueError(f"method {self.method!r} with head 'frozen' would train nothing")
        self._check_method()
        self._check_bits()
        if self.settings:
            self.settings.check(self)
        return self

    def _check_method(self) -> None:
        """Check that the run has what its method needs, and nothing that the method has not."""
        if (self.adapter is None) == (self.facts.trains == "adapter"):
            word = "needs an" if self.adapter is None else "has no"
            raise ValueError(f"method {self.method!r} {word} adapter")
        if (self.settings is None) != (self.facts.settings is None):
            word = "needs" if self.settings is None else "has no"
            raise ValueError(f"method {self.method!r} {word} settings of its own")
        if self.adapter is None:
            return
        if self.adapter.init is None and not self.facts.own_init:
            raise ValueError(f"method {self.method!r} needs an init")
        if self.adapter.peft and self.method != "peft":
            raise ValueError(
                f"peft {self.adapter.peft} goes with method 'peft' only, not {self.method!r}"
            )
        if self.adapter.warm_start and self.facts.moves_ranks:
            raise ValueError(f"method {self.method!r} starts cold (legal warm_start: null)")

    def _check_bits(self) -> None:
        """Check what goes with a quantised base, and with an unquantised one."""
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
            if changed or options.get("lora_bias"):
                raise ValueError(f"peft {options} does not go with a quantised base (base_bits)")

    def _check_unquantised(self) -> None:
        """Refuse starts and ranks that come from a quantisation error where there is none."""
        if self.adapter and self.adapter.from_error:
            key = "init" if self.adapter.init in ("error", "loftq") else "ranks"
            raise ValueError(
                f"{key} {getattr(self.adapter, key)!r} starts from the quantisation error: set "
                "base_bits (legal: 2, 3, 4, 8)"
            )

    @property
    def facts(self) -> MethodEntry:
        """What is known of the run's method."""
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
    def warm_start(self) -> WarmStart | None:
        """The run that this one starts from, if it does not start cold."""
        return self.adapter.warm_start if self.adapter else None

    @property
    def uneven_ranks(self) -> bool:
        """Whether the layers' ranks may differ: those in use are then written down."""
        return self.adapter is not None and (
            self.adapter.ranks != "uniform" or self.facts.moves_ranks
        )

    @property
    def twins(self) -> bool:
        """Whether our code and PEFT's both have this run: not what one of them alone has."""
        return self.facts.twin is not None and not self.lora.peft

    @property
    def crosschecked(self) -> bool:
        """Whether the run starts as both our code and PEFT's can."""
        return self.facts.crosschecked and not self.lora.peft

    def flat(self) -> dict[str, Any]:
        """Return the fields by their names in a study file, as JSON values.

        The adapter's fields stand beside the others (None without an adapter), the method's own
        settings under the method's name.
        """
        fields = self.model_dump(mode="json")
        adapter, settings = fields.pop("adapter"), fields.pop("settings")
        own = {self.method: settings} if settings else {}
        return {**fields, **(adapter or dict.fromkeys(AdapterSpec.model_fields)), **own}


FLAT_FIELDS = (
    *(name for name in RunSpec.model_fields if name not in ("adapter", "settings")),
    *AdapterSpec.model_fields,
)
"""The names of a run's fields in a study file; methods' own settings stand under their names."""


def digest(value: BaseModel) -> str:
    """Return a SHA-256 of a value's canonical JSON."""
    text = json.dumps(value.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(seed: int, *names: object) -> int:
    """Derive a 63-bit seed for one purpose, so that no draw depends on another's count."""
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
