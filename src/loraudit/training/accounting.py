"""What a run costs in parameters, bytes and memory."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from loraudit.adapters.base_layers import in_head, is_linear, is_packed
from loraudit.base.errors import UserError


def count_parameters(model: nn.Module, head: tuple[str, ...]) -> dict[str, int]:
    """Count the trainable parameters of the adapter (A and B), the head and the base, and the sum.

    The paper's 0.3M for RoBERTa-base at r=8 on q and v is `adapter` alone: 294,912. Numbers that
    are held at zero (peft_twin.hold_parts) do not count.
    """
    counts, prefix = {"adapter": 0, "head": 0, "base": 0}, adapter_prefix(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "adapter" if prefix in name else "head" if in_head(name, head) else "base"
            counts[kind] += getattr(parameter, "trained_numbers", parameter.numel())
    return {**counts, "trainable": sum(counts.values())}


def adapter_prefix(model: nn.Module) -> str:
    """Return what the names of an adapter's tensors have in common: lora_, or PEFT's for a method.

    (VeRA calls what it trains vera_lambda_, and IA3 ia3_.)
    """
    if isinstance(model, PeftModel):
        return getattr(model.base_model, "prefix", "lora_")
    return "lora_"


def model_parameters(model: nn.Module) -> int:
    """Count a model's parameters; a packed weight counts as the numbers that it stands for."""
    packed = [layer for layer in model.modules() if is_packed(layer)]
    held = sum(parameter.numel() for parameter in model.parameters())
    for layer in packed:
        bias = 0 if layer.bias is None else layer.bias.numel()
        held += layer.in_features * layer.out_features + bias - layer.W_q.numel()
    return held


def base_bytes(model: nn.Module, head: tuple[str, ...]) -> dict[str, int]:
    """Return the memory that the base's tensors hold, measured tensor by tensor.

    `base` is all but the adapter and the head. `base_linear` is the part of its linear layers:
    plain weights, or packed ones with their scales and zeros, and biases. Unpacked copies, which a
    forward pass makes and drops, do not count.
    """
    sizes, prefix = {"base": 0, "base_linear": 0}, adapter_prefix(model)
    for name, module in model.named_modules():
        for key, tensor in _tensors(module):
            if prefix in f"{name}.{key}" or in_head(f"{name}.{key}", head):
                continue
            sizes["base"] += tensor.numel() * tensor.element_size()
            if is_linear(module):
                sizes["base_linear"] += tensor.numel() * tensor.element_size()
    return sizes


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a module's own tensors, also those that hqq keeps as plain attributes."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
    if is_packed(module):
        other = {"bias": module.bias, "original": module.original, **module.meta}
        yield from ((k, v) for k, v in other.items() if isinstance(v, torch.Tensor))


def adapter_ranks(model: nn.Module) -> dict[str, int]:
    """Return {layer's full name: rank} of the LoRA layers of a model, ours or PEFT's."""
    ranks = {}
    for name, parameter in model.named_parameters():
        layer, part, _ = name.partition(".lora_A")
        if part:
            ranks[layer.removeprefix("base_model.model.")] = parameter.shape[0]
    return ranks


def folder_bytes(folder: Path) -> int:
    """Return the size on disk of all files below a folder (0 if there is none)."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def peak_memory_mib() -> float:
    """Return the most resident memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_device_memory_mib() -> float | None:
    """Return the most memory that tensors took on this process's GPU, in MiB; None without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


@contextmanager
def out_of_memory(what: str, rows: int, tokens: int, micro_batch: int) -> Iterator[None]:
    """Turn a lack of memory, on GPU or CPU, into a UserError that names the batch and its length.

    A process that the system's out-of-memory killer ends can't say anything; its exit code is 137.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        lacking = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(text in str(error) for text in lacking):
            raise
        raise UserError(
            f"out of memory in {what}, on a batch of {rows} rows of {tokens} tokens; try a smaller "
            f"micro_batch (now {micro_batch}; the global batch stays) or max_length"
            + (", or recompute: blocks" if what == "training" else "")
        ) from None
