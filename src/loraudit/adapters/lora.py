"""LoRALinear: a frozen linear layer with a trainable low-rank update.

                    x  (..., d_in)
                    |
          +---------+----------+
          |                    |
    W0 (d_out, d_in)     lora_A (r, d_in)
       frozen                  |
          |              lora_B (d_out, r)
          |                    |
          |                 * alpha/r
          +--------(+)---------+
                    |
                    h  (..., d_out)

    h = W0 x + b0 + (alpha / r) B A x            Hu et al. 2022, section 4.1, eq. 3

One shape, followed through the code below: RoBERTa-base's query projection at r = 8 with a
batch of 16 sentences of 128 tokens: x (16, 128, 768), A (8, 768), B (768, 8), h (16, 128, 768).
A starts random and B at zero, so training starts at the pretrained model exactly (inject.py may
then give A and B other values, such as LoftQ's). Layers whose weight is stored otherwise (GPT-2's
Conv1D, few bits, embeddings) are in lora_variants.py. Runs with `compute: fast`, the default, train
nn.Linear layers by fast_lora.py's subclass, whose forward computes the same up to rounding.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Init = Literal["kaiming", "gaussian"]


class LoRALinear(nn.Module):
    """A frozen `nn.Linear` plus a trainable update of rank `rank`.

    Args:
        base: the layer to adapt, with weight (d_out, d_in). It is frozen and not copied.
        rank: r, at least 1. A run may not have an r above min(d_in, d_out) (error_ranks.py). Where
            ranks move, training/resize_ranks.py gives the layer another r later, down to 0.
        alpha: numerator of the scaling alpha / r.
        dropout: probability of dropping an entry of x on the LoRA path only, in [0, 1).
        init: how A starts. "kaiming" is U(-1/sqrt(d_in), 1/sqrt(d_in)), the released code
            (microsoft/LoRA @c4593f0, loralib/layers.py); "gaussian" is N(0, init_std^2), the
            paper's "random Gaussian" (section 4.1), whose deviation it does not give.
        init_std: deviation of the gaussian; None is 1/r, as in PEFT.

    Raises:
        ValueError: rank below 1, dropout outside [0, 1), or an unknown init.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        init: Init = "kaiming",
        init_std: float | None = None,
    ):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.base = base.requires_grad_(False)
        self.rank = rank
        self.alpha = alpha
        self.scaling = alpha / rank
        self.init = init
        self.init_std = init_std or 1 / rank
        self.dropout = nn.Dropout(dropout)
        self.merged = False
        d_in, d_out = self.sizes(base)
        like = self.like(base)
        self.lora_A = nn.Parameter(like.new_empty(rank, d_in))  # (8, 768)
        self.lora_B = nn.Parameter(like.new_empty(d_out, rank))  # (768, 8)
        self.reset_parameters()

    @staticmethod
    def sizes(base: nn.Linear) -> tuple[int, int]:
        """Return d_in and d_out of a base layer."""
        return base.in_features, base.out_features

    @staticmethod
    def like(base: nn.Linear) -> Tensor:
        """Return a tensor of the dtype and on the device that A and B are to have."""
        return base.weight

    @property
    def width(self) -> int:
        """The most ranks that an update of this shape can have."""
        return min(self.lora_A.shape[1], self.lora_B.shape[0])

    def reset_parameters(self) -> None:
        """Draw A from torch's global generator and set B to zero."""
        self.draw(self.lora_A)
        nn.init.zeros_(self.lora_B)

    def draw(
        self, rows: Float[Tensor, "rows d_in"], generator: torch.Generator | None = None
    ) -> None:
        """Fill any number of rows of A, in place, as `init` says."""
        if self.init == "kaiming":
            nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator)
        elif self.init == "gaussian":
            nn.init.normal_(rows, std=self.init_std, generator=generator)
        else:
            raise ValueError(f"init must be 'kaiming' or 'gaussian', got {self.init!r}")

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Compute h = W0 x + b0 + (alpha/r) B A x; a merged update is already in W0."""
        h = self.base(x)  # (16, 128, 768)
        if self.merged or self.rank == 0:  # at rank 0, h is the frozen layer's
            return h
        x = self.dropout(x).to(self.lora_A.dtype)
        low = nn.functional.linear(x, self.lora_A)  # (16, 128, 8)
        return h + nn.functional.linear(low, self.lora_B) * self.scaling  # (16, 128, 768)

    def delta_weight(self) -> Float[Tensor, "d_out d_in"]:
        """Return the update (alpha/r) B A in the shape of W0 (768, 768)."""
        return (self.lora_B @ self.lora_A) * self.scaling

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to W0, so that inference costs what the base layer costs. Idempotent."""
        if not self.merged:
            self.base.weight += self.delta_weight().to(self.base.weight.dtype)
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the update from W0, which is then as before up to rounding. Idempotent."""
        if self.merged:
            self.base.weight -= self.delta_weight().to(self.base.weight.dtype)
            self.merged = False

    def extra_repr(self) -> str:
        """Show rank, alpha and scaling in the model's printout."""
        return f"rank={self.rank}, alpha={self.alpha}, scaling={self.scaling:g}"
