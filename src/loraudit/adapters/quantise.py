"""Pack every linear layer outside the head in few bits by HQQ; adapters stay in float.

    W ~ Q(W) = (W_q - z) s      W_q: integers of 2, 3, 4 or 8 bits; z, s: one pair for each
                                `base_group` inputs of a row, fitted by HQQ without data

The library is hqq (Badri and Shaji, Half-Quadratic Quantization, 2023): plain torch, so it runs on
CPUs, it packs 2, 3, 4 and 8 bits, and PEFT has a LoRA layer for its linear layer. A layer unpacks
its weight at every forward and backward pass and does not keep it. The frozen bias stays float.
Packed weights can't be trained, and no update can be merged into them.
"""

from torch import Tensor, nn

from loraudit.adapters.base_layers import in_head, is_linear, target_modules
from loraudit.base.errors import UserError
from loraudit.studies.spec import RunSpec

try:
    from hqq.core import quantize as hqq
except ImportError:
    raise UserError("base_bits needs the package hqq: pip install hqq") from None


class HQQLinear(hqq.HQQLinear):
    """hqq's linear layer, changed so that `.to(...)` moves its scales, zeros and bias too.

    The class has the same name as hqq's, because PEFT recognises the layer by class and name.

    Args:
        weight: W (d_out, d_in) of any float type; its float32 values are quantised.
        bias: (d_out,) or None.
        bits: of each integer in W_q.
        group: inputs of a row that share a scale and a zero; a divisor of d_in.

    `original` is W as long as the adapter's start is still to be computed from it (error_ranks.py),
    else None.
    """

    original: Tensor | None = None
    meta: dict
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int, group: int):
        layer = nn.Linear(1, 1, bias=bias is not None).requires_grad_(False)
        layer.in_features, layer.out_features = weight.shape[1], weight.shape[0]
        layer.weight.data = weight
        if bias is not None:
            layer.bias.data = bias
        config = hqq.BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
        super().__init__(layer, config, compute_dtype=weight.dtype, device=str(weight.device))

    def requantise(self, weight: Tensor) -> None:
        """Pack another weight (d_out, d_in) in the same bits and groups."""
        del self.W_q  # hqq sets a plain tensor, which can't replace a parameter
        self.quantize(weight, **self.quant_config)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.meta = {k: fn(v) if isinstance(v, Tensor) else v for k, v in self.meta.items()}
        self.bias = None if self.bias is None else fn(self.bias)
        self.original = None if self.original is None else fn(self.original)
        self.device = str(self.meta["scale"].device)
        self.compute_dtype = self.meta["compute_dtype"] = self.meta["scale"].dtype
        return self


def quantise(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Pack every linear layer outside the head in `spec.base_bits` bits, in place.

    A language model's last layer, which often has the embedding's weight, stays as it is.
    Layers keep their `original` weight if their adapters start from its quantisation error.

    Raises:
        UserError: `base_group` does not divide the inputs of a layer.
    """
    adapter, bits, group = spec.adapter, spec.base_bits, spec.base_group
    assert bits is not None and group is not None  # the spec sees to it
    starting = adapter.targets if adapter and adapter.from_error else ()
    adapted = target_modules(model, spec.model, starting)
    last = model.get_output_embeddings() if spec.task.causal_lm else None
    for name, layer in list(model.named_modules()):
        if not is_linear(layer) or in_head(f"{name}.", spec.model.head) or layer is last:
            continue
        weight = (layer.weight if isinstance(layer, nn.Linear) else layer.weight.T).detach()
        _check_group(name, weight.shape[1], group)
        bias = None if layer.bias is None else layer.bias.detach()
        packed = HQQLinear(weight, bias, bits, group)
        packed.original = weight.clone() if name in adapted else None
        model.set_submodule(name, packed)
    return model


def _check_group(name: str, d_in: int, group: int) -> None:
    """Refuse a group that does not divide a row, or that hqq does not pack."""
    if d_in % group or group % 8:
        legal = [count for count in range(8, d_in + 1, 8) if d_in % count == 0]
        listed = ", ".join(map(str, legal)) or "none"
        raise UserError(f"base_group = {group}: {name} has {d_in} inputs (legal: {listed})")
