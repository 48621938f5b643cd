"""What the training loop works on, and how it is saved to a checkpoint and read again."""

import math
import signal
import time
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from accelerate import Accelerator

from loraudit.base.errors import UserError
from loraudit.base.provenance import gpus, machine
from loraudit.studies.spec import RunSpec
from loraudit.training.accounting import adapter_ranks
from loraudit.training.checkpoint import Checkpoints
from loraudit.training.journal import Best, Journal, put_weights, trained_weights
from loraudit.training.method import Controller

LOOKS = {"cpu": 1}
"""After how many optimizer steps the host looks at what a device has computed; see `SELDOM`."""

SELDOM = 10
"""The same on all other devices: to look, the host has to wait until the device has done all that
it was given, and a GPU idles until it is given more. In between the host only gives it work."""


class Diverged(UserError):
    """The loss or an output is not finite."""


@dataclass
class State:
    """What the loop works on.

    `bare` is the model that the method has prepared; `model` is the same model wrapped by
    Accelerate. `pad` is the id of the token that fills short rows of a batch. `losses` are the
    summed losses of the last steps, scalars on the device that the host has not looked at yet; it
    does after `looks` steps.
    """

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
    losses: list[torch.Tensor] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self.looks = self.looks or LOOKS.get(self.accelerator.device.type, SELDOM)

    def heed(self) -> None:
        """Save a checkpoint and stop here if a signal came to a run of one process.

        Several processes wait for each other, so they stop together, in `keep`.

        Raises:
            SystemExit: a signal came; a checkpoint was saved.
        """
        if self.accelerator.num_processes == 1 and self.checkpoints and self.checkpoints.signal:
            stop(self, self.checkpoints)


def take_up(state: State, checkpoints: Checkpoints) -> None:
    """Go on from the run's newest whole checkpoint, if there is one."""
    content = checkpoints.load()
    if content is None:
        note_ranks(state)
        return
    journal = content["journal"]
    choices = {choice: Best(**best) for choice, best in journal["choices"].items()}
    state.journal = Journal(**{**journal, "choices": choices})
    if state.controller:
        state.controller.load_state_dict(content["controller"])
    put_weights(state.bare, content["weights"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    state.started -= content["seconds"]
    step = state.journal.step
    state.journal.resumed.append({"step": step, **content["machine"]})
    checkpoints.say(f"going on after step {step} (epoch {state.journal.epoch})")


def restore(state: State, best: Best) -> None:
    """Put the weights of a chosen epoch, and the ranks that it had, back into the model."""
    if state.controller:
        state.controller.restore(best.ranks)
    put_weights(state.bare, best.weights)


def look(state: State) -> None:
    """Add the losses of the last steps to the journal's; waits for the device.

    Raises:
        Diverged: one is not finite; the journal's step is then the first such step's.
    """
    journal, losses = state.journal, state.losses
    if not losses:
        return
    values = state.accelerator.reduce(torch.stack(losses), "sum").tolist()
    state.losses = []
    for step, loss in enumerate(values, journal.step - len(values) + 1):
        if not math.isfinite(loss):
            journal.step = step
            raise Diverged(
                f"the loss is {loss} at step {step} (epoch {journal.epoch}); no result was "
                f"written. Try a learning_rate below {state.spec.learning_rate:g}"
            )
        journal.loss += loss


def save_checkpoint(state: State, checkpoints: Checkpoints) -> bool:
    """Save all that `take_up` needs, and return whether it was written.

    Raises:
        Diverged: the loss of a step that the host had not looked at yet is not finite.
    """
    look(state)
    on_gpu = state.accelerator.device.type == "cuda"
    content = {
        "journal": {
            **vars(state.journal),
            "choices": {choice: vars(best) for choice, best in state.journal.choices.items()},
        },
        "weights": trained_weights(state.bare),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "controller": state.controller.state_dict() if state.controller else None,
        "seconds": time.monotonic() - state.started,
        "machine": machine() | ({"gpus": gpus()} if on_gpu else {}),
    }
    return checkpoints.save(state.journal.step, content)


def stop(state: State, checkpoints: Checkpoints) -> NoReturn:
    """Save a checkpoint and end this process as the signal would have."""
    step, number = state.journal.step, checkpoints.signal or signal.SIGTERM
    saved = save_checkpoint(state, checkpoints)
    kept = "the next start goes on from here" if saved else "the work since the last one is lost"
    checkpoints.say(f"stopped by {signal.Signals(number).name} at step {step}; {kept}")
    raise SystemExit(128 + number)


def note_ranks(state: State) -> None:
    """Add the ranks in use to the journal, if layers' ranks may differ and any has changed."""
    if not state.spec.uneven_ranks:
        return
    ranks = state.controller.ranks() if state.controller else adapter_ranks(state.bare)
    rows = state.journal.ranks
    if ranks != {row["layer"]: row["rank"] for row in rows[len(rows) - len(ranks) :]}:
        rows += [{"step": state.journal.step, "layer": n, "rank": r} for n, r in ranks.items()]


def keep(state: State) -> None:
    """Save a checkpoint when it is time for one, and stop if a signal came.

    If one process has to save or stop, all do, because a checkpoint holds a part of each. Several
    processes ask each other after those steps only at which the host looks at the device.
    """
    checkpoints = state.checkpoints
    if checkpoints is None:
        return
    stops, saves = checkpoints.signal is not None, checkpoints.due()
    if state.accelerator.num_processes > 1:
        if state.journal.step % state.looks:
            return
        asked = torch.tensor([stops, saves], device=state.accelerator.device, dtype=torch.float)
        stops, saves = (count > 0 for count in state.accelerator.reduce(asked, "sum").tolist())
    if stops:
        stop(state, checkpoints)
    if saves:
        save_checkpoint(state, checkpoints)
