"""Launch files: on which devices and in how many processes each run starts, and what fits there.

They are configuration files of Accelerate (profiles/accelerate, or a user's own). Which of them a
study is launched by changes none of its numbers, so it is no part of a run's spec. What of a
study does not fit a launch file is refused before anything starts.
"""

import ast
import functools
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, field_validator, model_validator

from loraudit.base.errors import UserError, unknown
from loraudit.base.gpu_slots import check_devices, installed, visible
from loraudit.base.memory import memory_mb
from loraudit.base.shipped import own_and_shipped, own_or_shipped
from loraudit.base.written_yaml import read_written
from loraudit.studies.spec import RunSpec
from loraudit.studies.study import Run
from loraudit.studies.values import Count, Frozen, check_known, validated

FOLDER = Path("profiles/accelerate")


class Launcher(Frozen):
    """What we read of a launch file; Accelerate reads its other keys."""

    model_config = ConfigDict(extra="ignore")

    distributed_type: Literal["NO", "MULTI_GPU"] = "NO"
    """NO: one process; MULTI_GPU: several, on GPUs or (`use_cpu`) on the CPU"""
    use_cpu: bool = False
    num_processes: Count
    """processes of a run on all machines together, each with a GPU of its own if GPUs are used"""
    num_machines: Count = 1
    mixed_precision: Literal["no", "bf16"] = "no"
    """no: the run's own `precision` holds, whichever it is; bf16: only runs in bf16 are started"""
    gpu_ids: str | int | list = "all"

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _unquoted_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads an unquoted no as false

    @model_validator(mode="after")
    def _consistent(self) -> "Launcher":
        if self.num_processes > 1 and self.distributed_type == "NO":
            raise ValueError(
                f"distributed_type NO starts one process, and num_processes is "
                f"{self.num_processes} (several need MULTI_GPU)"
            )
        if self.num_processes % self.num_machines:
            raise ValueError(
                f"num_processes {self.num_processes} do not spread evenly over num_machines "
                f"{self.num_machines}"
            )
        if not self.use_cpu and self.gpu_ids != "all":
            raise ValueError(
                f"gpu_ids {self.gpu_ids!r} would put every run on the same GPUs (legal: all; "
                "CUDA_VISIBLE_DEVICES chooses among the machine's GPUs)"
            )
        return self


def launch_file(name: str) -> Path:
    """Return the launch file of a name in profiles/accelerate, own or shipped, or of a path.

    Raises:
        UserError: there is no such file.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"config: launch: no file {path}")
        return path
    path = own_or_shipped(FOLDER / f"{name}.yaml")
    if not path.is_file():
        raise unknown("config: launch", name, (file.stem for file in own_and_shipped(FOLDER)))
    return path


def read_launcher(path: Path | str) -> dict[str, Any]:
    """Return the fields of `Launcher` that a launch file has or leaves at their defaults.

    Raises:
        UserError: a key is unknown, missing or there twice, or its value does not fit the others
            or this pipeline.
    """
    read = read_written(path)
    check_known(read, accelerate_keys(), f"{path}: key")
    fields = {key: value for key, value in read.items() if key in Launcher.model_fields}
    return validated(Launcher, fields, str(path)).model_dump()


@functools.cache
def accelerate_keys() -> frozenset[str]:
    """Return the keys of a configuration file of the installed Accelerate.

    They are read from its source text: importing it would import torch.
    """
    spec = importlib.util.find_spec("accelerate")
    assert spec is not None and spec.origin is not None  # a dependency of this package
    text = Path(spec.origin).parent.joinpath("commands/config/config_args.py").read_text()
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    fields = (
        part.target
        for node in classes
        if node.name in ("BaseConfig", "ClusterConfig")
        for part in node.body
        if isinstance(part, ast.AnnAssign)
    )
    return frozenset(target.id for target in fields if isinstance(target, ast.Name))


def processes_per_machine(launcher: Mapping) -> int:
    """Return how many processes a run has on each machine."""
    return launcher["num_processes"] // launcher["num_machines"]


def gpus_per_machine(launcher: Mapping) -> int:
    """Return how many GPUs a run takes on each machine."""
    return 0 if launcher["use_cpu"] else processes_per_machine(launcher)


def require_fit(runs: Iterable[Run], name: str, launcher: Mapping) -> None:
    """Refuse a launch file that a run of the study can't be started by.

    Args:
        runs: the study's runs.
        name: the launch file's name, for the message.
        launcher: `read_launcher`'s answer.

    Raises:
        UserError: says which run does not fit, why, and what would.
    """
    for run in runs:
        if reason := _misfit(run.spec, launcher):
            raise UserError(f"config: launch {name!r} does not fit run {run.id}: {reason}")


def require_devices(name: str, launcher: Mapping) -> None:
    """Refuse a launch file that can't start a run on this machine, whatever the run.

    A machine without any GPU is not refused: a study may be planned there for another one.

    Args:
        name: the launch file's name, for the message.
        launcher: `read_launcher`'s answer.

    Raises:
        UserError: it takes more GPUs than may be used here, or several machines without SLURM.
    """
    machines = launcher["num_machines"]
    if machines > 1 and "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            f"config: launch {name!r} starts each run on {machines} machines, which takes SLURM: "
            "use --profile profiles/slurm, start inside salloc, or choose a launch file of one "
            "machine"
        )
    try:
        check_devices(gpus_per_machine(launcher), visible() if not launcher["use_cpu"] else [])
    except UserError as error:
        raise UserError(f"config: launch {name!r}: {error}") from None


def _misfit(spec: RunSpec, launcher: Mapping) -> str | None:
    """Return why a launch file can't start a run, and what to do; None if it can."""
    if launcher["mixed_precision"] not in ("no", spec.precision):
        wanted = launcher["mixed_precision"]
        return (
            f"the launch file asks for mixed_precision {wanted}, the run for precision "
            f'{spec.precision}; set mixed_precision: "no" in the launch file, which takes '
            f"the run's precision, or precision: {wanted} in the study"
        )
    if spec.precision == "tf32" and launcher["use_cpu"]:
        return (
            "its precision tf32 is for GPUs, and the launch file uses the CPU; choose launch=gpu, "
            "or set precision: fp32 in the study"
        )
    processes, batch = launcher["num_processes"], spec.global_batch
    if batch % (spec.micro_batch * processes) == 0:
        return None
    if batch % processes:
        legal = [str(count) for count in range(1, batch + 1) if batch % count == 0]
        return (
            f"its global_batch {batch} can't be shared by {processes} processes (legal: "
            f"{', '.join(legal)}); choose a launch file with fewer processes"
        )
    micro = _micro_batch(spec, processes)
    passes = batch // (micro * processes)
    return (
        f"its global_batch {batch} is not divisible by micro_batch {spec.micro_batch} x "
        f"{processes} processes; set micro_batch: {micro} in the study ({micro} rows x "
        f"{processes} processes x {passes} accumulated pass{'es' * (passes > 1)} make a step of "
        f"{batch} rows), or launch=gpu, which gives each run one GPU"
    )


def _micro_batch(spec: RunSpec, processes: int) -> int:
    """Return the largest micro batch, no larger than the run's, that the processes can share."""
    rows = spec.global_batch // processes
    return max(m for m in range(1, min(rows, spec.micro_batch) + 1) if rows % m == 0)


def local_limits(launcher: Mapping, runs_per_gpu: int) -> dict[str, int]:
    """Return what the jobs of this machine may take at the same time, as Snakemake's resources.

    This is its memory in MB and, where runs take GPUs and there are some, the places on its GPUs:
    each has `runs_per_gpu` of them, and a run takes one on each GPU that it uses.
    """
    limits = {"mem_mb": memory_mb()}
    places = len(visible()) * runs_per_gpu if gpus_per_machine(launcher) else 0
    return limits | ({"gpu": places} if places else {})


def idle_gpus(launcher: Mapping) -> list[str]:
    """Return a sentence on GPUs of this machine that its jobs may use and none will."""
    products = dict.fromkeys(device.product for device in installed())
    count = len(visible()) if products and not gpus_per_machine(launcher) else 0
    if not count:
        return []
    return [
        f"{count} GPU{'s' * (count > 1)} of this machine ({', '.join(products)}) will be idle, "
        "since the launch file takes none; --config launch=gpu gives each run one"
    ]
