"""Section 7's tables, from saved adapters and the weights they were trained beside.

- spectra: a row per singular value of Delta W of every adapter, layer and matrix.
- amplification: a row per adapter, layer and matrix: norms, stable rank, and Table 7's numbers.
- intruders: a row per run, layer and matrix: how many of the INTRUDERS_OF leading directions of
  W0 + Delta W are like none of W0's (`subspace.intruder_cosines`), for LoRA and for full
  fine-tuning whose weights were kept.
- subspaces: phi (eq. 4) of pairs: "ranks" (figure 3), "seeds" (figure 4), "weights" (figure 8:
  Delta W beside W). Rows with `control` are random directions in the same numbers. "ranks by seed"
  has phi(1, 1) of the same two ranks for all pairs of different seeds, where there are three.

The first three grow with the runs: per layer and matrix, r rows, one and one. `subspaces` has at
most three pairs of each kind per target set and label (`section7_runs.py`), i and j up to `most`,
and one control per matrix and pair: with most = 8, 64 (layers + 1) rows per matrix and pair; and
n (n - 1) rows for n seeds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from loraudit.analysis.saved_updates import (
    BaseWeights,
    Place,
    Update,
    read_updates,
    read_weights,
    tenth,
)
from loraudit.analysis.section7_runs import (
    full_runs,
    lora_runs,
    rank_pairs,
    rank_pairs_by_seed,
    seed_pairs,
    weight_runs,
)
from loraudit.analysis.subspace import (
    Side,
    amplification,
    intruder_cosines,
    random_directions,
    similarity,
    stable_rank,
    svd,
)
from loraudit.analysis.tidy_files import write_tidy
from loraudit.base.errors import UserError
from loraudit.base.progress import progress
from loraudit.studies.entries import MATRICES, Module
from loraudit.studies.names import targets_name
from loraudit.studies.spec import derive_seed
from loraudit.studies.study import Run, Study

TABLES = ("spectra", "amplification", "intruders", "subspaces")
MOST = 8
"""Default of the largest i and j of phi's tables."""
INTRUDERS_OF = 10
"""k, the leading directions among which intruders are counted (arXiv 2410.21228)."""
INTRUDER_BELOW = 0.5
"""epsilon, the largest cosine of an intruder with any direction of W0 (arXiv 2410.21228)."""
CONTROL_SEED = 0
PROJECTED = ("projected_update", "projected_weight", "projected_random")
UNDEFINED = dict.fromkeys(("stable_rank", "weight_norm", *PROJECTED, "amplification"), float("nan"))
UNMOVED = {**UNDEFINED, "update_norm": 0.0}
"""A row of `amplification` where the update is zero and so has no directions."""


def study_tables(
    study: Study, results: Path, models: Path, side: Side = "right", most: int = MOST
) -> dict[str, pd.DataFrame]:
    """Make the tables of a study.

    Args:
        results: the study's folder.
        models: the folder with one fetched model per name.
        side, most: which singular vectors `subspaces` compares, and its largest i and j.

    Raises:
        UserError: `most` below 1, or an adapter or a model that is missing or ill-formed.
    """
    _check_most(most)
    runs = lora_runs(study)
    largest = max(most, *(run.spec.lora.rank for run in runs))
    bases = {
        name: BaseWeights(models / name, largest)
        for name in dict.fromkeys(run.spec.model.name for run in runs)
    }

    def updates(run: Run) -> dict[Place, Update]:
        return read_updates(results / "runs" / run.id / "adapter", run.spec.model.modules)

    columns: dict[str, dict[str, list]] = {name: {} for name in TABLES}

    def add(name: str, rows: Iterable[dict]) -> None:
        """Keep rows column by column: a dict for every row of a large study is several times it."""
        for row in rows:
            for key, value in row.items():
                columns[name].setdefault(key, []).append(value)

    for run in progress(runs, len(runs), "measure updates"):
        layers = updates(run)
        add("spectra", spectra_rows(_identity(run), layers))
        base = bases[run.spec.model.name]
        add("amplification", amplification_rows(_identity(run), layers, base))
        add("intruders", intruder_rows(_of_method(run), layers, base))
    for run in full_runs(study):
        base = bases.setdefault(
            run.spec.model.name, BaseWeights(models / run.spec.model.name, largest)
        )
        folder = results / "runs" / run.id / "adapter"
        weights = read_weights(folder, run.spec.model.modules, base)
        add("intruders", full_intruder_rows(_of_method(run), weights, base))
    for name, pairs in (("ranks", rank_pairs(study)), ("seeds", seed_pairs(study))):
        for one, two in pairs:
            pair = _pair_identity(name, one, f"r{two.spec.lora.rank} s{two.spec.seed}")
            add("subspaces", pair_rows(pair, updates(one), updates(two), side, most))
    add("subspaces", by_seed_rows(rank_pairs_by_seed(study), updates, side))
    for run in weight_runs(study):
        base = bases[run.spec.model.name]
        pair = _pair_identity("weights", run, "W")
        add("subspaces", weight_rows(pair, updates(run), base, side, most))
    made = {name: pd.DataFrame(values) for name, values in columns.items()}
    return {**made, "subspaces": made["subspaces"].assign(side=side)}


def write_study_tables(
    study: Study, results: Path, models: Path, out: Path, side: Side = "right", most: int = MOST
) -> None:
    """Make the tables of a study (`study_tables`) and write them to out/tidy."""
    for name, table in study_tables(study, results, models, side, most).items():
        write_tidy(table, out / "tidy" / name)


def adapter_tables(
    folder: Path,
    model: Path,
    families: Iterable[Mapping[Any, Module]],
    side: Side = "right",
    most: int = MOST,
) -> dict[str, pd.DataFrame]:
    """Make the tables of an adapter alone, whose only pair is Delta W and W.

    Args:
        folder: the adapter in PEFT's format.
        model: the folder with the base model's model.safetensors.
        families: matrix names to try, as in models.yaml.
        side, most: as in `study_tables`.
    """
    _check_most(most)
    updates = read_updates(folder, *families)
    rank = max(update.a.shape[0] for update in updates.values())
    base = BaseWeights(model, max(most, rank))
    matrices = {matrix for _, matrix in updates}
    subject = {"task": folder.resolve().name, "model": model.resolve().name}
    targets = {"targets": "+".join(name for name in MATRICES if name in matrices), "label": ""}
    identity = {"run": str(folder), **subject, "rank": rank, **targets, "seed": None}
    pair = {**subject, **targets, "pair": "weights", "first": f"r{rank}", "second": "W"}
    return {
        "spectra": pd.DataFrame(spectra_rows(identity, updates)),
        "amplification": pd.DataFrame(amplification_rows(identity, updates, base)),
        "intruders": pd.DataFrame(intruder_rows({**identity, "method": "lora"}, updates, base)),
        "subspaces": pd.DataFrame(weight_rows(pair, updates, base, side, most)).assign(side=side),
    }


def _check_most(most: int) -> None:
    if most < 1:
        raise UserError(f"most: {most} (legal: 1 or more)")


def _identity(run: Run) -> dict:
    spec = run.spec
    subject = {"run": run.id, "task": spec.task.name, "model": spec.model.name}
    return {
        **subject,
        "rank": spec.adapter.rank if spec.adapter else None,
        "targets": targets_name(spec),
        "label": run.label,
        "seed": spec.seed,
    }


def _of_method(run: Run) -> dict:
    return {**_identity(run), "method": run.spec.method}


def _pair_identity(name: str, run: Run, second: str) -> dict:
    """Name a pair by the fields that both sides share, and its sides by rank and seed."""
    spec = run.spec
    subject = {"task": spec.task.name, "model": spec.model.name, "targets": targets_name(spec)}
    first = f"r{spec.lora.rank} s{spec.seed}"
    return {**subject, "label": run.label, "pair": name, "first": first, "second": second}


def spectra_rows(identity: dict, updates: dict[Place, Update]) -> Iterator[dict]:
    """List the singular values of Delta W, the largest with index 1."""
    for (layer, matrix), update in updates.items():
        for index, value in enumerate(update.delta.values.tolist(), 1):
            place = {"layer": layer, "matrix": matrix}
            yield {**identity, **place, "index": index, "singular_value": value}


def amplification_rows(
    identity: dict, updates: dict[Place, Update], base: BaseWeights
) -> Iterator[dict]:
    """List Table 7's numbers and the stable rank; NaN where an update is zero."""
    for (layer, matrix), update in updates.items():
        values, numbers = update.delta.values, UNMOVED
        if values.max() > 0:
            weight, directions = base.weight(update), base.directions(update)
            source = _generator("amplification", layer, matrix)
            numbers = amplification(weight, update.delta, directions, source)
            numbers["stable_rank"] = stable_rank(values)
        yield {**identity, "layer": layer, "matrix": matrix, **numbers}


def intruder_rows(
    identity: dict, updates: dict[Place, Update], base: BaseWeights
) -> Iterator[dict]:
    """Count the intruder dimensions of an adapter; an update of zero has none."""
    for place, update in updates.items():
        delta = (update.delta.left * update.delta.values) @ update.delta.right.mT
        trained = base.weight(update).double() + delta
        yield _intruders(identity, place, base.basis(update.layer, update.rows), trained)


def full_intruder_rows(
    identity: dict, weights: Iterable[tuple[Place, str, Tensor]], base: BaseWeights
) -> Iterator[dict]:
    """Count the intruder dimensions of trained matrices, ordered by layer and matrix."""
    rows = [_intruders(identity, place, base.basis(layer), w) for place, layer, w in weights]
    yield from sorted(rows, key=lambda row: (row["layer"], MATRICES.index(row["matrix"])))


def _intruders(identity: dict, place: Place, basis: Tensor, trained: Tensor) -> dict:
    cosines = intruder_cosines(basis, trained, INTRUDERS_OF)
    found = {"of": len(cosines), "below": INTRUDER_BELOW}
    found |= {"intruders": int((cosines < INTRUDER_BELOW).sum()), "cosine": cosines.min().item()}
    return {**identity, "layer": place[0], "matrix": place[1], **found}


def pair_rows(
    identity: dict, one: dict[Place, Update], two: dict[Place, Update], side: Side, most: int
) -> Iterator[dict]:
    """List phi of two adapters' factors: right directions of A, or left ones of B.

    An update of zero has learned no directions and has no rows.
    """
    one, two = _moved(one), _moved(two)
    for place in (place for place in one if place in two):
        sides = [
            svd(update.a if side == "right" else update.b).side(side)
            for update in (one[place], two[place])
        ]
        counts = [range(1, min(most, directions.shape[1]) + 1) for directions in sides]
        yield from _with_control(identity, place, sides, counts, one)


def by_seed_rows(
    pairs: Sequence[tuple[Run, Run]], updates: Callable[[Run], dict[Place, Update]], side: Side
) -> Iterator[dict]:
    """List phi(1, 1) of pairs of runs; each run's updates are read once."""
    runs = {run.id: run for pair in pairs for run in pair}
    directions = {name: first_directions(updates(run), side) for name, run in runs.items()}
    for one, two in pairs:
        pair = _pair_identity("ranks by seed", one, f"r{two.spec.lora.rank} s{two.spec.seed}")
        yield from first_rows(pair, directions[one.id], directions[two.id])


def first_directions(updates: dict[Place, Update], side: Side) -> dict[Place, Tensor]:
    """Return the first direction of each factor that moved, as `pair_rows` compares them."""
    return {
        place: svd(update.a if side == "right" else update.b).side(side)[:, :1].clone()
        for place, update in _moved(updates).items()
    }


def first_rows(
    identity: dict, one: dict[Place, Tensor], two: dict[Place, Tensor]
) -> Iterator[dict]:
    """List phi(1, 1) of two adapters, from their first directions."""
    for place in (place for place in one if place in two):
        where = {"layer": place[0], "matrix": place[1], "control": False, "i": 1, "j": 1}
        yield {**identity, **where, "phi": similarity(one[place], two[place])[0, 0].item()}


def weight_rows(
    identity: dict, updates: dict[Place, Update], base: BaseWeights, side: Side, most: int
) -> Iterator[dict]:
    """List phi of Delta W (i up to `most`) and W (j up to a tenth of its directions, thinned).

    An update of zero has no directions and no rows.
    """
    updates = _moved(updates)
    for place, update in updates.items():
        sides = [update.delta.side(side), base.directions(update).side(side)]
        last = min(sides[1].shape[1], max(most, tenth(update)))
        steps = torch.linspace(last / most, last, most).round().int().clamp(min=1)
        counts = [range(1, min(most, sides[0].shape[1]) + 1), steps.unique().tolist()]
        yield from _with_control(identity, place, sides, counts, updates)


def _moved(updates: dict[Place, Update]) -> dict[Place, Update]:
    return {place: update for place, update in updates.items() if update.delta.values.max() > 0}


def _with_control(
    identity: dict,
    place: Place,
    sides: list[Tensor],
    counts: Sequence[Iterable[int]],
    all_places: Iterable[Place],
) -> Iterator[dict]:
    """List phi of a place's pair, and in the matrix's first layer of random directions too."""
    layer, matrix = place
    grids = {False: similarity(*sides)}
    if layer == min(number for number, name in all_places if name == matrix):
        source = _generator("subspaces", identity["pair"], matrix)
        drawn = [random_directions(d, k, source) for d, k in (side.shape for side in sides)]
        grids[True] = similarity(*drawn)
    for control, grid in grids.items():
        for i in counts[0]:
            for j in counts[1]:
                where = {"layer": layer, "matrix": matrix, "control": control, "i": i, "j": j}
                yield {**identity, **where, "phi": grid[i - 1, j - 1].item()}


def _generator(*purpose: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(CONTROL_SEED, *purpose))
