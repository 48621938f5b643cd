"""What a run asks of its method: the interface of the classes in training/methods/.

To add a method, write a subclass of `Method` in a file of training/methods/ and give it an entry in
studies/methods.yaml. A method that acts while it trains returns a `Controller`, which the training
loop calls; one that moves ranks can take the class in rank_moves.py as a base.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from loraudit.adapters import warm_start
from loraudit.base.named_code import resolve
from loraudit.studies.spec import RunSpec

if TYPE_CHECKING:
    from loraudit.data.batches import Examples
    from loraudit.training.state import State


class Controller(Protocol):
    """What a method does between optimizer steps: it moves ranks, or adds a penalty to the loss."""

    counts: dict[str, float]
    """what the controller's work cost, for the run's record"""
    with_gradients: bool
    """True: `after_step` is called before the step's gradients are cleared. False: it is called
    after the whole step is done; it may then be interrupted by a signal, and the next start of the
    run calls it again for the same step"""

    def penalty(self) -> torch.Tensor | None:
        """Return a regulariser to add to the mean loss once a step; None adds nothing."""

    def after_step(self, step: int) -> None:
        """Act after step `step` (counted from 1) of the optimizer and the schedule."""

    def ranks(self) -> dict[str, int]:
        """Return the rank in use of each adapted layer, by the layer's full name."""

    def restore(self, ranks: dict[str, int]) -> None:
        """Give the layers these ranks, so that saved weights of that shape can be copied in."""

    def state_dict(self) -> dict:
        """Return what a resumed run needs, as plain values and tensors."""

    def load_state_dict(self, content: dict) -> None:
        """Take up what `state_dict` returned, and reshape the layers and the optimizer's state."""


class Method(ABC):
    """What a run trains, and how it is saved. Its entry in studies/methods.yaml names the class."""

    @abstractmethod
    def apply(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        """Prepare a base model for training, and return the model to train.

        Parameters that are not trained are frozen; adapters start as the spec says.

        Raises:
            UserError: settings do not fit this model.
        """

    @abstractmethod
    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save what was trained of a model that `apply` prepared into a new folder."""

    def controller(self, state: "State", examples: dict[str, "Examples"]) -> Controller | None:
        """Return what acts between the steps of a run that is ready to train; None if nothing does.

        Raises:
            UserError: settings do not fit the data or the model.
        """
        return None

    def start_from(self, model: nn.Module, spec: RunSpec, folder: Path) -> list[str]:
        """Copy another run's adapter into a model that `apply` prepared.

        Returns:
            The names of the tensors that were copied.

        Raises:
            UserError: the adapter does not fit this model.
        """
        return warm_start.start_from(model, spec, folder)


class ClosedFit(Method):
    """A method that is fitted to all training rows at once, in place of an epoch's steps."""

    @abstractmethod
    def fit(self, state: "State", train: "Examples") -> float:
        """Fit what `apply` left to train, and return the mean loss over the training rows.

        The fit counts as one step. It sets the journal's `batch` to 1, and does nothing where that
        is 1 already, because the run was stopped after it.
        """


def method_of(spec: RunSpec) -> Method:
    """Make the method by which a run is trained."""
    return resolve(spec.facts.code)()
