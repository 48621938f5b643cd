"""What a study's DAG writes: its tables, and its figures with the table behind each.

No pandas: the Snakefile asks too.
"""

from loraudit.pairs import lora_runs, rank_pairs, seed_pairs
from loraudit.study import Study

TABLES = ("summary", "verdicts", "switches", "pairs", "cost")

FIGURE_TABLES = {
    "verdicts": "tables/verdicts.csv",
    "switches": "tables/switches.csv",
    "score_vs_rank": "tidy/runs.parquet",
    "score_vs_parameters": "tidy/runs.parquet",
    "score_vs_rows": "tidy/runs.parquet",
    "learning_curves": "tidy/history.parquet",
    "cost": "tables/cost.csv",
    "crosscheck": "tidy/crosscheck.parquet",
    "spectra": "tidy/spectra.parquet",
    "stable_rank": "tidy/amplification.parquet",
    "amplification": "tidy/amplification.parquet",
    "subspace_ranks": "tidy/subspaces.parquet",
    "subspace_seeds": "tidy/subspaces.parquet",
    "subspace_weights": "tidy/subspaces.parquet",
}
"""Each figure, and the table behind it."""


def figure_tables(study: Study) -> dict[str, str]:
    """Return the figures that a study has something for, each with the table behind it."""
    cells = study.cells()
    specs = [run.spec for run in study.runs]
    tasks = {spec.task.name for spec in specs}
    updates = bool(lora_runs(study))
    empty = {
        "verdicts": not study.compare,
        "switches": not study.switches,
        "score_vs_rank": len({spec.rank for spec in cells.values()}) < 2,
        "score_vs_parameters": len({(s.method, s.rank, s.targets) for s in specs}) < 2,
        "score_vs_rows": len({(s.task.name, s.train_rows) for s in specs}) == len(tasks),
        "crosscheck": not cells,
        "spectra": not updates,
        "stable_rank": not updates,
        "amplification": not updates,
        "subspace_ranks": not rank_pairs(study),
        "subspace_seeds": not seed_pairs(study),
        "subspace_weights": not updates,
    }
    return {name: table for name, table in FIGURE_TABLES.items() if not empty.get(name)}
