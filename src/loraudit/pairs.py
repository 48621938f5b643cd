"""Which saved adapters section 7 looks at. No torch: the Snakefile asks too.

A group is the in-house LoRA runs that differ in rank and seed only. To keep tables and time
bounded, each group gives at most one pair of ranks, one pair of seeds, and one run to set beside W.
"""

from loraudit.study import Run, Study, targets_name


def lora_runs(study: Study) -> list[Run]:
    """Return the in-house LoRA runs."""
    return [run for run in study.runs if run.spec.method == "lora"]


def rank_pairs(study: Study) -> list[tuple[Run, Run]]:
    """Return per group its smallest and largest rank at the first seed that both have."""
    pairs = []
    for group in _groups(study):
        low, high = group[0].spec.rank, group[-1].spec.rank
        small, large = (
            {run.spec.seed: run for run in group if run.spec.rank == rank} for rank in (low, high)
        )
        shared = sorted(set(small) & set(large))
        if low < high and shared:
            pairs.append((small[shared[0]], large[shared[0]]))
    return pairs


def seed_pairs(study: Study) -> list[tuple[Run, Run]]:
    """Return per group the first two seeds of its largest rank."""
    largest = [[run for run in g if run.spec.rank == g[-1].spec.rank] for g in _groups(study)]
    return [(group[0], group[1]) for group in largest if len(group) > 1]


def weight_runs(study: Study) -> list[Run]:
    """Return per group the first seed of its largest rank."""
    return [
        next(run for run in group if run.spec.rank == group[-1].spec.rank)
        for group in _groups(study)
    ]


def _groups(study: Study) -> list[list[Run]]:
    """Return the groups, each ordered by rank and seed."""
    groups: dict[tuple, list[Run]] = {}
    for run in lora_runs(study):
        spec = run.spec
        key = (spec.task.name, spec.model.name, targets_name(spec), run.label)
        groups.setdefault(key, []).append(run)
    return [sorted(g, key=lambda run: (run.spec.rank, run.spec.seed)) for g in groups.values()]
