"""What `compute: fast` leaves out of a base model, before a method adapts it."""

from torch import nn

from loraudit.adapters.fast_dropout import replace_dropout
from loraudit.adapters.first_token import shorten
from loraudit.studies.spec import RunSpec


def fast_base(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Leave out, in place, what the spec's `compute` lets leave out of a base model.

    These are tokens of the last layer that no head reads, and torch's slow random numbers.

    Raises:
        UserError: the model entry's `first_token` does not fit the model.
    """
    return replace_dropout(shorten(model, spec), spec)
