"""Which saved adapters section 7 looks at. No torch: the Snakefile asks too.

A group is the in-house LoRA runs that differ in rank and seed only. To keep tables and time
bounded, each group gives at most `MOST_PAIRS` pairs of its smallest and largest rank, as many of
seeds, and one run to set beside W. Of the first direction alone, all pairs of seeds of the lowest
and the highest rank are compared.
"""

from itertools import combinations

from loraudit.studies.names import targets_name
from loraudit.studies.study import Run, Study

MOST_PAIRS = 3
"""Pairs of runs of each kind in a group: enough to see how far pairs of seeds differ."""


def lora_runs(study: Study) -> list[Run]:
    """Return the in-house LoRA runs on a base as loaded; not ALoRA's, whose layers differ in rank.

    On a base of few bits the update stands beside the packed weights, not beside W, and may start
    from their error.
    """
    return [r for r in study.runs if r.spec.method == "lora" and r.spec.base_bits is None]


def full_runs(study: Study) -> list[Run]:
    """Return the runs of full fine-tuning whose weights were kept, to set beside LoRA's."""
    return [run for run in study.runs if run.spec.method == "full_saved" and lora_runs(study)]


def measured_runs(study: Study) -> list[Run]:
    """Return all runs that section 7's tables read."""
    return lora_runs(study) + full_runs(study)


def rank_pairs(study: Study) -> list[tuple[Run, Run]]:
    """Return per group pairs of its smallest and largest rank, of different seeds if it has them.

    A draw of r rows starts with the draw of fewer, so equal seeds start in a shared direction: the
    similarity would be the start's. As far as the seeds allow, each run is in one pair only.
    """
    pairs = []
    for group in _groups(study):
        low, high = group[0].spec.lora.rank, group[-1].spec.lora.rank
        if low < high:
            small, large = ([r for r in group if r.spec.lora.rank == rank] for rank in (low, high))
            pairs += _of_other_seeds(small, large)[:MOST_PAIRS] or [(small[0], large[0])]
    return pairs


def _of_other_seeds(small: list[Run], large: list[Run]) -> list[tuple[Run, Run]]:
    """Pair runs of different seeds, first each large one with the small one after its own place."""
    found = [
        ((place - own - 1) % len(small), (one, two))
        for own, two in enumerate(large)
        for place, one in enumerate(small)
        if one.spec.seed != two.spec.seed
    ]
    return [pair for _, pair in sorted(found, key=lambda entry: entry[0])]


def rank_pairs_by_seed(study: Study) -> list[tuple[Run, Run]]:
    """Return per group each run of its smallest rank with each of its largest, of other seeds.

    They are those of the seeds that both ranks have; a group with fewer than three has no pairs,
    since nothing is left to compare if one of two seeds is left out.
    """
    pairs = []
    for group in _groups(study):
        low, high = group[0].spec.lora.rank, group[-1].spec.lora.rank
        small, large = ([r for r in group if r.spec.lora.rank == rank] for rank in (low, high))
        seeds = {run.spec.seed for run in small} & {run.spec.seed for run in large}
        if low < high and len(seeds) > 2:
            pairs += [
                (one, two)
                for one in small
                for two in large
                if {one.spec.seed, two.spec.seed} <= seeds and one.spec.seed != two.spec.seed
            ]
    return pairs


def seed_pairs(study: Study) -> list[tuple[Run, Run]]:
    """Return per group all pairs of the first three seeds of its largest rank."""
    largest = [
        [run for run in g if run.spec.lora.rank == g[-1].spec.lora.rank] for g in _groups(study)
    ]
    return [pair for group in largest for pair in combinations(group[:3], 2)]


def weight_runs(study: Study) -> list[Run]:
    """Return per group the first seed of its largest rank."""
    return [
        next(run for run in group if run.spec.lora.rank == group[-1].spec.lora.rank)
        for group in _groups(study)
    ]


def _groups(study: Study) -> list[list[Run]]:
    """Return the groups, each ordered by rank and seed."""
    groups: dict[tuple, list[Run]] = {}
    for run in lora_runs(study):
        spec = run.spec
        key = (spec.task.name, spec.model.name, targets_name(spec), run.label)
        groups.setdefault(key, []).append(run)
    return [sorted(g, key=lambda run: (run.spec.lora.rank, run.spec.seed)) for g in groups.values()]
