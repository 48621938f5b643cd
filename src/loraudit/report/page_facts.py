"""The sentences of a study's page, from its numbers."""

from collections.abc import Iterable

import pandas as pd

from loraudit.analysis.cells import (
    CELL,
    SUBJECT,
    all_choices,
    choices_of,
    first_choice,
    first_collapsed,
)
from loraudit.analysis.overlap import overlap_sentences
from loraudit.analysis.statistics import SIGNIFICANCE
from loraudit.report import units
from loraudit.report.alt_text import listed
from loraudit.report.claim_tables import claims_fact
from loraudit.report.formatting import (
    counted,
    in_points,
    label_words,
    of_which,
    p_value,
    points,
    shown_cell,
)
from loraudit.report.page_tables import alpha_text, value_text
from loraudit.report.tables import found_text, one_epoch
from loraudit.studies.advice import advice, is_untuned
from loraudit.studies.methods import METHODS
from loraudit.studies.names import targets_name
from loraudit.studies.scores import unit_of
from loraudit.studies.spec import RunSpec
from loraudit.studies.study import Study


def facts(study: Study, tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Write the page's sentences from the numbers, by section."""
    runs, checks = tables["runs"], tables["crosscheck"]
    subjects = runs[["model", "task", "rows_train", "rows_validation"]].drop_duplicates()
    subjects_text = "; ".join(
        f"{row.model} on {row.task}, {row.rows_train:,} training and {row.rows_validation:,} "
        "validation rows"
        for row in subjects.itertuples()
    )
    unlike = "" if len(tables["verdicts"]) else "Not set beside published numbers: "
    sentences = {
        "runs": _run_fact(study, runs, tables["missing"]),
        "comparison": f"{unlike}{subjects_text}.",
        "missing": "Section 7 needs every adapter: it is made when the study is complete.",
        "protocol": _protocol_fact(study),
        "scores": " ".join([_score_fact(study, runs), *sick_facts(runs, tables["missing"])]),
    }
    if len(tables.get("claims", ())):
        sentences["claims"] = claims_fact(tables["claims"], is_untuned(study))
    if len(tables["verdicts"]):
        sentences["verdicts"] = verdict_fact(study.reading, tables["verdicts"])
    if len(tables["switches"]):
        sentences["switches"] = _switch_fact(tables["switches"])
    sentences["scores"] += _family_fact(tables["pairs"])
    if len(checks):
        worst = checks.groupby("dtype", sort=False).difference.max()
        text = ", ".join(f"{value:.2g} in {name}" for name, value in worst.items())
        sentences["crosscheck"] = (
            f"{int(checks.ok.sum())} of {len(checks)} checks in {checks.cell.nunique()} cells are "
            f"within tolerance. Largest absolute difference: {text}."
        ) + _untwinned(study)
    if "amplification" in tables:
        sentences["updates"] = _update_fact(tables["amplification"])
    return sentences


CHOSEN_BY = {
    "selected": "The selected epoch is chosen on rows held out of the training split.",
    "best": "The best epoch is chosen on the validation split itself and so is optimistic.",
    "last": "The last epoch is not chosen.",
}


def _score_fact(study: Study, runs: pd.DataFrame) -> str:
    """Say how epochs and settings were chosen, how optimistic that is, and what is at the edge."""
    choices = all_choices(runs)
    said = ["n is the number of seeds, SD is over seeds (n - 1)."]
    if one_epoch(study):
        said.append("Every run has one epoch, so that none is chosen.")
    else:
        said += [f"{CHOSEN_BY[choice]}{_made_by(runs, choice)}" for choice in choices]
    fractions = runs[runs.metric.map(unit_of) == "points"] if "metric" in runs else runs
    if {"selected", "best"} <= set(choices) and len(fractions):
        gap = (fractions.best - fractions.selected).mean()
        said.append(f"Best is {points(gap)} points above selected on average: its optimism.")
    said += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in advice(study)]
    if edge := edge_fact(runs):
        said.append(edge)
    return " ".join(said)


def several_subjects(rows: pd.DataFrame) -> bool:
    """Tell whether rows are of more than one task and model, so that each has to name its own."""
    return len(rows[SUBJECT].drop_duplicates()) > 1


def edge_fact(runs: pd.DataFrame) -> str:
    """Count and name the cells whose chosen values lie at the edge; "" where none do."""
    at_edge = runs.get("at_edge", pd.Series("", runs.index)).astype(object).fillna("").astype(bool)
    if not at_edge.any():
        return ""
    cells, total = runs[at_edge].drop_duplicates(CELL), len(runs.drop_duplicates(CELL))
    names = listed((shown_cell(cell) for cell in cells.to_dict("records")), 12, "")
    return (
        f"The chosen values of {of_which(len(cells), total, 'cells')} lie at the edge of what was "
        f"tried, so that better ones may lie beyond: {names}."
    )


def _made_by(runs: pd.DataFrame, choice: str) -> str:
    """Say which tasks and models made a choice of an epoch, where not all did."""
    parts = runs.groupby(SUBJECT, sort=False)
    names = [f"{task} ({model})" for (task, model), part in parts if choice in choices_of(part)]
    return "" if len(names) == parts.ngroups else f" Only {', '.join(names)} made that choice."


def sick_facts(runs: pd.DataFrame, missing: pd.DataFrame) -> list[str]:
    """Count and name the runs that collapsed, that did not move, and that failed."""
    said, sick = [], first_collapsed(runs)
    if sick.any():
        said.append(
            f"{of_which(sick.sum(), len(runs), 'runs')} collapsed to a constant answer, and all "
            f"means include them: {listed(runs.run[sick], 6, '')}."
        )
    still = runs.unmoved > 0 if "unmoved" in runs else sick & False
    if still.any():
        said.append(
            f"{of_which(still.sum(), len(runs), 'runs')} have a matrix B that never left zero, so "
            "that a layer has no update, and all means include them: "
            f"{listed(runs.run[still], 6, '')}."
        )
    lost = missing[missing.what == "run"] if "known" in missing else pd.DataFrame({"known": []})
    failed = lost[lost.known.str.contains("error: ")] if len(lost) else lost
    if len(failed):
        said.append(
            f"{of_which(len(failed), len(runs) + len(lost), 'runs')} failed and are in no mean: "
            f"{listed(failed.name, 6, '')}."
        )
    return said


def machine_facts(counts: dict[str, int]) -> dict[str, str]:
    """Say on which processors the runs were made; more than one kind is said at the top too."""
    text = (
        "On another kind of processor the same specs give other bits, and for an unstable setting "
        "another result."
    )
    if len(counts) == 1:
        return {"provenance": f"All runs were made on {next(iter(counts))}. {text}"}
    names = "; ".join(f"{name}: {n} run{'' if n == 1 else 's'}" for name, n in counts.items())
    text = (
        f"The runs were made on {len(counts)} kinds of processor ({names}). {text} A difference "
        "between runs of different kinds may be the processors'."
    )
    return {"provenance": text, "processors": text} if counts else {}


def data_facts(study: Study, manifests: dict[str, dict], shared: pd.DataFrame) -> dict[str, str]:
    """Say what makes the scores mean less than they seem: at the page's top, and of the rows.

    Args:
        study: with what its files say of its tasks and models.
        manifests: those of the fetched tasks, by task.
        shared: what `overlap.overlaps` found in these.
    """
    cautions = [*study.cautions(), *overlap_sentences(study, shared)]
    odd = [f"{task}, {said}" for task, m in manifests.items() for said in m.get("remarks", ())]
    facts = {"cautions": ". ".join(cautions), "data": ". ".join(odd)}
    return {section: f"{text}." for section, text in facts.items() if text}


def _untwinned(study: Study) -> str:
    """Name the runs that PEFT alone has: they have nothing to be checked against."""
    names = dict.fromkeys(
        run.label for run in study.runs if run.spec.adapter and run.spec.adapter.peft
    )
    text = f" Not checked, because only PEFT has them: {', '.join(names)}."
    return text if names else ""


def _run_fact(study: Study, runs: pd.DataFrame, missing: pd.DataFrame) -> str:
    minutes = f"{runs.seconds.sum() / 60:.0f} minutes of run time in all"
    if missing.empty:
        return f"All {len(study.runs)} runs of the study are here, {minutes}."
    counts = missing.what.value_counts().items()
    lost = ", ".join(f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in counts)
    return (
        f"Incomplete: {len(runs)} of {len(study.runs)} runs are here, {minutes}; without a result: "
        f"{lost}. Every number below is of the runs that are here."
    )


def _protocol_fact(study: Study) -> str:
    """Say in words what is trained, from the runs' specs."""
    specs = [run.spec for run in study.runs]
    methods = ", ".join(METHODS[name].label for name in dict.fromkeys(s.method for s in specs))
    sentences = [f"Trained by {methods} on {_values(s.task.name for s in specs)}"]
    sentences[0] += f" from {_values(s.model.name for s in specs)}"
    adapters = [s.adapter for s in specs if s.adapter]
    if adapters:
        names = dict.fromkeys(targets_name(s) for s in specs if s.adapter)
        targets = " and on ".join("all linear layers" if n == "all" else n for n in names)
        ranks = _values(adapter.rank for adapter in adapters)
        sentences.append(f"Adapters of rank {ranks} on {targets} with alpha {alpha_text(specs)}")
    words = {"epochs": "epochs", "global_batch": "rows per step", "learning_rate": "learning rate"}
    words |= {"head": "head", "seed": "seeds"}
    settings = [f"{word} {_settings(specs, key)}" for key, word in words.items()]
    text = f"{'. '.join([*sentences, ', '.join(settings).capitalize()])}."
    sources = [f"Settings from: {study.protocol}"] if study.protocol else []
    if study.not_run:
        sources.append(f"What the source did and these runs do not: {' '.join(study.not_run)}")
    return " ".join([text, *sources])


def _settings(specs: list[RunSpec], field: str) -> str:
    """List a field's values as planned, of the runs that it means something to."""
    return _values(v for s in specs if (v := value_text(s, s.flat(), field)) is not None) or "none"


def _values(values: Iterable) -> str:
    return ", ".join(dict.fromkeys(f"{v:g}" if isinstance(v, float) else str(v) for v in values))


def _update_fact(updates: pd.DataFrame) -> str:
    """Give section 7's medians, for each set of adapted matrices at its largest rank."""
    sentences = []
    updates = updates.fillna({"label": ""})
    several = several_subjects(updates)
    sets = updates.groupby([*SUBJECT, "targets", "label"], sort=False)
    for (task, model, targets, label), group in sets:
        rank = group["rank"].max()
        group = group[group["rank"] == rank]
        parts = []
        for matrix, rows in group.groupby("matrix", sort=False):
            middle = rows[["stable_rank", "amplification"]].median()
            size = (rows.update_norm / rows.weight_norm).median()
            parts.append(
                f"{matrix}: stable rank {middle.stable_rank:.2f}, amplification "
                f"{middle.amplification:.2g}, norm {100 * size:.2g} % of W's"
            )
        adapters, layers = group.run.nunique(), group.layer.nunique()
        where = f"{task} ({model}), " if several else ""
        cell = where + " ".join(filter(None, [targets, label_words(label)]))
        sentences.append(
            f"{cell} at rank {rank} ({adapters} in-house adapter{'s' if adapters > 1 else ''}, "
            f"{layers} layer{'s' if layers > 1 else ''}): {'; '.join(parts)}."
        )
    return " ".join(["Medians over adapters and layers.", *sentences])


def verdict_fact(reading: str, verdicts: pd.DataFrame) -> str:
    """Count a table's verdicts, and say how they were reached."""
    counts = counted(verdicts.verdict)
    tested = verdicts[verdicts.verdict != "not comparable"]
    if tested.empty:
        return f"{counts[0].upper()}{counts[1:]}."
    another = int((tested.protocol == "another").sum())
    sick = int((tested.collapsed > 0).sum()) if "collapsed" in tested else 0
    also = f" {sick} of them are of cells with collapsed runs, as their rows say." if sick else ""
    margins = ", ".join(f"{100 * margin:g}" for margin in sorted(tested.margin.unique()))
    return (
        f"{counts[0].upper()}{counts[1:]}; {another} of the {len(tested)} that were tested are "
        f"about a number that was made under another protocol.{also} Margin: "
        f"{in_points(margins)}. A published ± of unstated meaning is read as {reading}. A "
        "published median is set beside the mean of the seeds, with a median's larger error. "
        "Differences are that mean minus the published number."
    )


def _switch_fact(effects: pd.DataFrame) -> str:
    largest = largest_switch(effects)
    if not largest:
        return "Too few common seeds to test a switch."
    epoch = first_choice(effects)
    shown = effects[(effects.epoch == epoch) & effects.p_holm.notna()]
    words = {"difference": "a difference", "equivalence": "equality within the margin"}
    found = [
        f"{count} show{'s' if count == 1 else ''} {words[asks]}"
        for asks, rows in shown.groupby("asks")
        for count in [int((rows.p_holm < SIGNIFICANCE).sum())]
    ]
    if len(shown) == 1:
        return f"{largest}. It is the only test at the {epoch} epoch."
    return (
        f"{largest}. Of the {len(shown)} tests at the {epoch} epoch, for whose number p and "
        f"interval are adjusted, {' and '.join(found)}."
    )


def largest_switch(effects: pd.DataFrame) -> str:
    """Name the switch with the largest tested effect; "" where none was tested."""
    epoch = first_choice(effects)
    shown = effects[(effects.epoch == epoch) & effects.p_holm.notna()]
    if shown.empty:
        return ""
    kinds = [unit_of(units.of_row(row)) for row in shown.itertuples()]
    row = shown.loc[shown[[kind == kinds[0] for kind in kinds]].difference.abs().idxmax()]
    metric = units.of_row(row)
    counts = row.get(["collapsed_base", "collapsed"])
    sick = 0 if counts is None else int(counts.sum())
    also = f", {sick} of the runs of base and switch collapsed" if sick else ""
    p = "p of equality" if row.asks == "equivalence" else "p"
    return (
        f"Largest effect: {row.switch} on {row.task} ({row.model}), "
        f"{units.difference_with_unit(metric, row.difference)} "
        f"{units.interval_or_why(metric, row.low, row.high, row.n)} "
        f"({epoch} epoch, n={row.n}, {found_text(row)}, Holm-adjusted {p} "
        f"{p_value(row.p_holm)}{also})"
    )


def _family_fact(pairs: pd.DataFrame) -> str:
    """Say which rows of the table of methods compared make the family of Holm's correction."""
    tested = pairs[pairs.p_holm.notna()] if len(pairs) else pairs
    if tested.empty:
        return ""
    outside = int((pairs[pairs.epoch == first_choice(pairs)].role != "test").sum())
    text = f" Twins and rows that repeat their twin's ({outside}) stay outside." if outside else ""
    tests = int(tested.family.max())
    if tests == 1:
        return f" Methods compared: one test of each epoch choice: nothing is adjusted.{text}"
    return (
        f" Methods compared: the {tests} tests of one epoch choice, over all tasks and models of "
        "the table, are the family for whose number p and interval are adjusted (Holm). An "
        "interval here covers these tests together, and may be wider or narrower than that of the "
        f"same difference in the answer or among the claims, which covers other tests.{text}"
    )
