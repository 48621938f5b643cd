"""What controllers share that move ranks between layers while a run trains.

The training loop calls a method's controller (method.py); ALoRA's and AdaLoRA's are subclasses of
the one here, which counts how often ranks moved and warns if they never did.
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
        state: the loop's, prepared.
        rows: training rows.

    Attributes:
        per_epoch, steps: optimizer steps of an epoch and of the whole run.
        with_gradients: whether `allocate` needs the step's gradients.
        counts: for the record; `rank_changes` counts the steps after which a layer's rank differed.
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
        """Move ranks after this step, if it is time to."""
        raise NotImplementedError

    def penalty(self) -> torch.Tensor | None:
        """Return what is added to each step's mean loss; None is nothing."""
        return None

    def after_step(self, step: int) -> None:
        """Allocate after step `step` (from 1); after the last, say if no rank ever moved."""
        before = self.ranks()
        self.allocate(step)
        self.counts["rank_changes"] += self.ranks() != before
        if step == self.steps and not self.counts["rank_changes"]:
            self.say("warning: no layer's rank ever changed: the run is one of fixed ranks")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, lists and dicts."""
        return {"ranks": self.ranks(), "counts": dict(self.counts)}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take up `state_dict`'s value on a freshly prepared model, whose weights come later."""
        self.counts = dict(content["counts"])
        self.restore(content["ranks"])

    def restore(self, ranks: dict[str, int]) -> None:
        """Give the layers these ranks, for saved weights to be copied into."""
        raise NotImplementedError

    def say(self, line: str) -> None:
        """Print one line on the main process."""
        if self.state.accelerator.is_main_process:
            print(f"{self.state.spec.method}: {line}", file=sys.stderr, flush=True)
