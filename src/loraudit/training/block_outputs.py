"""Keep the outputs of a model's blocks, so that a pass may start at the first block that differs.

If one layer of a model changes, the blocks below it compute what they computed before. Their
outputs are kept from a whole pass and replace them in later passes over the same batches. No bit of
the model's outputs changes. This takes the memory of rows x tokens x d numbers for each block.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from torch import nn


class KeptOutputs:
    """The outputs of blocks in passes that the caller names; without blocks, all passes are whole.

    Args:
        blocks: {full name: block}, in the order in which they run.
    """

    def __init__(self, blocks: Mapping[str, nn.Module] | None = None):
        self.blocks = dict(blocks or {})
        self.kept: dict[str, dict[str, list[Any]]] = {}

    @contextmanager
    def kept_as(self, key: str) -> Iterator[None]:
        """Keep the blocks' outputs inside the `with` under a key, replacing what it had before."""
        outputs: dict[str, list[Any]] = {name: [] for name in self.blocks}
        handles = [
            block.register_forward_hook(lambda *call, into=outputs[name]: into.append(call[-1]))
            for name, block in self.blocks.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.kept[key] = outputs

    @contextmanager
    def below(self, layer: str, key: str) -> Iterator[None]:
        """Let the blocks below a layer's own give their kept outputs inside the `with`.

        The batches must be those of the pass that was kept, in the same order.
        """
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
                vars(block).pop("forward", None)  # the class's method is called again
