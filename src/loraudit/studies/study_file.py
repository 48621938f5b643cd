"""What may stand in the YAML files of studies, protocols and the configuration."""

from typing import Annotated, Any, Literal

from pydantic import Field

from loraudit.studies.values import Frozen

Margin = Annotated[float, Field(gt=0, le=0.1)]

Reading = Literal["sd", "population sd", "standard error", "95% interval", "half range"]
"""What a published ± of unstated meaning may be taken to be."""


class AblationFile(Frozen):
    """The `ablation` of a study file: a grid block, and the switches flipped on it one by one."""

    base: dict
    """a grid block; only task, model and seed may be lists"""
    switches: dict[str, dict] = Field(min_length=1)
    """`name: {field: value}`, one block of runs each"""


class Layer(Frozen):
    """Fields for all runs, for runs on one task, and for runs of one method."""

    defaults: dict[str, Any] = {}
    """fields of every run"""
    per_task: dict[str, dict[str, Any]] = {}
    """`task: {field: value}`, for the runs on that task"""
    per_method: dict[str, dict[str, Any]] = {}
    """`method: {field: value}`, for the runs of that method"""


class ProtocolFile(Layer):
    """A file of config/protocols; `source` says where the settings are from."""

    source: str
    """where the settings are from, and which are assumptions"""


class StudyFile(Layer):
    """A file of config/studies."""

    question: str = ""
    """what the study answers; the report opens with it"""
    protocol: str | None = None
    """file of config/protocols that the runs start from"""
    compare: tuple[str, ...] = ()
    """published tables to set the results beside, such as `hu2022.table2`"""
    margin: Margin = 0.01
    """largest difference, as a fraction, that still counts as equal (0.01: one point)"""
    reading: Reading = "sd"
    """what a published ± of unstated meaning is taken to be"""
    contrasts: tuple[tuple[str, str], ...] = ()
    """pairs of variants, `[alora-r4-all, lora-r4-all]`, that the table of pairs compares; left out:
    each adapter with each baseline and with its twin"""
    grid: Any = []
    """blocks of fields; every list in a block is an axis, and a block is the product of its axes"""
    ablation: AblationFile | None = None
    """a base block, and switches flipped on it one at a time"""


RESERVED = ("committed", "published")
"""Folders of results/ and figures/ that are no study's."""


class PublishedFile(Frozen):
    """config/published.yaml, which explains each key."""

    ours: tuple[str, ...]
    """tables of per-seed results"""
    compare: tuple[str, ...]
    """tables to set them beside"""
    margin: Margin
    """largest difference, as a fraction, that counts as equal"""
    reading: Reading
    """what a ± of unstated meaning is taken to be"""


class Config(Frozen):
    """config/config.yaml, which explains each key."""

    study: str
    task: str | None
    model: str | None
    glue: str
    models: str
    launch: Literal["cpu", "cpu2", "gpu", "multi_gpu_bf16", "two_nodes"] = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10
