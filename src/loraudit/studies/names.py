"""The names of runs, variants and target sets."""

from loraudit.studies.spec import RunSpec


def targets_name(spec: RunSpec) -> str:
    """Return "q+v" and so on, or "all" for every matrix that the model has."""
    names = spec.targets or ()
    return "all" if set(names) == set(spec.model.modules) else "+".join(names)


def run_id(spec: RunSpec, tag: str = "") -> str:
    """Name a run: <task>/<model>/<method>[-r<rank>-<targets>][-<tag>]/s<seed>."""
    parts = [spec.method, *_cell_parts(spec), tag]
    variant = "-".join(filter(None, parts))
    return f"{spec.task.name}/{spec.model.name}/{variant}/s{spec.seed}"


def variant_of(run: str) -> str:
    """Return the variant in a run's name: method, rank, targets and label."""
    return run.split("/")[2]


def _cell_parts(spec: RunSpec) -> list[str]:
    return [f"r{spec.rank}", targets_name(spec)] if spec.adapter else []
