"""Cut the tensors of loralib's MergedLinear into those of the matrices in a fused layer.

MergedLinear (microsoft/LoRA @c4593f0, loralib/layers.py) adapts some of n equal parts of a layer,
those where its argument `enable_lora` is true, by a grouped convolution:

    lora_A (r * m, d_in)         the A of the m adapted parts, one below the other
    lora_B (d_out / n * m, r)    their B, one below the other

Its files hold neither n nor which parts are adapted. n is that of the model's entry. Which parts
is known from the shapes if all are adapted, and has to be told otherwise.
"""

from pathlib import Path

from torch import Tensor, nn

from loraudit.adapters.base_layers import Target, linear_sizes, targets_of
from loraudit.adapters.parts import Layout, SavedPart
from loraudit.base.errors import Misuse, UserError
from loraudit.studies.entries import Matrix, ModelEntry, range_sizes

Tensors = dict[str, Tensor]


def cut_merged(
    state: Tensors, entry: ModelEntry, model: nn.Module, fused: tuple[Matrix, ...], file: Path
) -> tuple[Tensors, dict[str, Layout]]:
    """Return tensors with each part's A and B under the layer's name and the matrix.

    An adapter of a whole fused layer, as loralib.Linear makes it, stays as it is.

    Args:
        state: {full name in the model: tensor}.
        entry, model: the base model, which may be on the meta device.
        fused: the matrices that have adapters in fused layers; empty if the shapes are to say.
        file: to be named in errors.

    Returns:
        The tensors, and the layouts of the fused layers that have adapters.

    Raises:
        UserError: the shapes do not fit the layer's parts, or those that were asked for.
        Misuse: some of a layer's parts have adapters, and `fused` does not say which.
    """
    layers: dict[str, list[Target]] = {}
    for target in targets_of(model, entry, tuple(entry.modules)):
        if target.rows is not None and f"{target.layer}.lora_A" in state:
            layers.setdefault(target.layer, []).append(target)
    cut, layouts = dict(state), {}
    for layer, targets in layers.items():
        a, b = cut[f"{layer}.lora_A"], cut.get(f"{layer}.lora_B")
        if b is None or not _looks_right(a, b):
            continue  # what is wrong is said where all layers are checked
        d_out = (linear_sizes(model, layer) or (0, 0))[1]
        if len(a) == b.shape[1] and len(b) == d_out:
            continue
        enabled = _enabled(targets, (a, b), d_out, fused, f"{file}: {layer!r}")
        del cut[f"{layer}.lora_A"], cut[f"{layer}.lora_B"]
        rank = b.shape[1]
        blocks = a.split(rank), b.split([_height(target) for target in enabled])
        for target, own_a, own_b in zip(enabled, *blocks, strict=True):
            cut |= {f"{target.name}.lora_A": own_a, f"{target.name}.lora_B": own_b}
        parts = (SavedPart(t.matrix, rank, t.rows or ()) for t in enabled)
        layouts[layer] = Layout(d_out, tuple(parts))
    return cut, layouts


def _looks_right(a: Tensor, b: Tensor) -> bool:
    """Tell whether A and B are matrices and A holds one or more blocks of B's rank."""
    if a.ndim != 2 or b.ndim != 2 or 0 in (*a.shape, *b.shape):
        return False
    return len(a) % b.shape[1] == 0


def _enabled(
    targets: list[Target],
    pair: tuple[Tensor, Tensor],
    d_out: int,
    fused: tuple[Matrix, ...],
    where: str,
) -> list[Target]:
    """Return the parts that have adapters, in the order of the layer's outputs."""
    a, b = pair
    names = [target.matrix for target in targets]
    count, shapes = len(a) // b.shape[1], f"lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}"
    chosen = [target for target in targets if target.matrix in fused]
    if not fused:
        if count < len(targets) or sum(map(_height, targets)) != d_out:
            raise Misuse(
                f"{where}: {shapes} hold {count} of the layer's matrices, of which this model's "
                f"entry names {', '.join(names)}, and the file does not say which; give --fused "
                "(microsoft/LoRA's GPT-2 has q+v)"
            )
        chosen = targets
    if any(len(target.rows or ()) != 1 for target in chosen):
        raise UserError(
            f"{where}: MergedLinear cuts a layer into whole ranges of outputs, and this model's "
            f"{', '.join(names)} take turns in every head"
        )
    if len({*map(_height, targets)}) > 1:
        sizes = ", ".join(f"{target.matrix} {_height(target)}" for target in targets)
        raise UserError(
            f"{where}: MergedLinear cuts a layer into equal parts, and this model's have other "
            f"numbers of outputs ({sizes})"
        )
    if len(chosen) != count or sum(map(_height, chosen)) != len(b):
        said = "+".join(target.matrix for target in chosen) or "none of its matrices"
        raise UserError(
            f"{where}: {shapes} hold {count} matrices of {len(b)} outputs together, and {said} "
            f"of this model have {sum(map(_height, chosen))} (its matrices: {', '.join(names)})"
        )
    return chosen


def _height(target: Target) -> int:
    return sum(range_sizes(target.rows or ()))
