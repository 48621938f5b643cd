"""Dropout whose random numbers cost a sixth of torch's, of the same distribution.

torch draws a number for each element of a mask. Here 64 random bits of the same generator make four
thresholds of 16 bits, which are compared with the keep probability:

    y = x m / k      m = 1 where bits < 65536 k, else 0      k = round(65536 (1 - p)) / 65536

k is the exact probability that an element is kept (0.899994 for p = 0.1): the mean of y is x.
The bits are kept for the backward pass, two bytes an element where torch keeps four.

torch's attention draws its own mask, inside; with dropout on a CPU it is computed by plain products
in any case, and so it is here (`attend`), with the mask of this module. On other devices than a CPU
torch's dropout runs, and so it does in LoRA's own dropout, whose mask PEFT draws too. A run with
`compute: plain` has torch's everywhere. tests/adapters/test_fast_dropout.py has the statistics.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from loraudit.studies.spec import RunSpec

LEVELS = 2**16
"""Thresholds that 16 bits can tell apart."""

ATTENTION = "loraudit"
"""The name by which a model's config asks transformers for `attention_forward`."""


class _Dropout(torch.autograd.Function):
    """y = x m / k; `kept` is 65536 k."""

    @staticmethod
    def forward(ctx, x: Tensor, kept: int) -> Tensor:
        """Return y of x's shape."""
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        ctx.save_for_backward(bits)
        ctx.kept = kept
        return _masked(x, bits, kept)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x."""
        (bits,) = ctx.saved_tensors
        return _masked(dy, bits, ctx.kept), None


def _masked(x: Tensor, bits: Tensor, kept: int) -> Tensor:
    """Return x m / k, by the signed 16-bit numbers `bits` of x's shape."""
    y = torch.lt(bits, kept - LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype))  # first: m
    return torch.addcmul(x.new_zeros(()), x, y, value=LEVELS / kept, out=y)


class FastDropout(nn.Dropout):
    """`nn.Dropout` with thresholds of 16 bits on a CPU, and as it is elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input`, in training with some elements dropped and the rest scaled.

        A probability that 16 bits can't tell from 0 or 1 is left to torch.
        """
        if not self.training or not draws(self, input):
            return super().forward(input)
        return _Dropout.apply(input, _kept(self.p))


def _kept(p: float) -> int:
    """Return how many of the `LEVELS` thresholds keep an element that is dropped with p."""
    return round(LEVELS * (1 - p))


def draws(dropout: nn.Dropout, x: Tensor) -> bool:
    """Tell whether a dropout would draw the mask of x by this module, and not by torch."""
    own = isinstance(dropout, FastDropout) and x.device.type == "cpu"
    return own and 0 < _kept(dropout.p) < LEVELS


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: nn.Module, scale: float
) -> Tensor:
    """Return softmax(scale q k^T + mask) v with dropout of the softmax, (rows, heads, n, d).

    Args:
        query: (rows, heads, n, d).
        key: (rows, heads, tokens, d).
        value: (rows, heads, tokens, d).
        mask: None, or what broadcasts to (rows, heads, n, tokens): True where a token is read, or
            numbers to add.
        dropout: module that drops elements of the softmax.
        scale: factor of the products.
    """
    rows, heads, tokens = query.shape[0], query.shape[1], key.shape[2]
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))  # (rows heads, n or tokens, d)
    if mask is None:
        added = q.new_empty(1)
    else:
        if mask.dtype == torch.bool:
            read, lowest = mask, torch.finfo(q.dtype).min
            mask = torch.zeros(read.shape, dtype=q.dtype).masked_fill_(~read, lowest)
        added = mask.to(q.dtype).expand(rows, heads, q.shape[1], tokens).flatten(0, 1)
    scores = torch.baddbmm(added, q, k.mT, beta=float(mask is not None), alpha=scale)
    return (dropout(scores.softmax(-1)) @ v).unflatten(0, (rows, heads))


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options,
) -> tuple[Tensor, None]:
    """Compute a layer's attention for transformers: by `attend` where that is `FastDropout`'s work.

    Else by torch, as transformers does by itself: without dropout, for causal attention and for
    heads that share keys.

    Returns:
        (rows, n, heads, d), and no attention weights.
    """
    asked = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if asked is None else asked  # as torch's does
    plain = options.get("position_bias") is None and key.shape[1] == query.shape[1]
    dropped = FastDropout(dropout)
    if causal or not plain or not draws(dropped, query):
        tensors = query, key, value, attention_mask
        return sdpa_attention_forward(module, *tensors, dropout, scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = attend(query, key, value, attention_mask, dropped, scale)
    return attended.transpose(1, 2).contiguous(), None


def attention_mask(
    *sizes: int, attention_mask: Tensor | None = None, **options: Any
) -> Tensor | None:
    """Return torch's mask of attention, without a look at what the given one hides.

    transformers looks at each mask, to leave out one that hides nothing, and so waits until a GPU
    has done all that it was given. Our batches have a mask only if it hides something
    (data/batches.py).
    """
    if attention_mask is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*sizes, attention_mask=attention_mask, **options)


AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, attention_mask)


def replace_dropout(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Put `FastDropout` in place of the base model's dropout if the spec's `compute` is "fast"."""
    if spec.compute != "fast":
        return model
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Dropout:
            model.set_submodule(name, FastDropout(layer.p).train(layer.training))
    if model.config._attn_implementation == "sdpa":
        model.config._attn_implementation = ATTENTION
    return model
