"""What a job asks of a cluster: minutes and memory (config/cluster.yaml), nodes and GPUs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from loraudit.base.errors import UserError, unknown
from loraudit.base.shipped import read_table, tables
from loraudit.base.written_yaml import refuse_doubled
from loraudit.studies.values import Count, Frozen, validated

Job = Literal["tokenise", "train", "crosscheck", "subspace", "forgetting", "language_loss"]
Times = Annotated[float, Field(ge=1)]

TARGETS = ("all", "trained", "default")
"""Rules that only name what is to be made: no jobs."""


class Need(Frozen):
    """What a job takes on the smallest model and task."""

    minutes: Count
    """wall time"""
    mem_mb: Count
    """memory of the whole job, MB"""


class Factor(Frozen):
    """How many times as much as the smallest a model or a task takes."""

    minutes: Times = 1
    """factor of the wall time"""
    mem_mb: Times = 1
    """factor of the memory"""


class ClusterFile(Frozen):
    """config/cluster.yaml, which explains each key."""

    jobs: dict[Job, Need]
    """minutes and memory of each kind of job on the smallest model and task"""
    models: dict[str, Factor] = {}
    """factors of each model; 1 for one that is not named"""
    tasks: dict[str, Factor] = {}
    """factors of each task; 1 for one that is not named"""
    most_minutes: Count
    """the longest time that the cluster grants a job"""

    def needs(
        self, job: Job, models: list[str], tasks: list[str], attempt: int, processes: int = 1
    ) -> Need:
        """Return what a job asks for; of several models or tasks, the one that takes most counts.

        Args:
            job: kind of job.
            models: names of the models that it reads.
            tasks: names of its tasks.
            attempt: 1 for the first try; the second asks for twice as much, and so on.
            processes: of the job on a machine, each of which takes the memory.
        """
        base = self.jobs[job]
        model, task = _largest(self.models, models), _largest(self.tasks, tasks)
        minutes = math.ceil(base.minutes * model.minutes * task.minutes * attempt)
        mem_mb = math.ceil(base.mem_mb * model.mem_mb * task.mem_mb * attempt * processes)
        return Need(minutes=min(minutes, self.most_minutes), mem_mb=mem_mb)


def _largest(table: dict[str, Factor], names: list[str]) -> Factor:
    """Return the largest factors of some models or tasks; one that is not in the table has 1."""
    factors = [table.get(name, Factor()) for name in names] or [Factor()]
    return Factor(
        minutes=max(factor.minutes for factor in factors),
        mem_mb=max(factor.mem_mb for factor in factors),
    )


def read_cluster(folder: Path | str = "config") -> ClusterFile:
    """Read cluster.yaml of a folder that has models.yaml and tasks.yaml.

    Raises:
        UserError: an unknown key, job, model or task, a key that stands there twice, a job that is
            missing, or a number out of range.
    """
    path = Path(folder, "cluster.yaml")
    for file in tables(path):
        refuse_doubled(file)
    read = read_table(path, "jobs", "models", "tasks")
    table: ClusterFile = validated(ClusterFile, read, str(path))
    for job in get_args(Job):
        if job not in table.jobs:
            raise UserError(f"{path}: jobs: key {job!r} is missing")
    known = {
        "models": read_table(Path(folder, "models.yaml"), "models")["models"],
        "tasks": read_table(Path(folder, "tasks.yaml")),
    }
    for key, legal in known.items():
        for name in getattr(table, key):
            if name not in legal:
                raise unknown(f"{path}: {key}", name, legal)
    return table


STOP_EARLY = "--signal=TERM@90"
"""SLURM tells a run to stop 90 to 150 s before its time limit, so that it can save a checkpoint."""


STOP_EARLY_LSF = "-wa TERM -wt 2"
"""LSF does so two minutes before the limit."""


def node_request(launcher: Mapping) -> dict[str, int | str]:
    """Return the resources by which a run's GPUs and processes get onto the nodes that it means.

    Left to itself, SLURM may spread the GPUs of a job over several nodes, and may put the tasks of
    a job that asks for two nodes onto one of them. So several GPUs of one machine ask for one node
    with one task, and a run on several machines for one task, and its share of the GPUs, on each.

    Args:
        launcher: the content of a file in profiles/accelerate.

    Returns:
        Resources as the SLURM plugin of Snakemake names them; for one machine, as its plugins for
        LSF and HTCondor do, too.
    """
    nodes = launcher["num_machines"]
    gpus = 0 if launcher["use_cpu"] else launcher["num_processes"]
    if nodes == 1:
        one = {"nodes": 1} if gpus > 1 else {}
        one |= {"request_gpus": gpus} if gpus else {}
        slurm = f"{STOP_EARLY} --ntasks-per-node=1" if gpus > 1 else STOP_EARLY
        lsf = f"{STOP_EARLY_LSF} -gpu num={gpus}:j_exclusive=yes" if gpus else STOP_EARLY_LSF
        return {"gpu": gpus, **one, "slurm_extra": slurm, "lsf_extra": lsf}
    shares = ["--ntasks-per-node=1", *([f"--gpus-per-node={gpus // nodes}"] if gpus else [])]
    extra = " ".join([STOP_EARLY, *shares])
    spread = {"mpi": "srun", "nodes": nodes, "tasks": nodes, "tasks_per_gpu": 0}
    return {"gpu": gpus, **spread, "slurm_extra": extra}
