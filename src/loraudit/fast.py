"""The fast path: what lora.py and the encoder compute, in less time and memory.

Two shortcuts, each equal to the plain computation up to rounding (tests/test_fast.py compares
values, gradients and trajectories in float64), and each switched by the spec's `compute`:

1. One node instead of many. LoRALinear makes five tensors on the way forward and autograd as many
   on the way back, four of them as large as h. Here both ways are one function that adds in place,
   and the thin products are written with the long side last, which BLAS does in half the time:

       low^T = A x^T       h  = W0 x + b0,  then  h  += (alpha/r) B low     in place
       d^T   = B^T dh^T    dx = W0^T dh,    then  dx += (alpha/r) A^T d     in place
       dB^T  = (alpha/r) low^T dh           dA = (alpha/r) d^T x

   Kept for the way back: x, and low (rank numbers a token). It needs LoRA dropout to be off, and
   one dtype for all: under autocast the plain layer is used.

2. The last layer for the first token only. The head of BERT and RoBERTa reads the first token, so
   of the last layer's queries, attention output and MLP the other tokens' are never read. Keys and
   values are still those of all tokens. Dropout draws fewer random numbers, so a run with dropout
   is another draw of the same distribution, not the same bits.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loraudit.errors import UserError
from loraudit.lora import LoRALinear
from loraudit.models import names_like
from loraudit.spec import RunSpec


class LowRankLinear(torch.autograd.Function):
    """h = W0 x + b0 + s B A x as one node, with the gradients of x, A and B; W0, b0 are frozen."""

    @staticmethod
    def forward(ctx, x, weight, bias, lora_A, lora_B, scaling):
        """Return h (*batch, d_out) for x (*batch, d_in)."""
        low = lora_A @ x.reshape(-1, x.shape[-1]).T  # (r, tokens)
        h = nn.functional.linear(x, weight, bias)
        h.view(-1, h.shape[-1]).addmm_(low.T, lora_B.T.contiguous(), alpha=scaling)
        ctx.save_for_backward(x, low, weight, lora_A, lora_B)
        ctx.scaling = scaling
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, dh):
        """Return the gradients of x (None if it needs none), lora_A and lora_B."""
        x, low, weight, lora_A, lora_B = ctx.saved_tensors
        dh = dh.reshape(-1, dh.shape[-1])  # (tokens, d_out)
        d = (lora_B.T.contiguous() @ dh.T).mul_(ctx.scaling)  # (r, tokens)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dh @ weight).addmm_(d.T, lora_A).view_as(x)
        return dx, None, None, d @ x.reshape(-1, x.shape[-1]), (low @ dh).mul_(ctx.scaling).T, None


class FastLoRALinear(LoRALinear):
    """`LoRALinear` in one node, wherever that computes the same; else its own forward."""

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Compute h = W0 x + b0 + (alpha/r) B A x."""
        if not self.exact(x):
            return super().forward(x)
        base = self.base
        return LowRankLinear.apply(
            x, base.weight, base.bias, self.lora_A, self.lora_B, self.scaling
        )

    def exact(self, x: Tensor) -> bool:
        """Tell whether one node computes what `LoRALinear` does, up to rounding."""
        return not (
            self.merged
            or (self.training and self.dropout.p > 0)
            or torch.is_autocast_enabled(x.device.type)
            or not x.dtype == self.base.weight.dtype == self.lora_A.dtype
        )


class FirstTokenAttention(nn.Module):
    """BERT's and RoBERTa's self-attention, its output computed for the first token only.

    Takes over the projections of the layer it replaces, under the same names.

    Args:
        attention: a transformers BertSelfAttention or RobertaSelfAttention.
    """

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.dropout = attention.dropout
        self.heads, self.scaling = attention.num_attention_heads, attention.scaling

    def forward(self, hidden_states: Float[Tensor, "rows tokens d"], attention_mask=None, **_):
        """Return the first token's output (rows, 1, d), and None for the attention weights."""
        if attention_mask is not None:
            attention_mask = attention_mask[:, :, :1]  # (rows, 1, 1, tokens)
        out = nn.functional.scaled_dot_product_attention(
            self._split(self.query(hidden_states[:, :1])),
            self._split(self.key(hidden_states)),
            self._split(self.value(hidden_states)),
            attn_mask=attention_mask,
            dropout_p=self.dropout.p if self.training else 0.0,
            scale=self.scaling,
        )
        return out.transpose(1, 2).flatten(2), None

    def _split(self, x: Tensor) -> Tensor:
        """Cut (rows, tokens, d) into heads: (rows, heads, tokens, d / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def shorten(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Let the last layer compute its first token only, in place, where the head reads no other.

    The model entry's `first_token` names the attention blocks of such a model. Nothing is done
    without it, or when the spec's `compute` is "plain".

    Raises:
        UserError: the model has no module of that name.
    """
    pattern = spec.model.first_token
    if pattern is None or spec.compute == "plain":
        return model
    blocks = names_like(model, pattern)
    if not blocks:
        raise UserError(f"model {spec.model.name!r} has no module {pattern!r} (first_token)")
    block = model.get_submodule(blocks[-1])
    block.self = FirstTokenAttention(block.self)
    block.output.register_forward_pre_hook(_first_token_of_both)
    return model


def _first_token_of_both(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cut the residual (rows, tokens, d) to the first token, as the attention's output is."""
    attended, residual = inputs
    return attended, residual[:, :1]
