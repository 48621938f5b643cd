"""LoRA on layers that store their weight in another way: Conv1D, few bits, and embeddings.

All compute h = W0 x + (alpha / r) B A x; they differ in how they hold W0 or are given x.
"""

from typing import NoReturn

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraudit.adapters.lora import LoRALinear
from loraudit.base.errors import UserError


class LoRAConv1D(LoRALinear):
    """LoRA on `transformers`' Conv1D, a linear layer whose weight is stored as (d_in, d_out).

    lora_A (r, d_in), lora_B (d_out, r), arguments and errors are as in `LoRALinear`; only the
    update that is merged is transposed (fan_in_fan_out in PEFT and loralib).
    """

    @staticmethod
    def sizes(base: Conv1D) -> tuple[int, int]:
        """Return d_in and d_out of a base layer."""
        d_in, d_out = base.weight.shape
        return d_in, d_out

    def delta_weight(self) -> Float[Tensor, "d_in d_out"]:
        """Return the update in the shape of the stored weight (d_in, d_out)."""
        return super().delta_weight().T


class LoRAPacked(LoRALinear):
    """LoRA on a linear layer whose weight is packed in few bits (quantise.py).

    Arguments, errors and all methods but `merge` are as in `LoRALinear`.
    """

    @staticmethod
    def like(base: nn.Module) -> Tensor:
        """Return the packed weight's scales, which have the dtype in which the layer computes."""
        return base.meta["scale"]

    def merge(self) -> NoReturn:
        """Refuse to merge, because the sum of W0 and the update would have to be quantised again.

        Raises:
            UserError: always.
        """
        raise UserError("merge: the base is quantised (base_bits): nothing can be added to it")


class LoRAEmbedding(LoRALinear):
    """LoRA on an embedding: row x of W0 (tokens, d) plus (alpha / r) B A e_x, e_x one-hot.

    lora_A is (r, tokens), lora_B (d, r). As in loralib and PEFT it is B that starts random,
    N(0, 1), and A at zero (microsoft/LoRA @c4593f0, loralib/layers.py, Embedding). There is no
    dropout: x is a token id.

    Args:
        base: the embedding to adapt. It is frozen and not copied.
        rank, alpha: as in `LoRALinear`.

    Raises:
        ValueError: rank below 1.
    """

    def __init__(self, base: nn.Embedding, rank: int, alpha: float):
        super().__init__(base, rank, alpha)

    @staticmethod
    def sizes(base: nn.Embedding) -> tuple[int, int]:
        """Return the number of tokens, which stands for d_in, and d."""
        return base.num_embeddings, base.embedding_dim

    def reset_parameters(self) -> None:
        """Set A to zero and draw B from torch's global generator."""
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def forward(self, x: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """Look up W0 and the update; a merged update is already in W0."""
        h = self.base(x)
        if self.merged:
            return h
        base = self.base
        low = nn.functional.embedding(  # (*batch, r)
            x, self.lora_A.T, base.padding_idx, scale_grad_by_freq=base.scale_grad_by_freq
        )
        return h + nn.functional.linear(low, self.lora_B) * self.scaling

    def delta_weight(self) -> Float[Tensor, "tokens d"]:
        """Return the update in the shape of W0 (tokens, d)."""
        return super().delta_weight().T
