"""PEFT as the cross-check: the twin model (method "peft"), and adapter folders both ways.

Key table, for a layer called <name> and a head module called <head>:

| in-house            | PEFT file (adapter_model.safetensors)       |
|---------------------|---------------------------------------------|
| <name>.lora_A       | base_model.model.<name>.lora_A.weight       |
| <name>.lora_B       | base_model.model.<name>.lora_B.weight       |
| <head>.weight, ...  | base_model.model.<head>.weight, ...         |
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from pydantic import AfterValidator, BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from loraudit.error_ranks import Start, starts
from loraudit.errors import UserError
from loraudit.models import compute_dtype, freeze, in_head, linear_sizes, target_modules
from loraudit.spec import HubSource, RunSpec, derive_seed, validated

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

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
"""Settings that change what an adapter computes, and the values under which it is alpha/r B A."""


def _bounded(pattern: str) -> str:
    """Refuse what is no regular expression, and one that could match for ever."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a pattern: {error}") from None
    if len(pattern) > 200 or re.search(r"\)[*+{]|([*+{].*){4}", pattern):
        raise ValueError("a pattern that may take for ever (legal: 3 repeats, of no group)")
    return pattern


Pattern = Annotated[str, AfterValidator(_bounded)]


class Layers(BaseModel):
    """The keys of an adapter_config.json that say which layers it is for, as PEFT matches them."""

    r: int = Field(gt=0, strict=True)
    target_modules: Pattern | list[Pattern] = Field(min_length=1)
    exclude_modules: Pattern | list[Pattern] | None = None
    modules_to_save: list[Pattern] | None = None
    rank_pattern: dict[Pattern, Annotated[int, Field(gt=0, strict=True)]] = {}
    alpha_pattern: dict[Pattern, Any] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Pattern | list[Pattern] | None = None


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def lora_config(spec: RunSpec, names: list[str]) -> peft.LoraConfig:
    """Say a run's LoRA in PEFT's words. Full layer names match those layers and no others.

    Raises:
        UserError: a value of `spec.peft` that PEFT refuses.
    """
    fields = {
        "task_type": peft.TaskType.SEQ_CLS,
        "base_model_name_or_path": base_name(spec),
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.lora_dropout,
        "init_lora_weights": "gaussian" if spec.init == "gaussian" else True,
        "target_modules": list(names),
        "modules_to_save": list(spec.model.head),
        "bias": "none",
        "inference_mode": True,
        **spec.peft,
    }
    with _peft_errors(spec):
        return peft.LoraConfig(**fields)


def base_name(spec: RunSpec) -> str:
    """Return what an adapter's config calls its base model."""
    source = spec.model.source
    return source.hub if isinstance(source, HubSource) else spec.model.name


@contextmanager
def _peft_errors(spec: RunSpec) -> Iterator[None]:
    """Turn PEFT's refusal of a variant into one sentence; of plain LoRA it is no user's error."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        if not spec.peft:
            raise
        raise UserError(f"peft = {spec.peft}: PEFT says: {' '.join(str(error).split())}") from None


def apply(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Wrap the model with PEFT, starting where the in-house twin starts.

    PEFT's own initialisation is run again per layer under that layer's derived seed, so equal
    starts mean equal initialisation code, not copied tensors. (Starts that are computed from a
    quantisation error, which PEFT has for bitsandbytes only, are copied.) PEFT's other ways to
    start, from `spec.peft`, are run once, under the run's seed.

    Raises:
        UserError: a target that this model lacks, or a variant that PEFT refuses.
    """
    freeze(model, spec.model.head, train_head=False)
    found = starts(model, spec, target_modules(model, spec.model, spec.targets))
    config = with_ranks(lora_config(spec, list(found)), spec, {n: s.rank for n, s in found.items()})
    config.inference_mode, config.base_model_name_or_path = False, None  # PEFT fills it in
    torch.manual_seed(derive_seed(spec.seed, "lora_A"))
    with _peft_errors(spec):
        twin = peft.get_peft_model(model, config)
    for name, start in found.items():
        layer = twin.get_submodule(PREFIX + name)
        if isinstance(layer, LoraLayer):
            layer.to(compute_dtype(layer.get_base_layer()))  # PEFT leaves it float32 on packed ones
            _initialise(layer, start, config.init_lora_weights, spec, name)
    refreeze_head(twin, spec)
    return twin


def refreeze_head(wrapped: nn.Module, spec: RunSpec) -> None:
    """Freeze the head again where the run has it frozen: PEFT trains what it saves."""
    if spec.head == "frozen":
        for name, parameter in wrapped.named_parameters():
            if in_head(name, spec.model.head):
                parameter.requires_grad_(False)


@torch.no_grad()
def _initialise(layer: LoraLayer, start: Start, init: bool | str, spec: RunSpec, name: str) -> None:
    """Start one layer of PEFT's where the in-house twin's starts."""
    matrices = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if start.a is not None:
        for own, value in zip(matrices, (start.a, start.b), strict=True):
            own.copy_(value)
    elif init in (True, "gaussian"):
        torch.manual_seed(derive_seed(spec.seed, "lora_A", name))
        layer.reset_lora_parameters("default", init)
        if spec.init_std:  # PEFT's gaussian has 1/r only
            torch.manual_seed(derive_seed(spec.seed, "lora_A", name))
            torch.nn.init.normal_(matrices[0], std=spec.init_std)


def with_ranks(config: peft.LoraConfig, spec: RunSpec, ranks: dict[str, int]) -> peft.LoraConfig:
    """Name layers of another rank in rank_pattern, and in alpha_pattern so that alpha / r stays."""
    moved = {name: rank for name, rank in ranks.items() if rank != spec.rank}
    if moved:
        config.rank_pattern = moved
        config.alpha_pattern = {name: spec.alpha * r / spec.rank for name, r in moved.items()}
    return config


def export(model: nn.Module, spec: RunSpec, folder: Path) -> None:
    """Save the PEFT twin's adapter and head."""
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in peft.get_peft_model_state_dict(model).items()
    }
    ranks = {
        key.removesuffix(".lora_A"): tensor.shape[0]
        for key, tensor in from_peft(state).items()
        if key.endswith(".lora_A")
    }
    write_folder(state, with_ranks(lora_config(spec, list(ranks)), spec, ranks), folder)


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
        UserError: a name outside the key table.
    """
    out = {}
    for key, tensor in state.items():
        if not key.startswith(PREFIX):
            raise UserError(f"not a PEFT adapter tensor: {key!r} (legal: {PREFIX}...)")
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
    """Write adapter_model.safetensors and adapter_config.json.

    Sets of the config are put in order: PEFT writes them in one that varies by process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    for key, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, key, sorted(value))
    config.save_pretrained(folder)


def read_folder(folder: Path) -> tuple[peft.LoraConfig, dict[str, torch.Tensor]]:
    """Read a PEFT folder: its config, and its tensors under in-house names.

    Raises:
        UserError: a file that is missing, broken or pickled, an adapter that is not plain LoRA, or
            tensors that `check_tensors` refuses.
    """
    folder = Path(folder)
    config, path = _read_config(folder / CONFIG), folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "; its adapter_model.bin is a pickle, which is not read" if pickled else ""
        raise UserError(f"{folder}: no {WEIGHTS}{hint}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None
    state = from_peft(tensors)
    check_tensors(state, path)
    return config, state


def _read_config(path: Path) -> peft.LoraConfig:
    """Read adapter_config.json; UserError for anything but plain LoRA with a legal alpha."""
    config = _parsed_config(path)
    for key, value in PLAIN.items():
        found = getattr(config, key)
        if (found or None) != (value or None):
            raise UserError(f"{path}: {key} is {found!r}: not plain LoRA (legal: {value!r})")
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
    """Read adapter_config.json; UserError for anything but a LoRA's with layers that PEFT knows."""
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
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def check_tensors(state: dict[str, torch.Tensor], where: Path) -> None:
    """Check adapter and head tensors by in-house names.

    Raises:
        UserError: a tensor that is not of finite floats, an A without its B (or the reverse), a
            pair that is not (r, d_in) and (d_out, r), or no pair at all.
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
        for part, tensor in pair.items():
            if tensor is None:
                raise UserError(f"{where}: {name!r} has no {part}")
        a, b = (tuple(tensor.shape) for tensor in pair.values())
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
            raise UserError(
                f"{where}: {name!r} has lora_A {a} and lora_B {b} (legal: (r, d_in), (d_out, r))"
            )


def check_fits(model: nn.Module, state: dict[str, torch.Tensor], where: Path) -> None:
    """Check that a model without adapters has a place for every tensor of an adapter and head.

    Args:
        model: the base model; its weights are not looked at and may be on the meta device.
        state: {in-house name: tensor}.
        where: the file or folder to name in an error.

    Raises:
        UserError: a layer or tensor that the model lacks, or has in another shape.
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
    """Return a layer's rank: r, or what rank_pattern says of it."""
    return config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), layer), config.r)


def alpha_of(config: peft.LoraConfig, layer: str) -> float:
    """Return a layer's alpha: lora_alpha, or what alpha_pattern says of it."""
    pattern = config.alpha_pattern or {}
    return pattern.get(get_pattern_key(pattern.keys(), layer), config.lora_alpha)


def check_config(
    model: nn.Module, config: peft.LoraConfig, state: dict[str, torch.Tensor], where: Path
) -> None:
    """Check that an adapter's tensors are the ones that its config promises for this model.

    Args:
        model: the base model without adapters.
        config, state: what `read_folder` gave; `check_fits` has passed.
        where: the folder to name in an error.

    Raises:
        UserError: layers other than those that target_modules and exclude_modules match, a rank
            other than r or rank_pattern says, or head tensors other than those of modules_to_save.
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
        rank, found = rank_of(config, name), state[f"{name}.lora_A"].shape[0]
        if rank != found:
            raise UserError(f"{where}: {name!r} has rank {found}, {CONFIG} says {rank}")
    others = {key for key in state if not key.endswith((".lora_A", ".lora_B"))}
    head = {name for name in model.state_dict() if in_head(name, saved)}
    for name in sorted(others ^ head):
        problem = "is not under modules_to_save" if name in others else "is missing"
        raise UserError(f"{where}: {name!r} {problem} (modules_to_save: {', '.join(saved)})")
