"""The settings that only one method has, with the checks that go with them."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from loraudit.studies.values import Count, Fraction, Frozen, Positive, Share

if TYPE_CHECKING:
    from loraudit.studies.spec import RunSpec


class MethodSettings(Frozen):
    """Base of a method's own settings; in a study file they stand under the method's name."""

    def check(self, spec: "RunSpec") -> None:
        """Check that the run's other fields go with the method.

        Raises:
            ValueError: a field does not go with the method.
        """


class ALoRASettings(MethodSettings):
    """How ALoRA moves ranks (Liu et al. 2024, Algorithm 1). Defaults are the paper's values."""

    rounds: Count = 8
    """N_A, the largest number of rounds in which ranks are moved"""
    pruned: Count | Literal["modules", "kinds"] = "modules"
    """n_A, the ranks moved in a round: a number, or as many as there are adapted layers (`modules`)
    or kinds of adapted matrices (`kinds`: 2 for q+v). The paper sets n_A = N_mod, which it defines
    as the modules of one block but uses (R_target = 8 N_mod = 20.0M parameters) as those of the
    whole model"""
    first: Positive = 1.0
    """K1, epochs before the first round"""
    between: Positive = 0.25
    """K2, epochs from one round to the next"""
    rows: Count = 32
    """rows of the batch on which ranks are scored; the run's seed draws them"""
    split: Literal["validation", "train", "selection"] = "validation"
    """their split; the paper's, validation, also scores the run, so that it is refused where
    selection_rows keep the reported rows out of every choice: use `selection` there"""
    alone: Literal["model", "module"] = "model"
    """what is switched off when a rank is scored alone (M_r): all other ranks of the `model`, as in
    the paper, or of the rank's own layer (`module`)"""

    def check(self, spec: "RunSpec") -> None:
        """Check that the rows that score ranks go with the rows that choose an epoch."""
        held = spec.selection_rows is not None
        if self.split == ("validation" if held else "selection"):
            legal = "selection, train" if held else "validation, train"
            word = "with" if held else "without"
            raise ValueError(f"alora.split {self.split!r} {word} selection_rows (legal: {legal})")

    def steps(self, per_epoch: int) -> list[int]:
        """Return the optimizer steps after which ranks move; an epoch has `per_epoch` steps."""
        first, between = (max(1, round(part * per_epoch)) for part in (self.first, self.between))
        return [first + number * between for number in range(self.rounds)]


StepsOrShare = Annotated[int, Field(ge=0)] | Fraction


class AdaLoRASettings(MethodSettings):
    """AdaLoRA's schedule and scores (Zhang et al. 2023), in PEFT's names; `rank` is the target.

    The defaults are the paper's, or close to those of its MNLI script, whose runs are longer (tinit
    8,000 and tfinal 50,000 of 85,900 steps, an allocation every 100 steps).
    """

    init_rank: Count | None = None
    """rank of every layer at the start, above `rank`; null: 1.5 times `rank`, rounded up"""
    tinit: StepsOrShare = 0.1
    """steps before the budget shrinks: a whole number, or a share of all steps"""
    tfinal: StepsOrShare = 0.6
    """steps at the end with the ranks fixed: a whole number, or a share of all steps"""
    deltaT: Count = 10
    """steps from one allocation to the next"""
    beta1: Share = 0.85
    """smoothing factor of the sensitivity's moving average"""
    beta2: Share = 0.85
    """smoothing factor of the uncertainty's moving average"""
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.1
    """weight of the penalty that keeps P and Q orthogonal"""

    def start(self, rank: int) -> int:
        """Return the initial rank of a layer for a target rank."""
        return self.init_rank or math.ceil(1.5 * rank)

    def check(self, spec: "RunSpec") -> None:
        """Check that the run's other fields go with AdaLoRA, which starts A and B its own way."""
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


class ProbeSettings(MethodSettings):
    """How the probe's penalty is chosen."""

    C: tuple[Positive, ...] = Field((1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3), min_length=1)
    """inverse strengths of the L2 penalty to choose from, as in scikit-learn"""
    held_out: Share = 0.2
    """share of the training rows, class by class, on which C is chosen; the regression that is
    scored is fitted to all of them"""

    def check(self, spec: "RunSpec") -> None:
        """Check that the task has classes."""
        if not spec.task.classes:
            raise ValueError(
                f"method 'probe' tells classes apart, and task {spec.task.name!r} has a number to "
                "predict"
            )
