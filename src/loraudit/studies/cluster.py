"""What a job asks of a cluster: minutes and memory, from config/cluster.yaml."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from loraudit.base.errors import unknown
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.values import Count, Frozen, validated

Job = Literal["tokenise", "train", "crosscheck", "subspace"]
Times = Annotated[float, Field(ge=1)]


class Need(Frozen):
    """What a job takes on the smallest model and task."""

    minutes: Count
    """wall time"""
    mem_mb: Count
    """memory of the whole job, MB"""


class Factor(Frozen):
    """How many times as much a model or a task takes."""

    minutes: Times = 1
    """times the wall time"""
    mem_mb: Times = 1
    """times the memory"""


class ClusterFile(Frozen):
    """config/cluster.yaml, which explains each key."""

    jobs: dict[Job, Need]
    """minutes and memory of each kind of job on the smallest model and task"""
    models: dict[str, Factor] = {}
    """how much more a model takes"""
    tasks: dict[str, Factor] = {}
    """how much more a task takes"""
    most_minutes: Count
    """longest time that the cluster grants a job"""

    def needs(self, job: Job, models: list[str], tasks: list[str], attempt: int) -> Need:
        """Return what a job asks for: of several models or tasks, the largest counts.

        Args:
            job: kind of job.
            models: names of the models that it reads.
            tasks: names of its tasks.
            attempt: 1 for the first; each further one asks for as much again.
        """
        base = self.jobs[job]
        model, task = _largest(self.models, models), _largest(self.tasks, tasks)
        minutes = math.ceil(base.minutes * model.minutes * task.minutes * attempt)
        mem_mb = math.ceil(base.mem_mb * model.mem_mb * task.mem_mb * attempt)
        return Need(minutes=min(minutes, self.most_minutes), mem_mb=mem_mb)


def _largest(table: dict[str, Factor], names: list[str]) -> Factor:
    """Return the largest factors of some models or tasks; 1 for what the table does not name."""
    found = [table.get(name, Factor()) for name in names] or [Factor()]
    return Factor(
        minutes=max(factor.minutes for factor in found),
        mem_mb=max(factor.mem_mb for factor in found),
    )


def read_cluster(folder: Path | str = "config") -> ClusterFile:
    """Read cluster.yaml of a folder that has models.yaml and tasks.yaml.

    Raises:
        UserError: an unknown key, job, model or task, or a number out of range.
    """
    path = Path(folder, "cluster.yaml")
    table: ClusterFile = validated(ClusterFile, read_yaml(path), str(path))
    known = {
        "models": read_yaml(Path(folder, "models.yaml"))["models"],
        "tasks": read_yaml(Path(folder, "tasks.yaml")),
    }
    for key, legal in known.items():
        for name in getattr(table, key):
            if name not in legal:
                raise unknown(f"{path}: {key}", name, legal)
    return table
