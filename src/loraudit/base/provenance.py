"""Describe where a number came from: the code, the packages' versions, and the machine."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "numpy", "hqq")
"""Packages whose versions a record names, where they are installed."""

CPUINFO = Path("/proc/cpuinfo")
KIND = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
"""Lines of /proc/cpuinfo that tell kinds of CPU apart, on x86 and on ARM."""


def git_state(folder: Path | str = Path(__file__).parent) -> dict:
    """Return the commit of a folder, this code's by default, and whether tracked files differ.

    Both are None outside a repository.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    code = (":(top)", ":(top,exclude)results", ":(top,exclude)figures")  # not what code made
    status = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def environment() -> dict:
    """Describe code, package versions and hardware of this process."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "git": git_state(),
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "platform": platform.platform(),
        **machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def machine() -> dict[str, str]:
    """Return the name of the CPU and its kind: on another kind the same spec gives other bits."""
    return {"processor": processor(), "processor_kind": processor_kind()}


def processor() -> str:
    """Return the name of the CPU."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor_kind() -> str:
    """Return what tells CPUs apart whose names are bare ("AMD EPYC").

    These are the CPU's numbers, and the instructions that torch uses on it, which a variable of the
    environment may limit.
    """
    import torch

    facts = _cpuinfo()
    numbers = [f"{key} {facts[key]}" for key in KIND if key in facts]
    return ", ".join([*numbers, f"torch uses {torch.backends.cpu.get_cpu_capability()}"])


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first CPU; nothing elsewhere."""
    if not CPUINFO.is_file():
        return {}
    first = CPUINFO.read_text().split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
