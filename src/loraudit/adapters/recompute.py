"""Compute a model's blocks a second time on the way back, instead of keeping what is in them.

Of each transformer block only the input is kept; in the backward pass the block computes again what
its gradients need (Chen et al. 2016, arXiv 1604.06174). These are the same operations with the same
random numbers, so that losses, gradients and weights are the same bits. A step costs about one
forward pass more, which is the price of the memory.

transformers has the switch, and torch does the work (torch.utils.checkpoint, not re-entrant: inputs
need no gradient then). tests/adapters/test_recompute.py compares runs with and without it.
"""

from torch import nn
from transformers import PreTrainedModel

from loraudit.base.errors import UserError
from loraudit.studies.spec import RunSpec


def recompute_blocks(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Let the blocks of a model compute again in the backward pass if the spec says so, in place.

    Args:
        model: a transformers model with the run's adapters on it, or PEFT's wrapper of one.
        spec: the run.

    Raises:
        UserError: transformers can't do it for this type of model.
    """
    if spec.recompute == "none":
        return model
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if not inner.supports_gradient_checkpointing:
        raise UserError(
            f"recompute: transformers can't recompute the blocks of model {spec.model.name!r}, "
            f"which is of type {inner.config.model_type} (legal: none)"
        )
    inner.activation_checkpointing_enable({"use_reentrant": False})
    inner.disable_input_require_grads()  # it would add the embeddings' backward pass for nothing
    return model
