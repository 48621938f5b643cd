"""What the training loop works on, and how it is saved to a checkpoint and taken up again."""

import signal
import time
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import torch
from accelerate import Accelerator

from loraudit.base.provenance import machine
from loraudit.studies.spec import RunSpec
from loraudit.training.accounting import adapter_ranks
from loraudit.training.checkpoint import Checkpoints
from loraudit.training.journal import Best, Journal, put_weights, trained_weights


class Controller(Protocol):
    """What a method does between steps: moves ranks, adds a penalty (alora.py, adalora.py).

    The method's module makes it by `controller(state, examples)`, model and optimizer being ready.
    """

    counts: dict[str, float]
    """what it cost, for the record"""
    with_gradients: bool
    """whether it needs the step's gradients; if not, it acts once they and the step are dealt with,
    and may be stopped half-way and begun anew"""

    def penalty(self) -> torch.Tensor | None:
        """Return a regulariser to add, once a step, to the mean loss."""

    def after_step(self, step: int) -> None:
        """Act after step `step` (from 1) of optimizer and schedule."""

    def ranks(self) -> dict[str, int]:
        """Return the rank in use of each adapted layer, by full name."""

    def restore(self, ranks: dict[str, int]) -> None:
        """Bring the layers to these ranks, before weights of that shape are put in."""

    def state_dict(self) -> dict:
        """Return plain values and tensors."""

    def load_state_dict(self, content: dict) -> None:
        """Take over `state_dict`'s, and bring layers and optimizer to the shapes they had then."""


@dataclass
class State:
    """What the loop works on: `bare` is the model as the method left it, `model` as prepared."""

    spec: RunSpec
    accelerator: Accelerator
    bare: torch.nn.Module
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    pad: int
    started: float = field(default_factory=time.monotonic)
    journal: Journal = field(default_factory=Journal)
    controller: Controller | None = None
    checkpoints: Checkpoints | None = None

    def heed(self) -> None:
        """Stop here if a signal came; several processes, which wait for each other, go on.

        Raises:
            SystemExit: after a checkpoint.
        """
        if self.accelerator.num_processes == 1 and self.checkpoints and self.checkpoints.signal:
            stop(self)


def take_up(state: State) -> None:
    """Go on from the run's newest whole checkpoint, if there is one."""
    content = state.checkpoints.load()
    if content is None:
        note_ranks(state)
        return
    journal = content["journal"]
    state.journal = Journal(**{**journal, "best": Best(**journal["best"])})
    if state.controller:
        state.controller.load_state_dict(content["controller"])
    put_weights(state.bare, content["weights"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    state.started -= content["seconds"]
    step = state.journal.step
    state.journal.resumed.append({"step": step, **content["machine"]})
    state.checkpoints.say(f"going on after step {step} (epoch {state.journal.epoch})")


def save_checkpoint(state: State) -> bool:
    """Save all that `take_up` needs; returns whether it was written."""
    content = {
        "journal": {**vars(state.journal), "best": vars(state.journal.best)},
        "weights": trained_weights(state.bare),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "controller": state.controller.state_dict() if state.controller else None,
        "seconds": time.monotonic() - state.started,
        "machine": machine(),
    }
    return state.checkpoints.save(state.journal.step, content)


def stop(state: State) -> NoReturn:
    """Save a checkpoint and end this process as the signal would have."""
    step, number = state.journal.step, state.checkpoints.signal or signal.SIGTERM
    saved = save_checkpoint(state)
    kept = "the next start goes on from here" if saved else "the work since the last one is lost"
    state.checkpoints.say(f"stopped by {signal.Signals(number).name} at step {step}; {kept}")
    raise SystemExit(128 + number)


def note_ranks(state: State) -> None:
    """Write down the ranks in use, where they may differ by layer and have moved."""
    if not state.spec.uneven_ranks:
        return
    ranks = state.controller.ranks() if state.controller else adapter_ranks(state.bare)
    rows = state.journal.ranks
    if ranks != {row["layer"]: row["rank"] for row in rows[len(rows) - len(ranks) :]}:
        rows += [{"step": state.journal.step, "layer": n, "rank": r} for n, r in ranks.items()]


def keep(state: State) -> None:
    """Save a checkpoint if it is time for one, on any process; stop if a signal came."""
    if state.checkpoints is None:
        return
    asked = torch.tensor([state.checkpoints.signal is not None, state.checkpoints.due()])
    asked = state.accelerator.reduce(asked.float().to(state.accelerator.device), "sum")
    if asked[0]:
        stop(state)
    if asked[1]:
        save_checkpoint(state)
