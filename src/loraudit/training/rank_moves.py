"""The base class of controllers that move ranks between layers while a run trains.

The training loop calls a method's controller (method.py). ALoRA's and AdaLoRA's are subclasses of
this one, which counts how often ranks moved and warns if they never did.
"""

import math
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from loraudit.training.state import State


class RankController:
    """A controller of ranks; a subclass defines `ranks`, `allocate` and `restore`.

    Args:
        state: what the loop works on, ready to train.
        rows: number of training rows.

    Attributes:
        per_epoch, steps: optimizer steps of an epoch and of the whole run.
        with_gradients: whether `allocate` needs the step's gradients.
        counts: for the run's record; `rank_changes` counts the steps that changed a layer's rank.
    """

    with_gradients = False

    def __init__(self, state: "State", rows: int):
        self.state = state
        self.per_epoch = math.ceil(rows / state.spec.global_batch)
        self.steps = state.spec.epochs * self.per_epoch
        self.counts: dict[str, float] = {"rank_changes": 0}

    def ranks(self) -> dict[str, int]:
        """Return the rank in use of every adapted layer, by full name."""
        raise NotImplementedError

    def allocate(self, step: int) -> None:
        """Move ranks if this step is one after which they move."""
        raise NotImplementedError

    def penalty(self) -> torch.Tensor | None:
        """Return None: nothing is added to the mean loss."""
        return None

    def after_step(self, step: int) -> None:
        """Allocate after a step, counted from 1; after the last, warn if no rank ever moved."""
        before = self.ranks()
        self.allocate(step)
        self.counts["rank_changes"] += self.ranks() != before
        if step == self.steps and not self.counts["rank_changes"]:
            self.say("warning: no layer's rank ever changed: the run is one of fixed ranks")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, lists and dicts."""
        return {"ranks": self.ranks(), "counts": dict(self.counts)}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take up what `state_dict` returned, on a new model whose weights are copied later."""
        self.counts = dict(content["counts"])
        self.restore(content["ranks"])

    def restore(self, ranks: dict[str, int]) -> None:
        """Give the layers these ranks, so that saved weights of that shape can be copied in."""
        raise NotImplementedError

    def say(self, line: str) -> None:
        """Print one line on the main process."""
        if self.state.accelerator.is_main_process:
            print(f"{self.state.spec.method}: {line}", file=sys.stderr, flush=True)
