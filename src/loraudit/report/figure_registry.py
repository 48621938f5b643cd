"""The registry of figures: one entry for each.

A new figure is an entry here, the code that draws it, and its caption, workflow/report/<name>.rst.
An entry names its code by strings, which are looked up when the figure is drawn: the Snakefile
reads the entries when it is parsed, and must not import matplotlib, pandas or torch for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loraudit.analysis.section7_runs import lora_runs, rank_pairs, seed_pairs
from loraudit.base.named_code import resolve
from loraudit.studies.names import adapter_name
from loraudit.studies.spec import RunSpec
from loraudit.studies.study import Study


@dataclass(frozen=True)
class Limit:
    """How much one figure can show per task and model.

    `most` is the number of units, `unit` what they are called, `columns` those that make one unit.
    Where the method is not among the columns, twins (ours and PEFT's) stay together.
    """

    most: int
    unit: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """One figure of a study.

    `tables` are the files that it is drawn from, below results/<study>. `module` has its code:
    `rows(*tables)` selects the rows to draw ("": all of the one table), `draw(rows)` returns the
    matplotlib figure, `describe(rows)` the alt text. `undrawn(rows)` says in a few words why there
    is nothing to see in a figure of these rows, "" where there is: the page then has that line in
    place of the figure. `wanted` tells whether a study has something to draw.
    """

    name: str
    title: str
    section: str
    tables: tuple[str, ...]
    module: str
    draw: str
    describe: str
    rows: str = ""
    undrawn: str = ""
    wanted: Callable[[Study], bool] = lambda study: True
    limit: Limit | None = None

    def code(self, role: str) -> Callable[..., Any]:
        """Return the function of a role: "rows", "undrawn", "draw" or "describe"."""
        return resolve(f"{self.module}:{getattr(self, role)}")


def _specs(study: Study) -> list[RunSpec]:
    return [run.spec for run in study.runs]


def _has_several_sizes(study: Study) -> bool:
    return len({(spec.method, adapter_name(spec)) for spec in _specs(study)}) > 1


def _has_several_epochs(study: Study) -> bool:
    return any(spec.epochs > 1 for spec in _specs(study))


def _has_several_rows(study: Study) -> bool:
    rows = {(spec.task.name, spec.train_rows) for spec in _specs(study)}
    return len(rows) > len({task for task, _ in rows})


def _has_several_cells(study: Study) -> bool:
    return len({run.id.rpartition("/")[0] for run in study.runs}) > 1


def _has_several_bits(study: Study) -> bool:
    return len({spec.base_bits for spec in _specs(study)}) > 1


def _tunes_the_rate(study: Study) -> bool:
    return any(spec.tuned and "learning_rate" in spec.tuned.fields for spec in _specs(study))


def _has_lora(study: Study) -> bool:
    return bool(lora_runs(study))


HERE = "loraudit.report"
RUNS = "tidy/runs.parquet"
VERDICTS = "tables/verdicts.csv"
CELL = ("method", "rank", "targets", "label")
LINE = ("targets", "label")

_FIGURES = (
    Figure(
        name="claims",
        title="Effects beside what papers claim",
        section="claims",
        tables=("tables/claims.csv",),
        module=f"{HERE}.claim_figures",
        rows="claim_rows",
        draw="claims",
        describe="describe_claims",
        wanted=lambda study: bool(study.claims),
    ),
    Figure(
        name="verdicts",
        title="Differences to published numbers",
        section="verdicts",
        tables=(VERDICTS,),
        module=f"{HERE}.forest_figures",
        draw="verdicts",
        describe="describe_verdicts",
        wanted=lambda study: bool(study.compare),
        limit=Limit(40, "cells", CELL),
    ),
    Figure(
        name="switches",
        title="What each switch changes",
        section="switches",
        tables=("tables/switches.csv",),
        module=f"{HERE}.forest_figures",
        rows="switch_rows",
        draw="switches",
        describe="describe_switches",
        wanted=lambda study: bool(study.switches),
    ),
    Figure(
        name="hero",
        title="Score over rank and trainable parameters",
        section="scores",
        tables=(RUNS, VERDICTS),
        module=f"{HERE}.score_figures",
        rows="score_rows",
        undrawn="no_hero",
        draw="hero",
        describe="describe_hero",
        wanted=_has_several_sizes,
        limit=Limit(12, "series", LINE),
    ),
    Figure(
        name="score_vs_rows",
        title="Score over training rows",
        section="scores",
        tables=(RUNS, VERDICTS),
        module=f"{HERE}.score_figures",
        rows="score_rows",
        draw="score_vs_rows",
        describe="describe_score_vs_rows",
        wanted=_has_several_rows,
        limit=Limit(12, "series", ("rank", "targets")),
    ),
    Figure(
        name="score_vs_bits",
        title="Score over the bits of the base",
        section="scores",
        tables=(RUNS,),
        module=f"{HERE}.score_figures",
        rows="bits_rows",
        undrawn="no_bits",
        draw="score_vs_bits",
        describe="describe_score_vs_bits",
        wanted=_has_several_bits,
        limit=Limit(24, "cells", CELL),
    ),
    Figure(
        name="tuning",
        title="Score over the learning rate that was tried",
        section="tuning",
        tables=("tidy/tuning.parquet",),
        module=f"{HERE}.tuning_figures",
        rows="tuning_rows",
        draw="tuning",
        describe="describe_tuning",
        wanted=_tunes_the_rate,
        limit=Limit(60, "cells", CELL),
    ),
    Figure(
        name="learning_curves",
        title="Learning curves",
        section="curves",
        tables=("tidy/history.parquet",),
        module=f"{HERE}.curve_figures",
        undrawn="no_curves",
        draw="learning_curves",
        describe="describe_learning_curves",
        wanted=_has_several_epochs,
        limit=Limit(12, "cells", ("rank", *LINE)),
    ),
    Figure(
        name="ranks",
        title="Ranks by layer, matrix and step",
        section="ranks",
        tables=("tidy/ranks.parquet",),
        module=f"{HERE}.rank_figures",
        rows="rank_rows",
        draw="ranks",
        describe="describe_ranks",
        wanted=lambda study: any(spec.uneven_ranks for spec in _specs(study)),
    ),
    Figure(
        name="pareto",
        title="Score against its price",
        section="cost",
        tables=(RUNS,),
        module=f"{HERE}.cost_figures",
        rows="pareto_rows",
        draw="pareto",
        describe="describe_pareto",
        wanted=_has_several_cells,
        limit=Limit(40, "cells", CELL),
    ),
    Figure(
        name="cost",
        title="Disk, memory and time",
        section="cost",
        tables=("tables/cost.csv",),
        module=f"{HERE}.cost_figures",
        undrawn="no_cost",
        draw="cost",
        describe="describe_cost",
        limit=Limit(40, "cells", CELL),
    ),
    Figure(
        name="crosscheck",
        title="Our LoRA beside PEFT and loralib",
        section="crosscheck",
        tables=("tidy/crosscheck.parquet",),
        module=f"{HERE}.crosscheck_figures",
        rows="crosscheck_rows",
        draw="crosscheck",
        describe="describe_crosscheck",
        wanted=lambda study: bool(study.cells()),
    ),
    Figure(
        name="spectra",
        title="Singular values of the update",
        section="updates",
        tables=("tidy/spectra.parquet",),
        module=f"{HERE}.section7_figures",
        rows="spectra_rows",
        draw="spectra",
        describe="describe_spectra",
        wanted=_has_lora,
    ),
    Figure(
        name="stable_rank",
        title="Stable rank of the update",
        section="updates",
        tables=("tidy/amplification.parquet",),
        module=f"{HERE}.section7_figures",
        rows="stable_rank_rows",
        draw="stable_rank",
        describe="describe_stable_rank",
        wanted=_has_lora,
    ),
    Figure(
        name="amplification",
        title="The paper's Table 7 per layer",
        section="updates",
        tables=("tidy/amplification.parquet",),
        module=f"{HERE}.section7_figures",
        rows="amplification_rows",
        draw="amplification",
        describe="describe_amplification",
        wanted=_has_lora,
    ),
    Figure(
        name="intruders",
        title="Intruder dimensions",
        section="updates",
        tables=("tidy/intruders.parquet",),
        module=f"{HERE}.section7_figures",
        rows="intruder_rows",
        draw="intruders",
        describe="describe_intruders",
        wanted=_has_lora,
    ),
    Figure(
        name="subspace_ranks",
        title="Directions of two ranks",
        section="updates",
        tables=("tidy/subspaces.parquet",),
        module=f"{HERE}.section7_figures",
        rows="rank_pair_rows",
        draw="subspaces",
        describe="describe_subspaces",
        wanted=lambda study: bool(rank_pairs(study)),
    ),
    Figure(
        name="subspace_seeds",
        title="Directions of two seeds",
        section="updates",
        tables=("tidy/subspaces.parquet",),
        module=f"{HERE}.section7_figures",
        rows="seed_pair_rows",
        draw="subspaces",
        describe="describe_subspaces",
        wanted=lambda study: bool(seed_pairs(study)),
    ),
    Figure(
        name="subspace_weights",
        title="Directions of the update and of W",
        section="updates",
        tables=("tidy/subspaces.parquet",),
        module=f"{HERE}.section7_figures",
        rows="weight_pair_rows",
        draw="subspaces",
        describe="describe_subspaces",
        wanted=_has_lora,
    ),
)

FIGURES = {figure.name: figure for figure in _FIGURES}
"""All figures by name; within a section of the page they stand in this order."""


def study_figures(study: Study) -> dict[str, Figure]:
    """Return the figures that a study has something for."""
    return {name: figure for name, figure in FIGURES.items() if figure.wanted(study)}


def figure_modules(study: Study) -> list[str]:
    """Return the modules behind a study's figures: `code_digest` must be told of them."""
    return sorted({figure.module for figure in study_figures(study).values()})
