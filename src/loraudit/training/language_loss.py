"""What training has done to a base as a language model: the loss of held-out text.

    before   the base, under the language-model head of its checkpoint
    after    the base with what the run saved (adapter or weights), under the same head

The text is that of the first validation rows of the run's own task, and of the earlier tasks of its
chain. No classifier and no label is involved. The loss is the mean negative log-likelihood per
predicted token, in nats, and its rise says how much of the pretraining was forgotten (Kalajdzievski
2024, arXiv 2401.05605, measures forgetting by a cross-entropy too).

    causal   a decoder: each token of a row but the first is predicted from those before it
    masked   an encoder: 15 % of a row's tokens, at least one and no special ones, are hidden by the
             mask token and predicted from all others (Devlin et al. 2019, section 3.1; there a
             fifth of them is replaced by a random token or kept, which is for training)

Which tokens are hidden depends on the row alone: it is the same before and after, for all runs and
for all models of one tokenizer. A checkpoint that has no such head (one that was trained on as a
classifier, or to embed sentences) is said to have none: a head with random weights shows nothing.
Nothing is trained, and nothing that scripts/train.py imports imports this module.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from loraudit.adapters.base_model import load_base
from loraudit.base.progress import progress
from loraudit.data.batches import (
    NO_LOSS,
    Examples,
    collate,
    load_examples,
    pad_id,
    sorted_batches,
)
from loraudit.data.tokenise import load_tokenizer
from loraudit.studies.spec import RunSpec, derive_seed
from loraudit.training.device import same_bits
from loraudit.training.forgetting import Saved, chain_of, loaded
from loraudit.training.losses import token_losses

Kind = Literal["masked", "causal"]

SHARE = 0.15
"""The share of a row's tokens that are hidden from an encoder."""

TOKENS = 1024
"""The most tokens of a batch: each has as many scores as the vocabulary has words."""

NO_HEAD = "the checkpoint has no language-model head"
NO_MASK = "its tokenizer has no mask token"


class Head(NamedTuple):
    """A checkpoint as a language model: the model, and which of its tokens it predicts."""

    model: nn.Module
    kind: Kind


class Text(NamedTuple):
    """Rows as a model reads them, and the token to predict at each of their places.

    `wanted` (as long as `rows.ids`) is `NO_LOSS` where nothing is predicted.
    """

    rows: Examples
    wanted: np.ndarray


def language_rows(
    run: str, runs: Path, tokens: Mapping[str, Path], model: Path, count: int
) -> list[dict]:
    """Measure the language model's loss before and after a run, on each task of its chain.

    Args:
        run: its name, as a study has it.
        runs: the folder below which the runs are.
        tokens: folder of the tokens that each run of the chain reads, by the run's name.
        model: folder of the fetched model.
        count: how many validation rows of each task are read, the first.

    Returns:
        A row per task: run, text (the task), kind (masked, causal, or "" without a head), rows,
        tokens (how many are predicted), before, after, and rise (after less before), all in nats
        per token, and why, which says why there is nothing to measure.

    Raises:
        UserError: a run is incomplete, or its files do not fit the model.
    """
    chain = chain_of(run, runs)
    later, pad = chain[0], pad_id(tokens[run])
    head, why = language_model(later.spec, model)
    texts = {one.spec.task.name: _validation(one, tokens[one.run], count) for one in chain}
    about = {name: {"run": run, "text": name, "rows": len(rows)} for name, rows in texts.items()}
    if head is None:
        none: dict = {"tokens": 0, **dict.fromkeys(("before", "after", "rise"), math.nan)}
        return [{**one, "kind": "", **none, "why": why} for one in about.values()]
    tokenizer = load_tokenizer(model)
    to_read = {name: to_predict(rows, head.kind, tokenizer) for name, rows in texts.items()}
    on_base(head, load_base(later.spec, model, pad))
    before = {n: loss_per_token(head, text, later.spec, pad) for n, text in to_read.items()}
    on_base(head, loaded(later, model, pad))
    after = {n: loss_per_token(head, text, later.spec, pad) for n, text in to_read.items()}
    return [
        {**one, "kind": head.kind, "tokens": int((to_read[name].wanted != NO_LOSS).sum())}
        | {"before": before[name], "after": after[name], "rise": after[name] - before[name]}
        | {"why": ""}
        for name, one in about.items()
    ]


def _validation(saved: Saved, tokens: Path, count: int) -> Examples:
    """Return the first validation rows that a run is scored on."""
    rows = load_examples(saved.spec, tokens, "validation")
    return rows.take(np.arange(min(count, len(rows))))


def language_model(spec: RunSpec, folder: Path) -> tuple[Head | None, str]:
    """Load a fetched checkpoint with the head that it was pretrained with.

    Args:
        spec: a run on the model.
        folder: of the fetched model.

    Returns:
        The model in evaluation mode, or None and the reason: transformers knows no language model
        of its type, the checkpoint lacks weights of the head, or no token can be hidden.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto import modeling_auto as auto
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    masked = type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING
    masked = masked and not getattr(config, "is_decoder", False) and not spec.task.causal_lm
    if not masked and type(config) not in auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        return None, NO_HEAD
    if masked and load_tokenizer(folder).mask_token_id is None:
        return None, NO_MASK
    cls: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model, info = cls.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, trust_remote_code=False
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        return None, NO_HEAD
    model.config.use_cache = False
    return Head(model.eval(), "masked" if masked else "causal"), ""


def on_base(head: Head, base: nn.Module) -> None:
    """Put the body of a run's model (a classifier, or a language model) under the head, in place.

    Where the head's last layer is the embedding (tied weights), it is that of the body from then
    on.
    """
    name = head.model.base_model_prefix
    setattr(head.model, name, getattr(base, name).eval())
    head.model.tie_weights()


def to_predict(rows: Examples, kind: Kind, tokenizer: Any) -> Text:
    """Say what a model reads of some rows, and which of their tokens it is to predict."""
    ids, wanted = np.array(rows.ids), np.full(len(rows.ids), NO_LOSS)
    for row, start, length in zip(rows.rows, rows.starts, rows.lengths, strict=True):
        own = np.arange(start, start + length)
        if kind == "causal":
            own = own[1:]
        else:
            own = own[~np.isin(ids[own], tokenizer.all_special_ids)]
            draw = np.random.default_rng(derive_seed(0, "masked tokens", int(row))).permutation
            own = draw(own)[: max(1, round(SHARE * len(own)))]
        wanted[own] = ids[own]
        if kind == "masked":
            ids[own] = tokenizer.mask_token_id
    return Text(replace(rows, ids=ids), wanted)


@torch.inference_mode()
def loss_per_token(head: Head, text: Text, spec: RunSpec, pad: int) -> float:
    """Return the mean negative log-likelihood of the wanted tokens, in nats; NaN without any."""
    rows, total, count = text.rows, 0.0, 0
    spec = spec.model_copy(update={"padding": "dynamic"})
    wanted = replace(rows, ids=text.wanted, types=None)
    batches = sorted_batches(rows.lengths, max(1, TOKENS // int(rows.lengths.max())))
    with same_bits("fp32", torch.device("cpu")):
        for index in progress(batches, len(batches), f"{head.kind} language model"):
            logits = head.model(**collate(rows, index, spec, pad)).logits.float()
            tokens = collate(wanted, index, spec, NO_LOSS)["input_ids"]
            total += float(_losses(head.kind, logits, tokens).sum(dtype=torch.float64))
            count += int((tokens != NO_LOSS).sum())
    return total / count if count else math.nan


def _losses(kind: Kind, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the loss of each token, 0 where none is wanted, from (rows, tokens, vocabulary)."""
    if kind == "causal":
        return token_losses(logits, tokens)
    hidden = tokens != NO_LOSS
    return cross_entropy(logits[hidden], tokens[hidden], reduction="none")
