"""Updates as saved: a LoRA adapter by layer and matrix, and the weights that it is added to."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraudit.adapters.peft_folder import WEIGHTS, alpha_of, rank_of, read_parts
from loraudit.analysis.subspace import SVD, svd, update_svd
from loraudit.base.errors import UserError
from loraudit.base.files import read_json
from loraudit.studies.entries import MATRICES, Module, Rows, adapter_pattern, place_of

CHECKPOINT = "model.safetensors"
SAVED = "full_saved.safetensors"
WEIGHT_SHARE = 0.1
"""Figure 8 goes up to the first tenth of W's singular directions."""


class Update(NamedTuple):
    """One matrix's adapter: its name in the model, A (r, d_in), B (d_out, r), and Delta W.

    If the matrix is a part of a fused layer, `name` ends in the matrix, and `rows` are its outputs
    of the layer (adapters/parts.py).
    """

    name: str
    a: Tensor
    b: Tensor
    delta: SVD
    rows: Rows | None = None

    @property
    def layer(self) -> str:
        """The name of the linear layer."""
        return self.name if self.rows is None else self.name.rpartition(".")[0]


Place = tuple[int, str]
"""Layer number, and matrix name: q k v o gate up down."""


def read_updates(folder: Path, *modules: Mapping[Any, Module]) -> dict[Place, Update]:
    """Read an adapter in PEFT's format.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        modules: the model's matrix names as in models.yaml; of several, the first that fit.

    Returns:
        The layers' updates, ordered by layer and matrix.

    Raises:
        UserError: no adapter, one that is not plain LoRA, or layers that `modules` does not name.
    """
    config, state, layouts = read_parts(folder)
    parts = {f"{n}.{p.matrix}": p for n, layout in layouts.items() for p in layout.parts}
    names = [key.removesuffix(".lora_A") for key in state if key.endswith(".lora_A")]
    places = _places(names, modules)
    updates = {}
    for name in names:
        a, b = state[f"{name}.lora_A"], state[f"{name}.lora_B"]
        part = parts.get(name)
        layer = name.rpartition(".")[0] if part else name
        rank, actual = rank_of(config, layer), a.shape[0]
        if part:  # the config's rank is that of all parts together
            actual = sum(p.rank for p in layouts[layer].parts)
        if actual != rank:
            problem = f"rank {actual}, the config says {rank}"
            raise UserError(f"{folder / WEIGHTS}: {name}: {problem}")
        delta = update_svd(a, b, alpha_of(config, layer) / rank)
        updates[places[name]] = Update(name, a, b, delta, part.rows if part else None)
    return dict(sorted(updates.items(), key=lambda item: (item[0][0], MATRICES.index(item[0][1]))))


def _places(names: list[str], families: Iterable[Mapping[Any, Module]]) -> dict[str, Place]:
    """Return each layer's place by the first family of module names that has them all."""
    for modules in families:
        places = {name: place for name in names if (place := place_of(name, modules))}
        if len(places) == len(names):
            return places
    unknown = next(name for name in names if name not in places)
    legal = ", ".join(adapter_pattern(matrix, module) for matrix, module in modules.items())
    raise UserError(f"adapter: layer {unknown!r} is none of the model's (legal: {legal})")


class BaseWeights:
    """A checkpoint's weight matrices; each is decomposed once, its leading directions are kept."""

    def __init__(self, folder: Path, count: int):
        """Open <folder>/model.safetensors; `count` directions, or a tenth of all, are kept."""
        self.path = Path(folder) / CHECKPOINT
        if not self.path.is_file():
            raise UserError(f"{folder}: no model here ({CHECKPOINT} is missing)")
        try:
            self.file = safe_open(self.path, "pt")
        except SafetensorError as error:
            raise UserError(f"{self.path}: not a checkpoint: {error}") from None
        self.keys = list(self.file.keys())
        self.transposed = _stores_transposed(Path(folder))
        self.count = count
        self.kept: dict[str, SVD] = {}
        self.bases: dict[str, Tensor] = {}

    def weight(self, update: Update) -> Tensor:
        """Return the W that an update is added to.

        Encoder and classifier checkpoints name a layer differently: with the model's own prefix
        ("bert.encoder...") or without ("encoder..."). Either is found, whichever the adapter has.

        Raises:
            UserError: no such weight, more than one, or one of another shape than B A.
        """
        weight = self._matrix(update.layer, update.rows)
        wanted = (update.b.shape[0], update.a.shape[1])
        if tuple(weight.shape) != wanted:
            shape = tuple(weight.shape)
            raise UserError(
                f"{self.path}: {update.layer}.weight has shape {shape}, the adapter {wanted}"
            )
        return weight

    def _matrix(self, layer: str, rows: Rows | None = None) -> Tensor:
        """Return a layer's W, or some of its rows."""
        name = f"{layer}.weight"
        keys = [key for key in self.keys if f".{name}".endswith(f".{key}")]
        keys += [key for key in self.keys if key.endswith(f".{name}")]
        if len(keys) != 1:
            several = " and ".join(keys) or "none"
            raise UserError(f"{self.path}: expected one weight for {name!r}, found {several}")
        weight = self.file.get_tensor(keys[0])
        if self.transposed:
            weight = weight.T
        if rows is not None:
            weight = torch.cat([weight[start:stop] for start, stop in rows])
        return weight

    def basis(self, layer: str, rows: Rows | None = None) -> Tensor:
        """Return all left singular vectors of a layer's W, in float32; they are kept."""
        key = f"{layer} {rows}"
        if key not in self.bases:
            self.bases[key] = svd(self._matrix(layer, rows)).left.float()
        return self.bases[key]

    def directions(self, update: Update) -> SVD:
        """Return the leading singular directions of the W that an update is added to."""
        if update.name not in self.kept:
            count = max(self.count, tenth(update))
            self.kept[update.name] = svd(self.weight(update)).leading(count)
        return self.kept[update.name]


def read_weights(
    folder: Path, modules: Mapping[Any, Module], base: BaseWeights
) -> Iterator[tuple[Place, str, Tensor]]:
    """Give the matrices that full fine-tuning has saved: place, layer's name and W.

    Layers that compute several matrices at once have no place of their own and are left out.

    Raises:
        UserError: nothing was saved there.
    """
    file = folder / SAVED
    if not file.is_file():
        raise UserError(f"{folder}: no weights here ({SAVED} is missing)")
    with safe_open(file, "pt") as saved:
        for key in list(saved.keys()):
            layer = key.removesuffix(".weight")
            if layer != key and (place := place_of(layer, modules)):
                weight = saved.get_tensor(key)
                yield place, layer, weight.T if base.transposed else weight


def _stores_transposed(folder: Path) -> bool:
    """Tell whether a model stores W as (d_in, d_out): the Conv1D of GPT and GPT-2 does."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") in ("gpt2", "openai-gpt")


def tenth(update: Update) -> int:
    """Return a tenth of the number of singular directions of W, which has Delta W's shape."""
    return round(WEIGHT_SHARE * min(update.b.shape[0], update.a.shape[1]))
