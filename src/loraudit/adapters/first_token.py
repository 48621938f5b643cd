"""The last layer for the first token only, which is exact if the head reads no other token.

The head of BERT, RoBERTa and MPNet reads the first token alone. The last layer's queries, attention
output and MLP of all other tokens are therefore never read and need not be computed; its keys and
values are needed for all tokens. Dropout draws fewer random numbers, so a run with dropout is
another draw of the same distribution, not the same bits. Any method trains on it, the PEFT twin
too; tests/adapters/test_fast_lora.py compares it with the whole layer in float64.
"""

import math

from jaxtyping import Float
from torch import Tensor, nn

from loraudit.adapters.base_layers import names_like
from loraudit.adapters.fast_dropout import attend, draws
from loraudit.base.errors import UserError
from loraudit.studies.spec import RunSpec


class FirstTokenAttention(nn.Module):
    """BERT's and RoBERTa's self-attention, with output for the first token only.

    It takes over the projections of the layer it replaces, under the same names.

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
        q = self._split(self.query(hidden_states[:, :1]))
        k, v = self._split(self.key(hidden_states)), self._split(self.value(hidden_states))
        if self.training and draws(self.dropout, q):
            attended = attend(q, k, v, attention_mask, self.dropout, self.scaling)
        else:
            attended = nn.functional.scaled_dot_product_attention(
                *(q, k, v),
                attn_mask=attention_mask,
                dropout_p=self.dropout.p if self.training else 0.0,
                scale=self.scaling,
            )
        return attended.transpose(1, 2).flatten(2), None

    def _split(self, x: Tensor) -> Tensor:
        """Cut (rows, tokens, d) into heads: (rows, heads, tokens, d / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FirstTokenBlock(nn.Module):
    """MPNet's attention block, with output for the first token only.

    It takes over the modules of the block it replaces, under the same names. The scores get MPNet's
    bias by relative position, which all layers share.

    Args:
        block: a transformers MPNetAttention.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.attn, self.LayerNorm, self.dropout = block.attn, block.LayerNorm, block.dropout

    def forward(
        self,
        hidden_states: Float[Tensor, "rows tokens d"],
        attention_mask=None,
        position_bias=None,
        **_,
    ) -> tuple[Float[Tensor, "rows 1 d"]]:
        """Return the first token's output, and no attention weights."""
        attn, first = self.attn, hidden_states[:, :1]
        q, k, v = (
            x.unflatten(2, (attn.num_attention_heads, -1)).transpose(1, 2)
            for x in (attn.q(first), attn.k(hidden_states), attn.v(hidden_states))
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(attn.attention_head_size)
        for added in (position_bias, attention_mask):  # (rows, heads or 1, tokens, tokens)
            if added is not None:
                scores = scores + added[:, :, :1]
        attended = attn.dropout(scores.softmax(-1)) @ v  # (rows, heads, 1, d / heads)
        o = attn.o(attended.transpose(1, 2).flatten(2))
        return (self.LayerNorm(self.dropout(o) + first),)


def shorten(model: nn.Module, spec: RunSpec) -> nn.Module:
    """Let the last layer compute its first token only, in place, if the head reads no other.

    The model entry's `first_token` names the attention blocks of such a model. Without it, or if
    the spec's `compute` is "plain", the model stays as it is.

    Raises:
        UserError: the model has no module of that name, or one of an unknown kind.
    """
    pattern = spec.model.first_token
    if pattern is None or spec.compute == "plain":
        return model
    blocks = names_like(model, pattern)
    if not blocks:
        raise UserError(f"model {spec.model.name!r} has no module {pattern!r} (first_token)")
    block = model.get_submodule(blocks[-1])
    if hasattr(block, "attn"):
        model.set_submodule(blocks[-1], FirstTokenBlock(block))
    elif hasattr(block, "self"):
        block.self = FirstTokenAttention(block.self)
        block.output.register_forward_pre_hook(_first_token_of_both)
    else:
        raise UserError(
            f"model {spec.model.name!r}: first_token: {blocks[-1]!r} is no attention block of "
            "BERT's kind (with `self`) or MPNet's (with `attn`)"
        )
    return model


def _first_token_of_both(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cut the residual (rows, tokens, d) to its first token, to match the attention's output."""
    attended, residual = inputs
    return attended, residual[:, :1]
