"""Write and read adapter folders in PEFT's format, and check them against a model.

Keys of tensors, for a layer called <name> and a head module called <head>:

| in-house            | PEFT file (adapter_model.safetensors)       |
|---------------------|---------------------------------------------|
| <name>.lora_A       | base_model.model.<name>.lora_A.weight       |
| <name>.lora_B       | base_model.model.<name>.lora_B.weight       |
| <head>.weight, ...  | base_model.model.<head>.weight, ...         |

Adapters on parts of a fused layer (fused.py) are written as one of the whole layer. Which rows and
columns are whose stands in parts.json beside it, which PEFT does not read.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import peft
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from loraudit.adapters.base_layers import in_head, linear_sizes
from loraudit.adapters.parts import Layout, Layouts, unfold
from loraudit.base.errors import UserError
from loraudit.base.files import stand_in
from loraudit.studies.values import validated

PREFIX = "base_model.model."

WEIGHTS, CONFIG, PARTS = "adapter_model.safetensors", "adapter_config.json", "parts.json"
ALL_LAYOUTS = TypeAdapter(dict[str, Layout])


PLAIN = {
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "bias": "none",
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "kasa_config": None,
    "trainable_token_indices": None,
}
"""Settings that change what an adapter computes, with the values that leave it at alpha/r B A."""


def _bounded(pattern: str) -> str:
    """Refuse what is no regular expression, and one whose matching could take for ever.

    PEFT matches the patterns of an adapter's config with layer names by Python's `re`, which tries
    every way to split a name among repeats: a nested repeat such as (a+)+ takes time exponential in
    the name's length, and n repeats in a row take its n-th power. A folder from elsewhere could so
    hang the program.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a pattern: {error}") from None
    # a repeated group, or a fourth *, + or {
    if len(pattern) > 200 or re.search(r"\)[*+{]|([*+{].*){4}", pattern):
        raise ValueError("a pattern that may take for ever (legal: 3 repeats, of no group)")
    return pattern


Pattern = Annotated[str, AfterValidator(_bounded)]


class Layers(BaseModel):
    """The keys of an adapter_config.json that say which layers have adapters, and their ranks."""

    r: int = Field(gt=0, strict=True)
    target_modules: Pattern | list[Pattern] = Field(min_length=1)
    exclude_modules: Pattern | list[Pattern] | None = None
    modules_to_save: list[Pattern] | None = None
    rank_pattern: dict[Pattern, Annotated[int, Field(gt=0, strict=True)]] = {}
    alpha_pattern: dict[Pattern, Any] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Pattern | list[Pattern] | None = None


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def to_peft(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename in-house adapter tensors to PEFT's names."""
    return {
        PREFIX + (f"{key}.weight" if key.endswith((".lora_A", ".lora_B")) else key): tensor
        for key, tensor in state.items()
    }


def from_peft(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a PEFT file's tensors to in-house names.

    Raises:
        UserError: a name does not fit the table at the top of this module.
    """
    renamed = {}
    for key, tensor in state.items():
        if not key.startswith(PREFIX):
            raise UserError(f"not a PEFT adapter tensor: {key!r} (legal: {PREFIX}...)")
        name = key.removeprefix(PREFIX)
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            name = name.removesuffix(".weight")
        renamed[name] = tensor
    return renamed


def own_name(parameter: str) -> str:
    """Turn a parameter's name in a PEFT model into ours; our own names stay as they are."""
    name = parameter.removeprefix(PREFIX).replace(".modules_to_save.default", "")
    return name.removesuffix(".default.weight")


def ranks_of(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return {layer: rank} of adapter tensors under in-house names."""
    return {k.removesuffix(".lora_A"): len(a) for k, a in state.items() if k.endswith(".lora_A")}


def write_folder(
    state: dict[str, torch.Tensor],
    config: peft.LoraConfig,
    folder: Path,
    layouts: Layouts | None = None,
) -> None:
    """Write adapter_model.safetensors, adapter_config.json, and parts.json if layers have parts.

    The config's sets are sorted, since PEFT writes them in an order that varies by process.

    Args:
        state: tensors under PEFT's names.
        config: PEFT's configuration.
        folder: where the files go.
        layouts: of the layers whose parts were folded into one adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    if layouts:
        (folder / PARTS).write_bytes(ALL_LAYOUTS.dump_json(dict(layouts), indent=1))
    for key, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, key, sorted(value))
    config.save_pretrained(folder)


def read_folder(folder: Path) -> tuple[peft.LoraConfig, dict[str, torch.Tensor]]:
    """Read a PEFT folder: its config, and its tensors under in-house names.

    Raises:
        UserError: a file is missing, broken or pickled, the adapter is not plain LoRA, or
            `check_tensors` refuses a tensor.
    """
    folder = Path(folder)
    config, path = _read_config(folder / CONFIG), folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "; its adapter_model.bin is a pickle, which is not read" if pickled else ""
        raise UserError(f"{folder}: no {WEIGHTS}{hint}")
    if instead := stand_in(path):
        raise UserError(f"{path}: {instead}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None
    state = from_peft(tensors)
    check_tensors(state, path)
    return config, state


def read_parts(folder: Path) -> tuple[peft.LoraConfig, dict[str, torch.Tensor], Layouts]:
    """Read a PEFT folder as `read_folder` does, with the parts of fused layers as adapters.

    A part's tensors have the layer's name with the matrix after it; rank and alpha of the config
    are those of the whole layer.

    Returns:
        The config, the tensors, and the layouts of the fused layers.

    Raises:
        UserError: as `read_folder`, or the parts that the file names do not fit its tensors.
    """
    config, state = read_folder(folder)
    path = Path(folder) / PARTS
    if not path.is_file():
        return config, state, {}
    try:
        layouts = ALL_LAYOUTS.validate_json(path.read_bytes())
        for layer, layout in layouts.items():
            a, b = state[f"{layer}.lora_A"], state[f"{layer}.lora_B"]
            if (layout.d_out, sum(part.rank for part in layout.parts)) != (len(b), len(a)):
                raise ValueError(f"{layer!r} has other sizes")
            _check_rows(layer, layout)
        return config, unfold(state, layouts), layouts
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its parts do not fit the adapter: {reason}") from None


def _check_rows(layer: str, layout: Layout) -> None:
    """Refuse parts without outputs or rank, outside the layer, or with outputs of another part."""
    ranges = sorted(rows for part in layout.parts for rows in part.rows)
    edges = [0, *(edge for rows in ranges for edge in rows), layout.d_out]
    apart = all(start < stop for start, stop in ranges) and edges == sorted(edges)
    if not apart or not all(part.rank > 0 and part.rows for part in layout.parts):
        raise ValueError(f"the outputs of the parts of {layer!r} overlap or are not its own")


def _read_config(path: Path) -> peft.LoraConfig:
    """Read adapter_config.json.

    Raises:
        UserError: it is not plain LoRA, or its alpha or dropout is not legal.
    """
    config = _parsed_config(path)
    for key, value in PLAIN.items():
        actual = getattr(config, key)
        if (actual or None) != (value or None):
            raise UserError(f"{path}: {key} is {actual!r}: not plain LoRA (legal: {value!r})")
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal"):
        raise UserError(
            f"{path}: init_lora_weights is {config.init_lora_weights!r}: it changes the base model "
            "(legal: true, false, 'gaussian', 'orthogonal')"
        )
    alphas = {f"alpha_pattern {k!r}": v for k, v in (config.alpha_pattern or {}).items()}
    for name, alpha in {"lora_alpha": config.lora_alpha, **alphas}.items():
        if not _number(alpha) or alpha <= 0:
            raise UserError(f"{path}: {name} is {alpha!r} (legal: above 0)")
    if not _number(config.lora_dropout) or not 0 <= config.lora_dropout < 1:
        raise UserError(f"{path}: lora_dropout is {config.lora_dropout!r} (legal: in [0, 1))")
    return config


def _parsed_config(path: Path) -> peft.LoraConfig:
    """Read adapter_config.json, checking its layers before PEFT reads it.

    Raises:
        UserError: the file is missing or is no config of a LoRA.
    """
    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name}")
    try:
        content = json.loads(path.read_text())
        kind = content.get("peft_type")
        if kind != "LORA":
            raise UserError(f"{path}: peft_type is {kind!r} (legal: 'LORA')")
        used = {key: content[key] for key in Layers.model_fields if key in content}
        validated(Layers, used, str(path))
        return peft.LoraConfig.from_pretrained(path.parent)
    except UserError:
        raise
    except Exception as error:  # PEFT names no common class for a config that is wrong
        raise UserError(
            f"{path}: not an adapter's config: {' '.join(str(error).split())}"
        ) from None


def _number(value: object) -> bool:
    """Tell whether a value from JSON is a finite number; True and False are none."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def check_tensors(state: dict[str, torch.Tensor], where: Path) -> None:
    """Check adapter and head tensors, given under in-house names.

    Raises:
        UserError: a tensor is not of finite floats, A or B of a layer is missing, their shapes are
            not (r, d_in) and (d_out, r), or there is no layer at all.
    """
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise UserError(f"{where}: {name!r} is of {tensor.dtype} (legal: {legal})")
        if not tensor.float().isfinite().all():
            raise UserError(f"{where}: {name!r} has NaN or infinite values (as float32)")
    layers = {key[: -len(".lora_A")] for key in state if key.endswith((".lora_A", ".lora_B"))}
    if not layers:
        raise UserError(f"{where}: no lora_A and lora_B in this file")
    for name in sorted(layers):
        pair = {part: state.get(f"{name}.{part}") for part in ("lora_A", "lora_B")}
        shapes = []
        for part, tensor in pair.items():
            if tensor is None:
                raise UserError(f"{where}: {name!r} has no {part}")
            shapes.append(tuple(tensor.shape))
        a, b = shapes
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
            raise UserError(
                f"{where}: {name!r} has lora_A {a} and lora_B {b} (legal: (r, d_in), (d_out, r))"
            )


def check_fits(model: nn.Module, state: dict[str, torch.Tensor], where: Path) -> None:
    """Check that a model without adapters has a place for every tensor of an adapter and head.

    Args:
        model: the base model; its weights are not read and may be on the meta device.
        state: {in-house name: tensor}.
        where: the file or folder, to be named in errors.

    Raises:
        UserError: the model lacks a layer or tensor, or has it in another shape.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        if part in ("lora_A", "lora_B"):
            sizes = linear_sizes(model, layer)
            if sizes is None:
                raise UserError(f"{where}: this model has no linear layer {layer!r}")
            rank = tensor.shape[0 if part == "lora_A" else 1]
            legal = (rank, sizes[0]) if part == "lora_A" else (sizes[1], rank)
        elif name in own:
            legal = own[name]
        else:
            raise UserError(f"{where}: this model has no tensor {name!r}")
        if tuple(tensor.shape) != legal:
            raise UserError(f"{where}: {name!r} is {tuple(tensor.shape)}, this model's is {legal}")


def rank_of(config: peft.LoraConfig, layer: str) -> int:
    """Return a layer's rank: that of rank_pattern if it names the layer, else r."""
    return config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), layer), config.r)


def alpha_of(config: peft.LoraConfig, layer: str) -> float:
    """Return a layer's alpha: that of alpha_pattern if it names the layer, else lora_alpha."""
    pattern = config.alpha_pattern or {}
    return pattern.get(get_pattern_key(pattern.keys(), layer), config.lora_alpha)


def check_config(
    model: nn.Module, config: peft.LoraConfig, state: dict[str, torch.Tensor], where: Path
) -> None:
    """Check that an adapter has exactly the tensors that its config asks for in this model.

    Args:
        model: the base model without adapters.
        config, state: what `read_folder` returned, after `check_fits`.
        where: the folder, to be named in errors.

    Raises:
        UserError: layers differ from those that target_modules and exclude_modules match, a rank
            from r or rank_pattern, or head tensors from those of modules_to_save.
    """
    layers = {key.removesuffix(".lora_A") for key in state if key.endswith(".lora_A")}
    saved = tuple(config.modules_to_save or ())
    wanted = {
        name
        for name, _ in model.named_modules()
        if linear_sizes(model, name) is not None
        and check_target_module_exists(config, name)
        and not in_head(f"{name}.", saved)
    }
    for name in sorted(layers ^ wanted):
        problem = "names no such layer" if name in layers else "asks for it and it is missing"
        raise UserError(f"{where}: lora_A and lora_B of {name!r}: {CONFIG} {problem}")
    for name in sorted(layers):
        rank, actual = rank_of(config, name), state[f"{name}.lora_A"].shape[0]
        if rank != actual:
            raise UserError(f"{where}: {name!r} has rank {actual}, {CONFIG} says {rank}")
    others = {key for key in state if not key.endswith((".lora_A", ".lora_B"))}
    head = {name for name in model.state_dict() if in_head(name, saved)}
    for name in sorted(others ^ head):
        problem = "is not under modules_to_save" if name in others else "is missing"
        raise UserError(f"{where}: {name!r} {problem} (modules_to_save: {', '.join(saved)})")
