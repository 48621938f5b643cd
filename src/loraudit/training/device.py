"""How a run computes on its device: to the same bits each time, in the precision of its spec.

torch's strict deterministic mode chooses deterministic kernels on CUDA, and an operation that has
none stops the run with an error. Beside the mode itself this takes:

    cuBLAS       a workspace of fixed size for each handle and stream, which torch gives it. torch
                 also asks for an environment variable; `settle_workspace` says how that is met
    attention    the kernels in `ATTENTION`. In strict mode the backward passes of the flash and the
                 memory-efficient kernel add in a fixed order; in torch's mode that only warns,
                 they do not for longer inputs. cuDNN's kernel has no such backward pass
    memory       torch fills new tensors in this mode, to show reads of what was never written. That
                 is turned off: it changes no result, and costs hundreds of kernels a step
    exceptions   `EXEMPT` names all operations that may run without a deterministic kernel

Other devices than CUDA and CPU get torch's mode that warns, since nobody has tried them.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from loraudit.base.errors import UserError

WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""The variable by which cuBLAS's workspace is chosen, and the values with which cuBLAS gives the
same bits each time (NVIDIA's documentation of cuBLAS, "Results Reproducibility")."""

os.environ.setdefault(WORKSPACE, WORKSPACES[0])  # on import: before anything can start CUDA

ATTENTION = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""The kernels that attention may use; torch takes the first that fits the dtype and the mask."""

EXEMPT = {
    "kthvalue": "AdaLoRA's threshold: the value is the same each time, only which of equal values "
    "it is the index of may differ, and no index is read",
}
"""Operations without a deterministic CUDA kernel that a run may use, and why that is harmless."""


@contextmanager
def same_bits(precision: str, device: torch.device) -> Iterator[None]:
    """Compute deterministically inside the `with`, and in a spec's `precision`.

    Args:
        precision: of the spec.
        device: that computes. A run on the CPU leaves a GPU of the machine alone.

    Raises:
        UserError: on CUDA, the environment gives cuBLAS a workspace that is not deterministic.
    """
    fill = torch.utils.deterministic.fill_uninitialized_memory
    products = torch.get_float32_matmul_precision()
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with _deterministic(warn_only=torch.backends.mps.is_available()), sdpa_kernel(ATTENTION):
            if device.type == "cuda":
                settle_workspace()
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_float32_matmul_precision(products)


@functools.cache
def settle_workspace() -> None:
    """Let torch see the variable of cuBLAS's workspace once, and then take it away.

    In strict mode torch refuses a product if the variable was not set at the first one. While it is
    set, torch reads it again at every product, by a regular expression, which takes as long as
    starting the product (docs/speed.md has the measurement). Without it, torch still gives cuBLAS
    one workspace of fixed size for each handle and stream (ATen/cuda/CublasHandlePool.cpp), which
    NVIDIA's documentation names as one of the ways to the same bits; tests/gpu compares the bits.

    torch keeps the workspace that it made for the first product, and takes it for one of its own
    size from then on. `:4096:8` is at least that size on NVIDIA's GPUs, so that only it is taken
    away.

    Raises:
        UserError: the variable has a value with which cuBLAS is not deterministic.
    """
    value = os.environ.get(WORKSPACE)
    if value not in WORKSPACES:
        raise UserError(
            f"{WORKSPACE} = {value!r}: cuBLAS would give other bits each time "
            f"(legal: {' or '.join(WORKSPACES)}; or do not set it)"
        )
    _product()
    if value != WORKSPACES[0] or torch.version.hip:
        return  # the workspace that it chose is smaller than what torch would now take it for
    del os.environ[WORKSPACE]
    try:
        _product()
    except RuntimeError:  # a version of torch that looks for the variable at each product
        os.environ[WORKSPACE] = value


def _product() -> None:
    """Multiply two matrices on the GPU, which torch refuses if cuBLAS is not deterministic."""
    one = torch.ones(1, 1, device="cuda")
    torch.mm(one, one)


@contextmanager
def exempt(operation: str) -> Iterator[None]:
    """Let an operation of `EXEMPT` run inside the `with`, without torch's warning."""
    assert operation in EXEMPT
    with _deterministic(warn_only=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*{operation}.*deterministic")
        yield


@contextmanager
def _deterministic(warn_only: bool) -> Iterator[None]:
    """Turn torch's deterministic mode on inside the `with`."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device does not compute in.

    Raises:
        UserError: tf32 without an NVIDIA GPU that has it, or bf16 on a GPU that has it not.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        where = f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
        tf32 = torch.cuda.is_tf32_supported()
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        where, tf32, bf16 = "the CPU" if device.type == "cpu" else device.type, False, True
    legal = ["fp32", *["tf32"] * tf32, *["bf16"] * bf16]
    if precision not in legal:
        raise UserError(
            f"precision: {precision!r} needs an NVIDIA GPU of compute capability 8.0 or more "
            f"(Ampere, 2020), and this run computes on {where} (legal there: {', '.join(legal)})"
        )
