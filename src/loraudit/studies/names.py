"""The names of runs, their parts, and sets of target matrices."""

from loraudit.studies.spec import RunSpec


def targets_name(spec: RunSpec) -> str:
    """Return a run's targets as "q+v", as "all" if they are all that the model has, "" if none."""
    if spec.adapter is None:
        return ""
    names = spec.adapter.targets
    return "all" if set(names) == set(spec.model.modules) else "+".join(names)


def run_id(spec: RunSpec, label: str = "") -> str:
    """Name a run: <task>/<model>/<method>[-r<rank>-<targets>][-<label>]/s<seed>."""
    variant = "-".join(filter(None, [spec.method, adapter_name(spec), label]))
    return f"{spec.task.name}/{spec.model.name}/{variant}/s{spec.seed}"


def cell_id(spec: RunSpec, label: str = "") -> str:
    """Name a run's cross-check: <task>/<model>/r<rank>-<targets>[-<label>]."""
    variant = "-".join(filter(None, [adapter_name(spec), label]))
    return f"{spec.task.name}/{spec.model.name}/{variant}"


def variant_of(run: str) -> str:
    """Return the variant in a run's name: method, rank, targets and label."""
    return run.split("/")[2]


def adapter_name(spec: RunSpec) -> str:
    """Return "r<rank>-<targets>", or "" for a run without an adapter."""
    return f"r{spec.adapter.rank}-{targets_name(spec)}" if spec.adapter else ""


def score_name(metric: str, split: str) -> str:
    """Name a metric of a split: accuracy is of validation, accuracy_selection of the selection."""
    return metric if split == "validation" else f"{metric}_{split}"
