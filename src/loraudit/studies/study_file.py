"""Which keys the YAML files of studies, protocols and the configuration may have.

`validated` in values.py reads a file by these classes and turns an unknown key into an error; the
fields of a grid block are checked in grid.py.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from loraudit.base.errors import unknown
from loraudit.studies.values import Count, Frozen

Margin = Annotated[float, Field(gt=0, le=0.1)]

Reading = Literal["sd", "population sd", "standard error", "95% interval", "half range"]
"""What a published ± may be taken to mean if its source does not say."""


Asks = Literal["difference", "equivalence"]
"""What a comparison is to show: that two differ, or that they are equal within the margin."""


class Contrast(Frozen):
    """One of a study's `contrasts`; a list of two variants is short for `left` and `right`."""

    left: str
    """a variant: the name of a folder below `runs/<task>/<model>/`, such as `lora-r8-q+v`"""
    right: str
    """the variant that it is compared with"""
    asks: Asks = "difference"
    """`difference`: does one score higher? `equivalence`: are they equal within the margin, as
    "costs nothing" and "does not move the score" claim?"""
    margin: Margin | None = None
    """with `asks: equivalence`, the largest difference, as a fraction, that still counts as equal;
    null: the study's `margin`, or else 0.01, one point"""

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, value: Any) -> Any:
        """Turn [left, right] into a mapping, and refuse what is neither."""
        if isinstance(value, list | tuple):
            if len(value) != 2:
                raise ValueError(f"expected two variants, got {len(value)}")
            return dict(zip(("left", "right"), value, strict=True))
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(str(unknown("key", key, cls.model_fields)))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Contrast":
        if self.left == self.right:
            raise ValueError(f"{self.left!r} is compared with itself")
        if self.margin and self.asks == "difference":
            raise ValueError(f"margin {self.margin:g} goes with asks 'equivalence' only")
        return self


class AblationFile(Frozen):
    """The `ablation` of a study file: a grid block, and the switches flipped on it one by one."""

    base: dict
    """a grid block; only task, model and seed may be lists"""
    switches: dict[str, dict] = Field(min_length=1)
    """`name: {field: value}`; each makes one block of runs"""
    asks: Asks = "difference"
    """`difference`: does a switch change the score? `equivalence`: does it leave the score within
    the study's `margin` (or else one point)?"""


class TuneFile(Frozen):
    """The `tune` of a study file: values to try before the study's runs are trained."""

    axes: dict[str, list] = {}
    """`field: [values]`; every combination is tried for each cell of the grid whose block does not
    set the field itself"""
    per_method: dict[str, dict[str, list]] = {}
    """`method: {field: [values]}`: what is tried for a method in place of `axes`; `{}`: nothing"""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    """seeds to try each combination with; none of them may be a seed that is reported"""


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
    assumed: tuple[str, ...] = ()
    """fields that the source says nothing of: a published number made by this protocol is not said
    to have them"""
    not_run: tuple[str, ...] = ()
    """sentences on what the source did that no field of a run says, and so no run of ours does; the
    report prints them"""


class StudyFile(Layer):
    """A file of config/studies."""

    question: str = ""
    """what the study answers; the report opens with it"""
    protocol: str | None = None
    """file of config/protocols that the runs start from"""
    compare: tuple[str, ...] = ()
    """published tables to set the results beside, such as `hu2022.table2`"""
    margin: Margin | None = None
    """largest difference, as a fraction, that still counts as equal; left out, it is the published
    number's own (`margin` in config/reference), or else 0.01, one point"""
    reading: Reading = "sd"
    """what a published ± is taken to mean if its source does not say"""
    claims: tuple[str, ...] = ()
    """[claims](claims.md) of config/claims that the study's question asks about, such as
    `hu2022.rank-flat`: the report opens with their verdicts, which are adjusted for their number"""
    contrasts: tuple[Contrast, ...] = ()
    """the [contrasts](#contrasts) that the study's question asks for, which the table `pairs` tests
    for each task and model; left out, it compares each adapter with each baseline"""
    grid: Any = []
    """blocks of fields; each list in a block is an axis, and a block has one run for each
    combination of their values"""
    tune: TuneFile | None = None
    """values to try, on rows held out of the training split (`selection_rows`), from which each
    cell of the grid takes the best; see [tune](#tune)"""
    settings_from: str | None = None
    """the study whose `tune` chose the settings that stand in this file; on another task or model
    than the file's own they count as untuned"""
    language_loss: Count | None = None
    """how many validation rows of its task, and of the earlier tasks of its chain, each saved run
    is read on [as a language model](studies.md#as-a-language-model), before and after training;
    null: none"""
    ablation: AblationFile | None = None
    """a base block, and switches flipped on it one at a time"""


RESERVED = ("committed", "published")
"""Folders of results/ and figures/ that belong to no study, so that no study may be called so."""


class PublishedFile(Frozen):
    """config/published.yaml, which explains each key."""

    ours: tuple[str, ...]
    """tables of results by seed, or of single runs, on which claims are tested too"""
    compare: tuple[str, ...]
    """published tables to set them beside"""
    margin: Margin | None = None
    """largest difference, as a fraction, that counts as equal; left out, it is the published
    number's own (`margin` in config/reference), or else 0.01, one point"""
    reading: Reading
    """what a ± is taken to mean if its source does not say"""


class Config(Frozen):
    """config/config.yaml, which explains each key."""

    study: str
    task: str | None
    model: str | None
    glue: str
    models: str
    launch: str = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    runs_per_gpu: Annotated[int, Field(ge=1)] = 1
    runs_per_batch: Annotated[int, Field(ge=1)] = 1
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10
