"""Load the pretrained model of a run, and draw its head."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from loraudit.adapters.base_layers import check_entry, in_head
from loraudit.base.errors import UserError
from loraudit.studies.entries import ModelEntry, TaskEntry
from loraudit.studies.spec import RunSpec, derive_seed


def load_base(spec: RunSpec, folder: Path, pad: int | None = None) -> nn.Module:
    """Load the sequence classifier of a run, and draw its head by the run's seed.

    Of a task that predicts text it is the causal language model, which has no head. A head in the
    checkpoint is not used, whatever its size, nor is a pooler that was never trained: the entry's
    `pretrained_pooler` tells, and is checked against the weights. With `base_bits`, the linear
    layers outside the head are quantised.

    Args:
        spec: the run.
        folder: of the fetched model.
        pad: the token with which the tokenizer fills short rows. Models such as GPT-2, whose head
            reads the last token that is not this one, are told of it. None leaves it at what the
            model's config says.

    Raises:
        UserError: transformers has no sequence classifier (or causal language model) of its type,
            it is a masked language model and the task predicts text, names of the model's entry do
            not fit the model, its `pretrained_pooler` is not so, the checkpoint lacks weights
            other than the head's or has them in other shapes, `max_length` is more than it can
            read, or `base_group` does not fit its layers.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    outputs = max(1, len(spec.task.classes))
    check = check_causal_lm if spec.task.causal_lm else check_classifier
    check(folder, f"model {spec.model.name!r}")
    model, info = auto_class(spec.task).from_pretrained(
        folder,
        num_labels=outputs,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    check_entry(model, spec.model, outputs)
    _check_pooler(spec.model, folder)
    model.config.use_cache = False  # of a decoder's keys and values: no text is generated
    if pad is not None:
        model.config.pad_token_id = pad
    _check_weights(spec.model, info)
    _check_length(spec, most_tokens(model))
    reset_head(model, spec)
    if spec.base_bits:
        from loraudit.adapters.quantise import quantise

        quantise(model, spec)
    return model


def auto_class(task: TaskEntry) -> Any:
    """Return the class of transformers that makes the model for a task from its config."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if task.causal_lm else AutoModelForSequenceClassification


def check_causal_lm(folder: Path, where: str) -> None:
    """Refuse a model that does not predict each token from those before it.

    Args:
        folder: of the model, with config.json.
        where: start of the error message.

    Raises:
        UserError: its type is unknown, is that of an encoder, which sees the tokens that are to be
            predicted, or has an encoder beside its decoder.
    """
    from transformers.models.auto import modeling_auto as auto

    config = _config(folder, where)
    encoder = type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING
    encoder = encoder and not getattr(config, "is_decoder", False)
    if encoder or config.is_encoder_decoder:
        raise UserError(
            f"{where}: models of type {config.model_type!r} see the tokens after each token, which "
            "a task of kind 'causal_lm' asks to predict (legal: a decoder, such as GPT-2 or Llama)"
        )
    if type(config) not in auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{where}: transformers has no causal language model for models of type "
            f"{config.model_type!r}"
        )


def check_classifier(folder: Path, where: str) -> None:
    """Refuse a model of which transformers makes no sequence classifier.

    Args:
        folder: of the model, with config.json.
        where: start of the error message.

    Raises:
        UserError: its type is unknown, or has no sequence classifier.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = _config(folder, where)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"{where}: transformers has no sequence classifier for models of type "
            f"{config.model_type!r}"
        )


def _config(folder: Path, where: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: config.json can't be read: {reason}") from None


def _check_weights(entry: ModelEntry, info: dict) -> None:
    """Refuse a checkpoint that lacks weights outside the head, or has them in other shapes."""
    where = f"model {entry.name!r}"
    for name, found, wanted in sorted(info["mismatched_keys"]):
        if not in_head(name, entry.head):
            raise UserError(
                f"{where}: the checkpoint's {name} is {tuple(found)}, but config.json asks for "
                f"{tuple(wanted)}: they belong to different models"
            )
    missing = [name for name in info["missing_keys"] if not in_head(name, entry.head)]
    if missing:
        raise UserError(f"{where}: no weights for {', '.join(sorted(missing))}")


def pooler_trained(folder: Path, pooler: str) -> bool:
    """Tell whether a checkpoint has a pooler that was trained.

    Training moves the biases, which start at 0. Those of a pooler that was only initialised, as in
    a model tuned with mean pooling, are therefore all exactly 0.

    Args:
        folder: of the model, with model.safetensors.
        pooler: full name of the module.
    """
    own = (pooler.rpartition(".")[2],)  # checkpoints of encoders lack the model's own prefix
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = [key for key in file.keys() if in_head(key, own)]  # noqa: SIM118
        return any(file.get_tensor(k).any().item() for k in names if k.endswith("bias"))


def _check_pooler(entry: ModelEntry, folder: Path) -> None:
    """Refuse an entry whose `pretrained_pooler` is not what the weights say."""
    if entry.pooler is None or pooler_trained(folder, entry.pooler) == entry.pretrained_pooler:
        return
    told, found = "never trained", "has it with biases that are not 0"
    if entry.pretrained_pooler:
        told, found = "trained", "lacks it, or has it with biases of 0 only"
    raise UserError(
        f"model {entry.name!r}: its entry says that the pooler {entry.pooler!r} was {told}, but "
        f"the checkpoint {found}; set pretrained_pooler: {str(not entry.pretrained_pooler).lower()}"
    )


def most_tokens(model: nn.Module) -> int | None:
    """Return the most tokens of an input that a model can read; None if there is no limit.

    It is the number of positions. RoBERTa's kind of model numbers them from the one after the
    padding token's, so that of its 514 positions 512 are for tokens.
    """
    for name, layer in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(layer, nn.Embedding):
            before = 0 if layer.padding_idx is None else layer.padding_idx + 1
            return layer.num_embeddings - before
    return getattr(model.config, "max_position_embeddings", None)


def _check_length(spec: RunSpec, most: int | None) -> None:
    """Refuse a `max_length`, or the entry's `max_tokens`, above what the model can read."""
    for key, value in (("max_tokens", spec.model.max_tokens), ("max_length", spec.max_length)):
        if value and most and value > most:
            raise UserError(
                f"{key} {value} is more than model {spec.model.name!r} can read "
                f"(legal: 4 to {most})"
            )


def reset_head(model: nn.Module, spec: RunSpec) -> None:
    """Draw the head's weights from N(0, initializer_range^2) by the run's seed; set biases to 0."""
    torch.manual_seed(derive_seed(spec.seed, "head"))
    for name in spec.model.head:
        for layer in model.get_submodule(name).modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=getattr(model.config, "initializer_range", 0.02))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
