"""What a study's author should know before its runs are trained."""

from loraudit.studies.names import variant_of
from loraudit.studies.study import Study

OFFERS = "alpha: rank, alpha: {times_rank: 2} or alpha: {times_sqrt_rank: 4}"


def advice(study: Study) -> list[str]:
    """Return a sentence for each thing that a study may not mean."""
    return [*_fixed_alpha(study), *_untuned(study)]


def is_untuned(study: Study) -> bool:
    """Tell whether no setting of a study was chosen on held-out rows, by itself or by another."""
    return not (study.settings_from or study.tuning)


def _fixed_alpha(study: Study) -> list[str]:
    """Say where ranks are compared and alpha is the same at all of them."""
    ranks: dict[float, set[int]] = {}
    where = ""
    for run in study.runs:
        if not run.spec.adapter:
            continue
        if run.spec.tuned and "alpha" in run.spec.tuned.fields:
            where = "where it is not tuned, "
        else:
            ranks.setdefault(run.spec.adapter.alpha, set()).add(run.spec.adapter.rank)
    said = []
    for alpha, found in ranks.items():
        if len(found) > 1 and len(ranks) == 1:
            low, high = min(found), max(found)
            said.append(
                f"{where}alpha is {alpha:g} at every rank, so that the scaling alpha / r falls "
                f"from {alpha / low:g} at rank {low} to {alpha / high:g} at rank {high}; "
                f"to compare ranks alone, set {OFFERS}"
            )
    return said


def _untuned(study: Study) -> list[str]:
    """Say which methods were given their settings without a choice.

    A method of which other cells are tuned is named by the variants that are not.
    """
    tuned = {run.spec.method for run in study.runs if run.spec.tuned}
    untuned = dict.fromkeys(
        variant_of(run.id) if run.spec.method in tuned else run.spec.facts.label
        for run in study.runs
        if not run.spec.tuned
    )
    if not untuned:
        return []
    if study.settings_from:
        return [
            f"settings as the study {study.settings_from} chose them, on rows held out of the "
            "training split and with other seeds than are reported here"
        ]
    if study.tuning:
        return [f"untuned, beside cells that are tuned: {', '.join(untuned)}"]
    return [
        "untuned: all settings are as the study says, none was chosen on held-out rows, so that a "
        "difference between methods may be one between their settings"
    ]
