"""PEFT as the cross-check: the twin model (method "peft"), and adapter folders both ways.

Key table, for a layer called <name> and a head module called <head>:

| in-house            | PEFT file (adapter_model.safetensors)       |
|---------------------|---------------------------------------------|
| <name>.lora_A       | base_model.model.<name>.lora_A.weight       |
| <name>.lora_B       | base_model.model.<name>.lora_B.weight       |
| <head>.weight, ...  | base_model.model.<head>.weight, ...         |
"""

from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from loraudit.errors import UserError
from loraudit.models import freeze, in_head, target_modules
from loraudit.spec import HubSource, RunSpec, derive_seed

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def lora_config(spec: RunSpec, names: list[str]) -> peft.LoraConfig:
    """Say a run's LoRA in PEFT's words. Full layer names match those layers and no others."""
    source = spec.model.source
    return peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        base_model_name_or_path=source.hub if isinstance(source, HubSource) else spec.model.name,
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.lora_dropout,
        init_lora_weights={"kaiming": True, "gaussian": "gaussian"}[spec.init],
        target_modules=list(names),
        modules_to_save=list(spec.model.head),
        bias="none",
        inference_mode=True,
    )


def apply(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Wrap the model with PEFT, starting where the in-house twin starts.

    PEFT's own initialisation is run again per layer under that layer's derived seed, so equal
    starts mean equal initialisation code, not copied tensors.

    Raises:
        UserError: a target that this model lacks.
    """
    freeze(model, spec.model.head, train_head=False)
    names = target_modules(model, spec.model, spec.targets)
    config = lora_config(spec, names)
    config.inference_mode, config.base_model_name_or_path = False, None  # PEFT fills it in
    twin = peft.get_peft_model(model, config)
    for name in names:
        torch.manual_seed(derive_seed(spec.seed, "lora_A", name))
        layer = twin.get_submodule(PREFIX + name)
        layer.reset_lora_parameters("default", config.init_lora_weights)
        if spec.init_std:  # PEFT's gaussian has 1/r only
            torch.manual_seed(derive_seed(spec.seed, "lora_A", name))
            torch.nn.init.normal_(layer.lora_A["default"].weight, std=spec.init_std)
    if spec.head == "frozen":
        for name, parameter in twin.named_parameters():
            if in_head(name, spec.model.head):
                parameter.requires_grad_(False)
    return twin


def export(model: nn.Module, spec: RunSpec, folder: Path) -> None:
    """Save the PEFT twin's adapter and head."""
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in peft.get_peft_model_state_dict(model).items()
    }
    names = [key.removesuffix(".lora_A") for key in from_peft(state) if key.endswith(".lora_A")]
    write_folder(state, lora_config(spec, names), folder)


@torch.no_grad()
def start_from(model: nn.Module, spec: RunSpec, folder: Path) -> list[str]:
    """Copy another run's adapter into a model of either twin; returns what was copied.

    lora_A and lora_B are copied, and with `warm_start.tensors` "adapter+head" the head's tensors
    too, except those of its output layer, whose rows are the other task's classes.

    Args:
        model: a model that `apply` has prepared.
        spec: its run, with a `warm_start`.
        folder: the other run's adapter folder.

    Raises:
        UserError: a tensor that this model lacks, or has in another shape, or an adapter layer of
            this model that the file lacks.
    """
    _, state = read_folder(folder)
    own = {own_name(name): parameter for name, parameter in model.named_parameters()}
    copied = []
    for name, tensor in state.items():
        if in_head(name, spec.model.head) and (
            spec.warm_start.tensors == "adapter" or in_head(name, (spec.model.output_layer,))
        ):
            continue
        if name not in own or own[name].shape != tensor.shape:
            found = tuple(own[name].shape) if name in own else "nothing"
            raise UserError(
                f"warm_start: {folder} has {name} {tuple(tensor.shape)}, this model {found}"
            )
        own[name].copy_(tensor)
        copied.append(name)
    missing = [name for name in own if name.endswith((".lora_A", ".lora_B")) and name not in copied]
    if missing:
        raise UserError(f"warm_start: {folder} has no {', '.join(missing)}")
    return copied


def to_peft(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename in-house adapter tensors to PEFT's names."""
    return {
        PREFIX + (f"{key}.weight" if key.endswith((".lora_A", ".lora_B")) else key): tensor
        for key, tensor in state.items()
    }


def from_peft(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a PEFT file's tensors to in-house names.

    Raises:
        KeyError: a name outside the key table.
    """
    out = {}
    for key, tensor in state.items():
        if not key.startswith(PREFIX):
            raise KeyError(f"not a PEFT adapter tensor: {key!r}")
        name = key.removeprefix(PREFIX)
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            name = name.removesuffix(".weight")
        out[name] = tensor
    return out


def own_name(parameter: str) -> str:
    """Turn a parameter's name in a live PEFT model into ours; our own names stay as they are."""
    name = parameter.removeprefix(PREFIX).replace(".modules_to_save.default", "")
    return name.removesuffix(".default.weight")


def write_folder(state: dict[str, torch.Tensor], config: peft.LoraConfig, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)


def read_folder(folder: Path) -> tuple[peft.LoraConfig, dict[str, torch.Tensor]]:
    """Read a PEFT folder: its config, and its tensors under in-house names."""
    return peft.LoraConfig.from_pretrained(folder), from_peft(load_file(Path(folder) / WEIGHTS))
