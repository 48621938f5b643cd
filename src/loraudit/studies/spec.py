"""What a run is: a frozen value, checked when it is read.

A `RunSpec` holds everything that can change a number. How studies expand into runs is in
`study.py`, apart from here, so that an edit there retrains nothing. No torch is imported: the
Snakefile reads both to build the DAG.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from loraudit.studies.entries import (
    Matrix,
    ModelEntry,
    TaskEntry,
)
from loraudit.studies.methods import ADAPTER_METHODS, LORA_METHODS
from loraudit.studies.peft_options import check_options
from loraudit.studies.values import Count, Fraction, Frozen, Positive, Share


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


class ALoRA(Frozen):
    """How ALoRA moves ranks (Liu et al. 2024, Algorithm 1). Defaults are the paper's values."""

    rounds: Count = 8
    """N_A, the most times that ranks are moved"""
    pruned: Count | Literal["modules", "kinds"] = "modules"
    """n_A, ranks moved a round: as many as there are adapted layers (`modules`), or kinds of
    matrices among them (`kinds`: 2 for q+v), or a number. The paper's n_A is N_mod, defined as the
    modules of one block and used (R_target = 8 N_mod = 20.0M parameters) as those of the model"""
    first: Positive = 1.0
    """K1, epochs before the first round"""
    between: Positive = 0.25
    """K2, epochs from one round to the next"""
    rows: Count = 32
    """rows of the batch on which ranks are scored, drawn by the run's seed"""
    split: Literal["validation", "train"] = "validation"
    """where these rows are from; the paper's validation split is also the one that is scored"""
    alone: Literal["model", "module"] = "model"
    """what is switched off to score a rank alone (M_r): all other ranks of the model, or of its
    own layer; the paper says all other ranks"""

    def steps(self, per_epoch: int) -> list[int]:
        """Return the optimizer steps after which the rounds are, `per_epoch` being an epoch's."""
        first, between = (max(1, round(part * per_epoch)) for part in (self.first, self.between))
        return [first + number * between for number in range(self.rounds)]


StepsOrShare = Annotated[int, Field(ge=0)] | Fraction


class AdaLoRA(Frozen):
    """AdaLoRA's schedule and scores (Zhang et al. 2023), in PEFT's names; `rank` is the target.

    The defaults are the paper's, or near its MNLI script's (8,000 and 50,000 of 85,900 steps, an
    allocation every 100), whose runs are longer.
    """

    init_rank: Count | None = None
    """rank of every layer at the start, above `rank`; null: 1.5 times it, rounded up"""
    tinit: StepsOrShare = 0.1
    """steps before the budget shrinks: a whole number, or a share of all steps"""
    tfinal: StepsOrShare = 0.6
    """steps at the end with the ranks fixed: a whole number, or a share of all steps"""
    deltaT: Count = 10
    """steps from one allocation to the next"""
    beta1: Share = 0.85
    """smoothing of the sensitivity"""
    beta2: Share = 0.85
    """smoothing of the uncertainty"""
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.1
    """weight of the penalty that keeps P and Q orthogonal"""

    def start(self, rank: int) -> int:
        """Return the initial rank for a target rank."""
        return self.init_rank or math.ceil(1.5 * rank)


ADAPTIVE: dict[str, type[Frozen]] = {"alora": ALoRA, "adalora": AdaLoRA}
"""Methods that move ranks, and the class of their settings, a field of the method's name."""


ADAPTER_FIELDS = (
    *("rank", "alpha", "targets", "lora_dropout", "init", "init_std", "warm_start"),
    *ADAPTIVE,
)
"""Fields that are None for methods without LoRA matrices."""


ADAPTER_OPTIONS = ("lora_plus", "ranks", "least_rank", "loftq_steps", "peft")
"""Fields of runs with LoRA matrices that came later: the others have them at their default."""


class RunSpec(Frozen):
    """Everything that can change a run's numbers. config/defaults.yaml explains each field."""

    task: TaskEntry
    model: ModelEntry
    method: Literal["lora", "peft", "alora", "adalora", "full", "bitfit", "head"]
    rank: Count | None
    alpha: Positive | None
    targets: tuple[Matrix, ...] | None
    lora_dropout: Fraction | None
    init: Literal["kaiming", "gaussian", "error", "loftq"] | None
    init_std: Positive | None
    warm_start: WarmStart | None
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
    alora: ALoRA | None = None
    adalora: AdaLoRA | None = None
    base_bits: Literal[2, 3, 4, 8] | None = None
    base_group: Count = 64
    ranks: Literal["uniform", "error"] = "uniform"
    least_rank: Annotated[int, Field(ge=0)] = 1
    loftq_steps: Count = 5
    lora_plus: Positive | None = None
    peft: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "RunSpec":
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not divisible by micro_batch "
                f"{self.micro_batch} (legal micro_batch: a divisor of {self.global_batch})"
            )
        if self.method == "head" and self.head == "frozen":
            raise ValueError("method 'head' with head 'frozen' would train nothing")
        if self.warm_start and not self.adapter:
            raise ValueError(f"method {self.method!r} has no adapter to start from")
        if self.init_std and self.init != "gaussian":
            raise ValueError(f"init_std {self.init_std:g} goes with init 'gaussian' only")
        if self.peft:
            self._check_peft()
        self._check_bits()
        self._check_adaptive()
        return self

    def _check_peft(self) -> None:
        """Check `peft`: its keys, and what it can't go with."""
        if self.method != "peft":
            raise ValueError(f"peft {self.peft} goes with method 'peft' only, not {self.method!r}")
        check_options(self.peft)
        if self.warm_start:
            raise ValueError("a warm_start copies plain LoRA matrices: leave peft empty")
        if "init_lora_weights" in self.peft and self.init != "kaiming":
            raise ValueError(f"init {self.init!r} and peft's init_lora_weights: set one of them")
        mutating = self.peft.get("init_lora_weights", True) not in (True, False, "gaussian")
        if self.base_bits and (mutating or self.peft.get("lora_bias")):
            raise ValueError(f"peft {self.peft} does not go with a quantised base (base_bits)")

    def _check_bits(self) -> None:
        """Check what goes with a quantised base, and with an unquantised one."""
        error = {"init": self.init in ("error", "loftq"), "ranks": self.ranks == "error"}
        if self.base_bits is None:
            for key in (key for key, used in error.items() if used):
                raise ValueError(
                    f"{key} {getattr(self, key)!r} starts from the quantisation error: set "
                    "base_bits (legal: 2, 3, 4, 8)"
                )
        elif self.method in ("full", "bitfit"):
            raise ValueError(
                f"method {self.method!r} trains weights that base_bits {self.base_bits} freezes "
                "(legal: lora, peft, alora, head)"
            )
        elif self.precision == "bf16" or self.compute == "compiled":
            raise ValueError("base_bits goes with precision fp32 or tf32 and compute fast or plain")

    def _check_adaptive(self) -> None:
        """Check the settings of methods that move ranks."""
        for name in ADAPTIVE:
            if (getattr(self, name) is None) == (self.method == name):
                raise ValueError(f"{name} goes with method {name!r}, and only with it")
        if self.method in ADAPTIVE and self.warm_start:
            raise ValueError(f"method {self.method!r} starts cold (legal warm_start: null)")
        if self.adalora:
            self._check_adalora(self.adalora)

    def _check_adalora(self, settings: AdaLoRA) -> None:
        """Check what AdaLoRA, which is PEFT's and starts in a way of its own, goes with."""
        if self.rank and settings.start(self.rank) <= self.rank:
            raise ValueError(
                f"adalora.init_rank {settings.init_rank} is not above the target, rank {self.rank}"
            )
        if self.init or self.init_std:
            raise ValueError("AdaLoRA draws A and B from N(0, 0.02^2) (legal init: null)")
        for key, legal in (("ranks", "uniform"), ("base_bits", None), ("lora_plus", None)):
            if getattr(self, key) != legal:
                raise ValueError(
                    f"method 'adalora' does not go with {key} {getattr(self, key)!r} "
                    f"(legal: {'null' if legal is None else legal})"
                )

    @property
    def adapter(self) -> bool:
        """Whether the method trains LoRA matrices."""
        return self.method in ADAPTER_METHODS

    @property
    def uneven_ranks(self) -> bool:
        """Whether the layers' ranks may differ: those in use are then written down."""
        return self.ranks != "uniform" or self.method in ADAPTIVE

    @property
    def twins(self) -> bool:
        """Whether our code and PEFT's both have this run: not what one of them alone has."""
        return self.method in LORA_METHODS and not self.peft

    @property
    def crosschecked(self) -> bool:
        """Whether the start is one that both have: ALoRA's is LoRA's."""
        return self.twins or self.method == "alora"


def digest(value: BaseModel) -> str:
    """Return a SHA-256 of a value's canonical JSON.

    A `RunSpec`'s fields with a default were added later: at that value, which says "as before",
    they are left out, so that older records keep their digest.
    """
    content = value.model_dump(mode="json")
    if isinstance(value, RunSpec):
        for name, field in RunSpec.model_fields.items():
            if not field.is_required() and getattr(value, name) == field.default:
                del content[name]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def with_defaults(fields: Any) -> Any:
    """Add the fields that came after a spec's JSON was written, as before; else return it as is."""
    if not isinstance(fields, dict):
        return fields
    later = {
        name: field.default
        for name, field in RunSpec.model_fields.items()
        if not field.is_required()
    }
    return later | fields


def derive_seed(seed: int, *names: object) -> int:
    """Derive a 63-bit seed for one purpose, so that no draw depends on another's count."""
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
