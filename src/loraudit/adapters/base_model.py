"""Load the pretrained model of a run, and draw its head."""

from pathlib import Path

import torch
from torch import nn

from loraudit.adapters.base_layers import in_head
from loraudit.base.errors import UserError
from loraudit.studies.spec import RunSpec, derive_seed


def load_base(spec: RunSpec, folder: Path) -> nn.Module:
    """Load the sequence classifier of a run, and draw its head by the run's seed.

    A head in the checkpoint is not used, whatever its size. With `base_bits`, the linear layers
    outside the head are quantised.

    Raises:
        UserError: the checkpoint lacks weights other than the head's or has them in other shapes,
            max_length is above its number of positions, or `base_group` does not fit its layers.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=max(1, len(spec.task.classes)),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    absent = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    missing = [name for name in absent if not in_head(name, spec.model.head)]
    if missing:
        raise UserError(f"model {spec.model.name!r}: no weights for {', '.join(sorted(missing))}")
    positions = getattr(model.config, "max_position_embeddings", spec.max_length)
    if spec.max_length > positions:
        raise UserError(
            f"max_length {spec.max_length} is more than model {spec.model.name!r} can read "
            f"(legal: 4 to {positions})"
        )
    reset_head(model, spec)
    if spec.base_bits:
        from loraudit.adapters.quantise import quantise

        quantise(model, spec)
    return model


def reset_head(model: nn.Module, spec: RunSpec) -> None:
    """Draw the head's weights from N(0, initializer_range^2) by the run's seed; set biases to 0.

    Raises:
        UserError: the model has no such head module.
    """
    torch.manual_seed(derive_seed(spec.seed, "head"))
    for name in spec.model.head:
        try:
            head = model.get_submodule(name)
        except AttributeError:
            raise UserError(f"model {spec.model.name!r} has no head module {name!r}") from None
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=getattr(model.config, "initializer_range", 0.02))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
