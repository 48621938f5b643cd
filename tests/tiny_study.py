"""A small study as planned, of four runs."""

from loraudit.studies.study import Run, Study
from tiny import make_spec


def small_study(**changes) -> Study:
    runs = [
        Run(
            id=f"t/m/{method}/s{seed}",
            label="",
            spec=make_spec(method=method, seed=seed, **fields),
        )
        for method, fields in (("lora", {}), ("full", {"learning_rate": 1e-5}))
        for seed in (0, 1)
    ]
    return Study(**{"name": "small", "question": "Why?", "runs": tuple(runs), **changes})
