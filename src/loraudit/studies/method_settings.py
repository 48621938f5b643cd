"""The settings that some methods have of their own, with the checks that go with them."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from loraudit.studies.values import Count, Fraction, Frozen, Positive, Share

if TYPE_CHECKING:
    from loraudit.studies.spec import RunSpec


class MethodSettings(Frozen):
    """Base of a method's own settings; in a study file they stand under the method's name."""

    def check(self, spec: "RunSpec") -> None:
        """Check what the method does not go with.

        Raises:
            ValueError: fields of the run that do not fit the method.
        """


class ALoRASettings(MethodSettings):
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


class AdaLoRASettings(MethodSettings):
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

    def check(self, spec: "RunSpec") -> None:
        """Check what AdaLoRA, which is PEFT's and starts in a way of its own, does not go with."""
        adapter = spec.lora
        if self.start(adapter.rank) <= adapter.rank:
            raise ValueError(
                f"adalora.init_rank {self.init_rank} is not above the target, rank {adapter.rank}"
            )
        if adapter.init or adapter.init_std:
            raise ValueError("AdaLoRA draws A and B from N(0, 0.02^2) (legal init: null)")
        fields = {
            "ranks": (adapter.ranks, "uniform"),
            "base_bits": (spec.base_bits, None),
            "lora_plus": (adapter.lora_plus, None),
        }
        for key, (value, legal) in fields.items():
            if value != legal:
                raise ValueError(
                    f"method 'adalora' does not go with {key} {value!r} "
                    f"(legal: {'null' if legal is None else legal})"
                )
