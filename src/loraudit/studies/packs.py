"""Packs: which runs of a study may be trained together, their rows in one batch.

The runs of a pack share one task, one frozen model and one shape of a step, so that each step has
as many rows of each run. They differ in what is their own: the fields in `OWN`. How a pack is
trained is in training/packing.py.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraudit.base.errors import UserError
from loraudit.studies.entries import FusedPart
from loraudit.studies.spec import RunSpec
from loraudit.studies.training_code import training_code

if TYPE_CHECKING:  # no part of what trains a pack
    from loraudit.studies.study import Run

SCRIPT = Path("scripts/train_packed.py")
"""The program that trains a pack, in the repository's folder."""

METHOD = "lora"
"""The method that a pack can train."""

OWN = frozenset(
    {
        *("seed", "train_draw", "tuned", "head"),
        *("rank", "alpha", "targets", "init", "init_std", "lora_plus"),
        *("learning_rate", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm"),
        *("adam_beta1", "adam_beta2", "adam_epsilon"),
    }
)
"""Fields, by their names in a study file, in which the runs of a pack may differ."""


def packs_of(runs: "Iterable[Run]", most: int) -> "list[tuple[Run, ...]]":
    """Put runs that can be trained together into packs of at most `most`, in their order.

    Only packs of two or more are returned; all other runs are trained alone.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        if unfit(run.spec) is None:
            alike.setdefault(_shape(run.spec), []).append(run)
    cut = [
        tuple(group[i : i + most]) for group in alike.values() for i in range(0, len(group), most)
    ]
    return [pack for pack in cut if len(pack) > 1]


def require_packs(runs: "Sequence[Run]", most: int, processes: int) -> "list[tuple[Run, ...]]":
    """Return a study's packs, as `packs_of` does.

    Args:
        runs: of the study.
        most: runs of a pack, at least 1 (the key `runs_per_batch`); 1 makes no packs.
        processes: that the launch file starts for a run.

    Raises:
        UserError: packs are asked for and there can be none: a run takes several processes, or no
            two runs of the study can be trained together.
    """
    packs = packs_of(runs, most)
    if most == 1:
        return packs
    if processes > 1:
        raise UserError(
            f"config: runs_per_batch {most}: the launch file starts {processes} processes for a "
            "run, and a pack is trained by one (legal there: 1)"
        )
    if not packs:
        why = next(filter(None, (unfit(run.spec) for run in runs)), "each differs from the others")
        raise UserError(
            f"config: runs_per_batch {most}: no two runs of the study can be trained together "
            f"({runs[0].id if runs else 'no run'} and others: {why}; legal here: 1)"
        )
    return packs


def pack_note(packs: "Sequence[Sequence[Run]]", runs: int) -> str:
    """Say how many of a study's runs are trained in packs."""
    together = sum(map(len, packs))
    most, each = max(map(len, packs)), "each other run is trained alone"
    return f"{together} of {runs} runs are trained in packs of up to {most}; {each}"


def unfit(spec: RunSpec) -> str | None:
    """Return why a run can't be in any pack; None if it can."""
    adapter = spec.adapter
    if spec.method != METHOD or adapter is None:
        return f"method is {spec.method!r}, and a pack trains {METHOD!r} only"
    tuned = [field for field in (spec.tuned.fields if spec.tuned else ()) if field not in OWN]
    fused = [
        matrix
        for matrix in adapter.targets
        if isinstance(spec.model.modules.get(matrix), FusedPart)
    ]
    refused = {
        "the task predicts text": spec.task.causal_lm,
        f"base_bits is {spec.base_bits}": spec.base_bits is not None,
        f"compute is {spec.compute!r}": spec.compute == "compiled",
        f"recompute is {spec.recompute!r}": spec.recompute != "none",
        "it has a warm_start": spec.warm_start is not None,
        f"its targets {', '.join(fused)} are parts of a fused layer": bool(fused),
        f"its {', '.join(tuned)} is chosen by trials": bool(tuned),
    }
    return next((f"{why}: no pack supports this" for why, so in refused.items() if so), None)


def require_pack(specs: Sequence[RunSpec]) -> None:
    """Check that runs can be trained together.

    Raises:
        UserError: one can be in no pack, two are the same run, or two differ in a field that is not
            in `OWN`.
    """
    for number, spec in enumerate(specs):
        if reason := unfit(spec):
            raise UserError(f"pack: run {number} of {len(specs)} can't be trained in one: {reason}")
        first, own = specs[0].flat(), spec.flat()
        for field in (field for field in first if field not in OWN):
            if own[field] != first[field]:
                differ = f"{own[field]!r} in run {number} and {first[field]!r} in run 0"
                raise UserError(
                    f"pack: {field} is {differ}; the runs of a pack may differ in "
                    f"{', '.join(sorted(OWN))} only"
                )
        if spec in specs[:number]:
            raise UserError(f"pack: run {number} is the same as run {specs.index(spec)}")


def packed_code(script: Path = SCRIPT) -> str:
    """Return the digest of what trains a pack, as `training_code` does of a run alone."""
    return training_code(METHOD, script)


def _shape(spec: RunSpec) -> str:
    """Return what all runs of a pack have in common, as text."""
    shared = {key: value for key, value in spec.flat().items() if key not in OWN}
    return repr((spec.tuned is None, sorted(shared.items())))
