"""A model's blocks, run once and remembered: a pass may start at the first block that differs.

Where one layer of a model changes, the blocks below it give what they gave before. Their outputs
are kept from a whole pass and stand in for them in later passes over the same batches. Nothing else
of the model is known here, and no bit of its outputs changes. Kept are rows x tokens x d numbers
for each block.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from torch import nn

from loraudit.adapters.base_layers import names_like
from loraudit.studies.entries import ModelEntry


def blocks_of(model: nn.Module, entry: ModelEntry) -> dict[str, nn.Module]:
    """Return {full name: block}, in order: what `*` counts in the entry's module names."""
    patterns = {f"{name.partition('*')[0]}*" for name in entry.modules.values() if "*" in name}
    names = [name for pattern in patterns for name in names_like(model, pattern)]
    return {name: model.get_submodule(name) for name in names} if len(patterns) == 1 else {}


class KeptOutputs:
    """Outputs of blocks by the name of a pass; without blocks, passes are whole.

    Args:
        blocks: {full name: block}, in the order in which they run.
    """

    def __init__(self, blocks: Mapping[str, nn.Module] | None = None):
        self.blocks = dict(blocks or {})
        self.kept: dict[str, dict[str, list[Any]]] = {}

    @contextmanager
    def kept_as(self, key: str) -> Iterator[None]:
        """Keep what the blocks give inside a `with`, in place of what was kept under that key."""
        found: dict[str, list[Any]] = {name: [] for name in self.blocks}
        handles = [
            block.register_forward_hook(lambda *call, into=found[name]: into.append(call[-1]))
            for name, block in self.blocks.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.kept[key] = found

    @contextmanager
    def below(self, layer: str, key: str) -> Iterator[None]:
        """Inside a `with`, the blocks below a layer's own give what is kept, batch by batch."""
        inside = any(layer.startswith(f"{name}.") for name in self.blocks)
        lower = takewhile(lambda name: inside and not layer.startswith(f"{name}."), self.blocks)
        replaced = {name: self.blocks[name] for name in lower}
        try:
            for name, block in replaced.items():
                outputs = iter(self.kept[key][name])
                block.forward = lambda *_, outputs=outputs, **__: next(outputs)
            yield
        finally:
            for block in replaced.values():
                vars(block).pop("forward", None)  # the class's own shows again
