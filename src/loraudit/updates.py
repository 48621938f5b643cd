"""Section 7's tables, from saved adapters and the weights they were trained beside.

- spectra: a row per singular value of Delta W of every adapter, layer and matrix.
- amplification: a row per adapter, layer and matrix: norms, stable rank, and Table 7's numbers.
- subspaces: phi (eq. 4) of pairs: "ranks" (figure 3), "seeds" (figure 4), "weights" (figure 8:
  Delta W beside W). Rows with `control` are random directions in the same numbers.

The first two grow with the runs: per layer and matrix, r rows and one. `subspaces` has at most one
pair of each kind per target set and label (`pairs.py`), i and j up to `most`, and one control per
matrix: with most = 8, 64 (layers + 1) rows per matrix and pair.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraudit.errors import UserError
from loraudit.pairs import lora_runs, rank_pairs, seed_pairs, weight_runs
from loraudit.peft_bridge import CONFIG, WEIGHTS, read_folder
from loraudit.spec import MATRICES, derive_seed
from loraudit.study import Run, Study, targets_name
from loraudit.subspace import (
    SVD,
    Side,
    amplification,
    random_directions,
    similarity,
    stable_rank,
    svd,
    update_svd,
)

TABLES = ("spectra", "amplification", "subspaces")

CHECKPOINT = "model.safetensors"
MOST = 8
"""Default of the largest i and j of phi's tables."""
WEIGHT_SHARE = 0.1
"""Figure 8 goes up to the first tenth of W's singular directions."""
CONTROL_SEED = 0
PLAIN = {"use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
PLAIN |= {"rank_pattern": {}, "alpha_pattern": {}}
"""Settings of an adapter_config.json under which Delta W is (alpha/r) B A for every layer."""
UNMOVED = {"stable_rank": float("nan"), "update_norm": 0.0, "amplification": float("nan")}


class Update(NamedTuple):
    """One layer's adapter: its module name in the model, A (r, d_in), B (d_out, r), and Delta W."""

    name: str
    a: Tensor
    b: Tensor
    delta: SVD


Place = tuple[int, str]
"""Layer number, and matrix name: q k v o up down."""


def read_updates(folder: Path, modules: Mapping[str, str]) -> dict[Place, Update]:
    """Read an adapter in PEFT's format.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        modules: a model's matrix names, as in models.yaml.

    Returns:
        The layers' updates, ordered by layer and matrix.

    Raises:
        UserError: no adapter, one that is not plain LoRA, or layers that `modules` does not name.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no adapter here ({name} is missing)")
    try:
        config, state = read_folder(folder)
    except (KeyError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: not an adapter: {error}") from None
    for key, legal in PLAIN.items():
        if getattr(config, key) != legal:
            value = getattr(config, key)
            raise UserError(f"{folder / CONFIG}: {key} = {value!r} (legal here: {legal!r})")
    names = [key.removesuffix(".lora_A") for key in state if key.endswith(".lora_A")]
    if not names:
        raise UserError(f"{folder / WEIGHTS}: no lora_A in it")
    found = {}
    for name in names:
        a, b = state[f"{name}.lora_A"], state.get(f"{name}.lora_B")
        if b is None or a.shape[0] != config.r:
            problem = "no lora_B" if b is None else f"rank {a.shape[0]}, the config says {config.r}"
            raise UserError(f"{folder / WEIGHTS}: {name}: {problem}")
        try:
            delta = update_svd(a, b, config.lora_alpha / config.r)
        except ValueError as error:
            raise UserError(f"{folder / WEIGHTS}: {name}: {error}") from None
        found[_place(name, modules)] = Update(name, a, b, delta)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], MATRICES.index(item[0][1]))))


def _place(name: str, modules: Mapping[str, str]) -> Place:
    """Return layer number and matrix of a module."""
    for matrix, module in modules.items():
        pattern = re.escape(module).replace(r"\*", r"(\d+)")
        if hit := re.search(rf"(?:^|\.){pattern}$", name):
            return int(hit[1]), matrix
    raise UserError(f"layer {name!r} is none of the model's (legal: {', '.join(modules.values())})")


class BaseWeights:
    """A checkpoint's weight matrices; each is decomposed once, its leading directions are kept."""

    def __init__(self, folder: Path, most_rank: int):
        """Open <folder>/model.safetensors; `most_rank` directions or a tenth of all are kept."""
        self.path = Path(folder) / CHECKPOINT
        if not self.path.is_file():
            raise UserError(f"{folder}: no model here ({CHECKPOINT} is missing)")
        try:
            self.file = safe_open(self.path, "pt")
        except SafetensorError as error:
            raise UserError(f"{self.path}: not a checkpoint: {error}") from None
        self.keys = list(self.file.keys())
        self.most_rank = most_rank
        self.kept: dict[str, SVD] = {}

    def weight(self, update: Update) -> Tensor:
        """Return the W that an update is added to.

        Encoder and classifier checkpoints name a layer differently: with the model's own prefix
        ("bert.encoder...") or without ("encoder..."). Either is found, whichever the adapter has.

        Raises:
            UserError: no such weight, more than one, or one of another shape than B A.
        """
        name = f"{update.name}.weight"
        hits = [key for key in self.keys if f".{name}".endswith(f".{key}")]
        hits += [key for key in self.keys if key.endswith(f".{name}")]
        if len(hits) != 1:
            found = " and ".join(hits) or "none"
            raise UserError(f"{self.path}: expected one weight for {name!r}, found {found}")
        weight = self.file.get_tensor(hits[0])
        wanted = (update.b.shape[0], update.a.shape[1])
        if tuple(weight.shape) != wanted:
            shape = tuple(weight.shape)
            raise UserError(f"{self.path}: {hits[0]} has shape {shape}, the adapter {wanted}")
        return weight

    def directions(self, update: Update) -> SVD:
        """Return the leading singular directions of the W that an update is added to."""
        if update.name not in self.kept:
            weight = self.weight(update)
            count = max(self.most_rank, MOST, _tenth(*weight.shape))
            self.kept[update.name] = svd(weight).leading(count)
        return self.kept[update.name]


def study_tables(
    study: Study, results: Path, models: Path, side: Side = "right", most: int = MOST
) -> dict[str, pd.DataFrame]:
    """Make the three tables of a study.

    Args:
        results: the study's folder.
        models: the folder with one fetched model per name.
        side, most: which singular vectors `subspaces` compares, and its largest i and j.
    """
    runs = lora_runs(study)
    largest = max(run.spec.rank for run in runs)
    bases = {
        name: BaseWeights(models / name, largest)
        for name in dict.fromkeys(run.spec.model.name for run in runs)
    }

    def updates(run: Run) -> dict[Place, Update]:
        return read_updates(results / "runs" / run.id / "adapter", run.spec.model.modules)

    tables: dict[str, list[dict]] = {name: [] for name in TABLES}
    for run in runs:
        found = updates(run)
        tables["spectra"] += spectra_rows(_identity(run), found)
        base = bases[run.spec.model.name]
        tables["amplification"] += amplification_rows(_identity(run), found, base)
    for name, pairs in (("ranks", rank_pairs(study)), ("seeds", seed_pairs(study))):
        for one, two in pairs:
            pair = _pair(name, one, f"r{two.spec.rank} s{two.spec.seed}")
            tables["subspaces"] += pair_rows(pair, updates(one), updates(two), side, most)
    for run in weight_runs(study):
        base = bases[run.spec.model.name]
        pair = _pair("weights", run, "W")
        tables["subspaces"] += weight_rows(pair, updates(run), base, side, most)
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def adapter_tables(
    folder: Path, model: Path, modules: Mapping[str, str], side: Side = "right", most: int = MOST
) -> dict[str, pd.DataFrame]:
    """Make the three tables of an adapter alone, whose only pair is Delta W and W."""
    updates = read_updates(folder, modules)
    rank = max(update.a.shape[0] for update in updates.values())
    base = BaseWeights(model, rank)
    matrices = {matrix for _, matrix in updates}
    subject = {"task": folder.resolve().name, "model": model.resolve().name}
    targets = {"targets": "+".join(name for name in MATRICES if name in matrices), "label": ""}
    identity = {"run": str(folder), **subject, "rank": rank, **targets, "seed": None}
    pair = {**subject, **targets, "pair": "weights", "first": f"r{rank}", "second": "W"}
    return {
        "spectra": pd.DataFrame(spectra_rows(identity, updates)),
        "amplification": pd.DataFrame(amplification_rows(identity, updates, base)),
        "subspaces": pd.DataFrame(weight_rows(pair, updates, base, side, most)),
    }


def _identity(run: Run) -> dict:
    spec = run.spec
    subject = {"run": run.id, "task": spec.task.name, "model": spec.model.name, "rank": spec.rank}
    return {**subject, "targets": targets_name(spec), "label": run.label, "seed": spec.seed}


def _pair(name: str, run: Run, second: str) -> dict:
    """Name a pair by the fields that both sides share, and its sides by rank and seed."""
    spec = run.spec
    subject = {"task": spec.task.name, "model": spec.model.name, "targets": targets_name(spec)}
    first = f"r{spec.rank} s{spec.seed}"
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
    """List stable rank and Table 7's numbers; an update of zero has no directions: NaN."""
    for (layer, matrix), update in updates.items():
        values = update.delta.values
        numbers = UNMOVED
        if values.max() > 0:
            source = _generator("amplification", layer, matrix)
            numbers = {"stable_rank": stable_rank(values)}
            numbers |= amplification(
                base.weight(update), update.delta, base.directions(update), source
            )
        yield {**identity, "layer": layer, "matrix": matrix, **numbers}


def pair_rows(
    identity: dict, one: dict[Place, Update], two: dict[Place, Update], side: Side, most: int
) -> Iterator[dict]:
    """List phi of two adapters' factors: right directions of A, or left ones of B."""
    for place in (place for place in one if place in two):
        pair = [
            svd(update.a if side == "right" else update.b).side(side)
            for update in (one[place], two[place])
        ]
        counts = [range(1, min(most, directions.shape[1]) + 1) for directions in pair]
        yield from _with_control(identity, place, pair, counts, one)


def weight_rows(
    identity: dict, updates: dict[Place, Update], base: BaseWeights, side: Side, most: int
) -> Iterator[dict]:
    """List phi of Delta W (i up to `most`) and W (j up to a tenth of its directions, thinned).

    An update of zero has no directions and no rows.
    """
    for place, update in updates.items():
        if update.delta.values.max() > 0:
            pair = [update.delta.side(side), base.directions(update).side(side)]
            last = min(pair[1].shape[1], max(most, _tenth(update.b.shape[0], update.a.shape[1])))
            steps = torch.linspace(last / most, last, most).round().int().clamp(min=1)
            counts = [range(1, min(most, pair[0].shape[1]) + 1), steps.unique().tolist()]
            yield from _with_control(identity, place, pair, counts, updates)


def _with_control(
    identity: dict,
    place: Place,
    pair: list[Tensor],
    counts: list[Iterable[int]],
    all_places: Iterable[Place],
) -> Iterator[dict]:
    """List phi of a place's pair, and in the matrix's first layer of random directions too."""
    layer, matrix = place
    shown = {False: similarity(*pair)}
    if layer == min(number for number, name in all_places if name == matrix):
        source = _generator("subspaces", identity["pair"], matrix)
        drawn = [random_directions(*directions.shape, source) for directions in pair]
        shown[True] = similarity(*drawn)
    for control, grid in shown.items():
        for i in counts[0]:
            for j in counts[1]:
                where = {"layer": layer, "matrix": matrix, "control": control, "i": i, "j": j}
                yield {**identity, **where, "phi": grid[i - 1, j - 1].item()}


def _tenth(d_out: int, d_in: int) -> int:
    return round(WEIGHT_SHARE * min(d_out, d_in))


def _generator(*purpose: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(CONTROL_SEED, *purpose))
