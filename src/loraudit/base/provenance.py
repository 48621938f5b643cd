"""Describe where a number came from: the code, the packages' versions, and the machine."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "numpy", "hqq")
"""The packages whose versions a record names if they are installed."""

CPUINFO = Path("/proc/cpuinfo")
KIND = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
"""Lines of /proc/cpuinfo that tell kinds of CPU apart, on x86 and on ARM."""


def git_state(folder: Path | str = Path(__file__).parent) -> dict:
    """Return a folder's commit, and whether its tracked files differ from it (`dirty`).

    The default is the folder of this code. Results and figures, which code makes, do not count as
    differing. Both values are None outside a repository.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    code = (":(top)", ":(top,exclude)results", ":(top,exclude)figures")
    status = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def environment() -> dict:
    """Describe code, package versions and hardware of this process."""
    import torch

    return {
        "git": git_state(),
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "platform": platform.platform(),
        **machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs that this process sees.

    Where there are some but CUDA can't start, as with a driver too old for the installed torch, the
    list is empty and one line says why: torch then computes on the CPU.
    """
    import torch

    try:
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        print(f"warning: CUDA can't start, so the CPU computes: {reason}", file=sys.stderr)
        return []


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def machine() -> dict[str, str]:
    """Return the CPU's name and kind; the same spec gives other bits on another kind of CPU."""
    return {"processor": processor(), "processor_kind": processor_kind()}


def processor() -> str:
    """Return the name of the CPU."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor_kind() -> str:
    """Return what tells CPUs of one name ("AMD EPYC") apart.

    This is the CPU's family and model numbers, and the instruction set that torch uses on it, which
    the environment variable ATEN_CPU_CAPABILITY may limit.
    """
    import torch

    facts = _cpuinfo()
    numbers = [f"{key} {facts[key]}" for key in KIND if key in facts]
    return ", ".join([*numbers, f"torch uses {torch.backends.cpu.get_cpu_capability()}"])


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first CPU; an empty mapping on other systems."""
    if not CPUINFO.is_file():
        return {}
    first = CPUINFO.read_text().split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
