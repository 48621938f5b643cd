"""PEFT's methods beside LoRA, on the layers that a run's targets name: IA3, VeRA, OFT and more.

The run's `rank` is the `r` of the method's configuration and `alpha` its alpha, where it has them.
All else is the method's own, at PEFT's default or as the run's `peft` says. Which types are refused
and why stands in studies/peft_options.py.
"""

from pathlib import Path
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import save_file
from torch import nn

from loraudit.adapters import peft_twin
from loraudit.adapters.base_layers import freeze, targets_of
from loraudit.adapters.peft_folder import WEIGHTS
from loraudit.studies.peft_options import type_fields
from loraudit.studies.spec import RunSpec, derive_seed

ALPHAS = ("alpha", "lora_alpha")
"""Names that configurations have for the numerator of the scaling."""


def config_of(model: nn.Module, spec: RunSpec) -> Any:
    """Return PEFT's configuration of a run's method on its targets.

    Raises:
        UserError: this model lacks a target, or PEFT refuses a value of the run's `peft`.
    """
    adapter = spec.lora
    options = {key: value for key, value in adapter.peft.items() if key != "peft_type"}
    kind, targets = adapter.peft["peft_type"], targets_of(model, spec.model, adapter.targets)
    known = type_fields(kind)
    own: dict[str, Any] = {
        "r": adapter.rank,
        **dict.fromkeys(ALPHAS, adapter.alpha),
        "feedforward_modules": [t.layer for t in targets if t.matrix == "down"],
    }
    if kind == "OFT":  # it takes the number of blocks or their size
        own["oft_block_size"] = 0
        own["r"] = 0 if options.get("oft_block_size") else adapter.rank
    fields = {
        "task_type": peft_twin.task_type(spec),
        "target_modules": [target.layer for target in targets],
        "modules_to_save": list(spec.model.head) or None,
        **{key: value for key, value in own.items() if key in known},
        **options,
    }
    with peft_twin.peft_errors(adapter.peft):
        return PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)](**fields)


def apply(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Wrap a model by one of PEFT's methods, drawn with the run's seed.

    Raises:
        UserError: this model lacks a target, or PEFT refuses the model or a value.
    """
    freeze(model, spec.model.head, train_head=False)
    config = config_of(model, spec)
    torch.manual_seed(derive_seed(spec.seed, "lora_A"))
    with peft_twin.peft_errors(spec.lora.peft):
        wrapped = peft.get_peft_model(model, config)
    peft_twin.refreeze_head(wrapped, spec)
    return wrapped


def export(model: nn.Module, spec: RunSpec, folder: Path) -> None:
    """Save what PEFT saves of such a model: the method's tensors, the head and the config."""
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in peft.get_peft_model_state_dict(model).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"]
    kept = config.base_model_name_or_path, config.inference_mode
    config.base_model_name_or_path, config.inference_mode = peft_twin.base_name(spec), True
    for key, value in vars(config).items():  # PEFT writes sets in an order that varies by process
        if isinstance(value, set):
            setattr(config, key, sorted(value))
    config.save_pretrained(folder)
    config.base_model_name_or_path, config.inference_mode = kept
