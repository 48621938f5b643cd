"""Compute a model's blocks a second time on the way back, instead of keeping what is in them.

Of each transformer block only the input is kept; in the backward pass the block computes again what
its gradients need (Chen et al. 2016, arXiv 1604.06174). These are the same operations with the same
random numbers, so that losses, gradients and weights are the same bits. A step costs about one
forward pass more, which is the price of the memory.

torch does the work (torch.utils.checkpoint, not re-entrant, so that a block's input needs no
gradient). transformers has a switch for it, but not for every type of model, and it adds the
embeddings' backward pass; so each block gets a class of its own here, with the same weights under
the same names. tests/adapters/test_recompute.py compares runs with and without it.
"""

from torch import nn
from torch.utils.checkpoint import checkpoint

from loraudit.adapters.base_layers import blocks_of
from loraudit.base.errors import UserError
from loraudit.studies.spec import RunSpec


def recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a block's class whose training passes keep the block's input only."""

    class Recomputing(kind):
        def forward(self, *args, **kwargs):
            """Compute what the block computes, and in training again on the way back."""
            forward = super().forward
            if not self.training:
                return forward(*args, **kwargs)
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return Recomputing


def recompute_blocks(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Let the blocks of a model compute again in the backward pass if the spec says so, in place.

    Args:
        model: a transformers model with the run's adapters on it, or PEFT's wrapper of one.
        spec: the run.

    Raises:
        UserError: the names of the model's entry do not say where its blocks are.
    """
    if spec.recompute == "none":
        return model
    blocks = blocks_of(model, spec.model)
    if not blocks:
        raise UserError(
            f"recompute: the modules of model {spec.model.name!r} in models.yaml do not agree on "
            "where its blocks are (legal: none)"
        )
    kinds = {kind: recomputing(kind) for kind in {type(block) for block in blocks.values()}}
    for block in blocks.values():
        block.__class__ = kinds[type(block)]
    model.config.use_cache = False  # a block that runs twice would add to a decoder's cache twice
    return model
