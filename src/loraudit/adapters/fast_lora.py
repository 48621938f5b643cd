"""The fast path of LoRALinear: one autograd node instead of many, equal to it up to rounding.

LoRALinear makes five tensors in the forward pass and autograd as many in the backward pass, four of
them as large as h. Here each pass is one function that adds in place. The thin products are written
with the long side last, which BLAS computes in half the time:

    low^T = A x^T       h  = W0 x + b0,  then  h  += (alpha/r) B low     in place
    d^T   = B^T dh^T    dx = W0^T dh,    then  dx += (alpha/r) A^T d     in place
    dB^T  = (alpha/r) low^T dh           dA = (alpha/r) d^T x

x and low (rank numbers a token) are kept for the backward pass. This works only without LoRA
dropout and if all tensors have one dtype. Under autocast to bf16 they have if the frozen weight is
held in bf16 (base_layers.hold_frozen); x, A and B are then cast as autocast would, and the sum h is
rounded once instead of three times. With dropout and on a quantised base the plain layer runs
instead. The spec's `compute` chooses the class; tests/adapters/test_fast_lora.py compares values,
gradients and trajectories in float64, and in bf16 the distance of both from float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loraudit.adapters.lora import LoRALinear


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


def one_dtype(x: Tensor, weight: Tensor, *trained: Tensor) -> bool:
    """Tell whether all products of a layer are in the dtype of its frozen weight.

    Under autocast x and the trained matrices are cast to autocast's dtype, whatever they are.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return weight.dtype == torch.get_autocast_dtype(kind)
    return {x.dtype, *(matrix.dtype for matrix in trained)} == {weight.dtype}


class FastLoRALinear(LoRALinear):
    """`LoRALinear` as one node wherever that computes the same, and else as it is."""

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Compute h = W0 x + b0 + (alpha/r) B A x."""
        if not self.exact(x):
            return super().forward(x)
        base, dtype = self.base, self.base.weight.dtype
        pair = self.lora_A.to(dtype), self.lora_B.to(dtype)
        return LowRankLinear.apply(x.to(dtype), base.weight, base.bias, *pair, self.scaling)

    def exact(self, x: Tensor) -> bool:
        """Tell whether one node computes what `LoRALinear` does, up to rounding."""
        if self.merged or self.rank == 0 or (self.training and self.dropout.p > 0):
            return False
        return one_dtype(x, self.base.weight, self.lora_A)
