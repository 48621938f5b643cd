"""What a study makes: its tables, and its figures with the tables behind each.

Imports neither torch nor matplotlib: the Snakefile asks.
"""

from loraudit.analysis.adapter_pairs import lora_runs, rank_pairs, seed_pairs
from loraudit.studies.names import adapter_name
from loraudit.studies.study import Study

TABLES = ("summary", "verdicts", "switches", "pairs", "cost")

FIGURES = {
    "verdicts": ["tables/verdicts.csv"],
    "switches": ["tables/switches.csv"],
    "score_vs_rank": ["tidy/runs.parquet", "tables/verdicts.csv"],
    "score_vs_parameters": ["tidy/runs.parquet", "tables/verdicts.csv"],
    "score_vs_rows": ["tidy/runs.parquet", "tables/verdicts.csv"],
    "score_vs_bits": ["tidy/runs.parquet"],
    "learning_curves": ["tidy/history.parquet"],
    "ranks": ["tidy/ranks.parquet"],
    "cost": ["tables/cost.csv"],
    "pareto": ["tidy/runs.parquet"],
    "crosscheck": ["tidy/crosscheck.parquet"],
    "spectra": ["tidy/spectra.parquet"],
    "stable_rank": ["tidy/amplification.parquet"],
    "amplification": ["tidy/amplification.parquet"],
    "subspace_ranks": ["tidy/subspaces.parquet"],
    "subspace_seeds": ["tidy/subspaces.parquet"],
    "subspace_weights": ["tidy/subspaces.parquet"],
}
"""The tables that each figure is drawn from, below results/<study>, in `gallery`'s order."""

UPDATES = [
    *("spectra", "stable_rank", "amplification"),
    *("subspace_ranks", "subspace_seeds", "subspace_weights"),
]
"""The figures of section 7, which need every saved adapter."""


def study_figures(study: Study) -> dict[str, list[str]]:
    """Return FIGURES without those that the study has nothing for."""
    specs = [run.spec for run in study.runs]
    ranks = {spec.adapter.rank for spec in specs if spec.adapter}
    kinds = {(spec.method, adapter_name(spec)) for spec in specs}
    tasks = {spec.task.name for spec in specs}
    wanted = {
        "verdicts": bool(study.compare),
        "switches": bool(study.switches),
        "score_vs_rank": len(ranks) > 1,
        "score_vs_parameters": len(kinds) > 1,
        "score_vs_rows": len({(spec.task.name, spec.train_rows) for spec in specs}) > len(tasks),
        "score_vs_bits": len({spec.base_bits for spec in specs}) > 1,
        "ranks": any(spec.uneven_ranks for spec in specs),
        "pareto": len({run.id.rpartition("/")[0] for run in study.runs}) > 1,
        "crosscheck": bool(study.cells()),
        **dict.fromkeys(UPDATES, bool(lora_runs(study))),
        "subspace_ranks": bool(rank_pairs(study)),
        "subspace_seeds": bool(seed_pairs(study)),
    }
    return {name: tables for name, tables in FIGURES.items() if wanted.get(name, True)}
