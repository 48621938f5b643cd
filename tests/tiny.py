"""Small models, data and runs of the real ones' shape, made here: no test needs a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import torch
import transformers

from loraudit.base.files import write_json
from loraudit.base.named_code import resolve
from loraudit.base.yaml_file import read_yaml
from loraudit.studies import expand
from loraudit.studies.entries import FolderSource, ModelEntry, TaskEntry
from loraudit.studies.method_settings import MethodSettings
from loraudit.studies.methods import METHODS
from loraudit.studies.record import Train
from loraudit.studies.spec import AdapterSpec, RunSpec

UP_TO_ROUNDING = {"atol": 1e-5, "rtol": 1e-5}
"""For float32 values of order 1 that are computed in two ways (fast and plain layers, merged and
not, PEFT and here): sums of a few hundred terms in another order differ by some roundings of 6e-8,
and by which of them depends on the CPU. Equal bits are asked only of the same operations in the
same order, and of values that are copied, drawn from one seed, or have zero added to them."""

MILD = 0.3
"""Deviation of random adapters and heads that keeps a tiny model's values of order 1: with one of 1
roundings of 1e-7 grow to 4e-5 on the way to the outputs."""

GOOD, BAD = ["superb", "fine", "lovely", "warm"], ["dull", "weak", "awful", "cold"]
FILLER = ["the", "film", "is", "a", "story", "of", "two", "friends", "and", "one", "dog"]


DECODERS = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2"}
DECODERS |= {"smollm3", "phi", "phi3", "gpt_neox"}
"""Families whose head reads the last token, but for GPT-2."""


def tiny_config(model_type: str, classes: int = 2) -> transformers.PretrainedConfig:
    shape = {"vocab_size": 64, "num_labels": classes, "pad_token_id": 0, "initializer_range": 0.2}
    if model_type == "distilbert":
        return transformers.DistilBertConfig(
            dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=66, **shape
        )
    if model_type == "gpt2":
        shape |= {"bos_token_id": 1, "eos_token_id": 1}
        return transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=66, **shape)
    if model_type == "deberta-v2":  # relative positions as in DeBERTa-v3
        shape |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
        shape |= {"share_att_key": True, "type_vocab_size": 0, "pooler_hidden_size": 16}
    if model_type in DECODERS | {"modernbert", "albert", "electra"}:
        return _sized_config(model_type, shape)
    kind = {
        "bert": transformers.BertConfig,
        "roberta": transformers.RobertaConfig,
        "xlm-roberta": transformers.XLMRobertaConfig,
        "deberta-v2": transformers.DebertaV2Config,
        "mpnet": transformers.MPNetConfig,
    }[model_type]
    return kind(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        **shape,
    )


def _sized_config(model_type: str, shape: dict) -> transformers.PretrainedConfig:
    """Make a config of 2 layers, 16 wide; decoders of Llama's kind have 4 heads of 2 in keys."""
    shape |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 66}
    special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    if model_type == "modernbert":
        shape |= {**special, "global_attn_every_n_layers": 2, "local_attention": 8}
    elif model_type in ("albert", "electra"):
        shape |= {"embedding_size": 8}
    else:
        shape |= {"bos_token_id": 2, "eos_token_id": 3}
        if model_type not in ("phi", "gpt_neox"):
            shape |= {"num_key_value_heads": 2, "head_dim": 4}
    return transformers.AutoConfig.for_model(model_type, **shape)


def tiny_model(model_type: str = "bert", classes: int = 2) -> torch.nn.Module:
    """Make a random model whose biases are not zero, so that losing one shows."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(
        tiny_config(model_type, classes)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_entry(model_type: str = "bert", folder: str = "unused") -> ModelEntry:
    family = read_yaml("config/models.yaml")["families"][model_type]
    return ModelEntry(name="tiny", source=FolderSource(folder=folder), **family)


def save_tiny_model(folder, model_type: str = "bert") -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLER]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, sep_token="[SEP]", **special
    )
    tokenizer.save_pretrained(folder)
    tiny_model(model_type).save_pretrained(folder)
    write_json(folder / "manifest.json", {"files": {"model.safetensors": "tiny"}})


def sentences(rows: int, seed: int) -> pd.DataFrame:
    """Make sentences whose label is whether good or bad words stand among the filler."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    texts = []
    for label in labels:
        words = [
            *random.choice(FILLER, random.integers(1, 9)),
            *random.choice(GOOD if label else BAD, 4),
        ]
        texts.append(" ".join(random.permutation(words)))
    return pd.DataFrame({"sentence": texts, "label": labels, "idx": range(rows)})


LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
"""A file as Git leaves it where Git LFS is not installed (the example of its specification)."""


def save_hub_folder(folder, config: str = "sst2", rows: int = 256, columns=None) -> None:
    """Write a folder in the hub's layout: README.md with the configs, parquet per split."""
    (folder / config).mkdir(parents=True)
    head = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for number, (split, count) in enumerate((("train", rows), ("validation", rows // 2))):
        table = sentences(count, number)
        table.rename(columns=columns or {}).to_parquet(
            folder / config / f"{split}-00000-of-00001.parquet"
        )
        head += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*head, "---"]))


TASK = {
    "source": {"folder": "unused", "config": "sst2"},
    "text": ["sentence"],
    "label": "label",
    "classes": ["negative", "positive"],
    "metrics": ["accuracy", "f1"],
    "headline": "accuracy",
}
"""A task's entry on `save_hub_folder`'s tables."""


def make_task(**changes) -> TaskEntry:
    return TaskEntry(**{"name": "tinytask", **TASK, **changes})


def make_spec(**changes) -> RunSpec:
    """Make a run of the tiny model; every field as in defaults.yaml unless changed."""
    fields = {
        **{k: v for k, v in read_yaml("config/defaults.yaml").items() if k != "per_method"},
        "task": make_task(),
        "model": tiny_entry(),
        "targets": ("q", "v"),
        "max_length": 64,
        "global_batch": 8,
        "micro_batch": 8,
        "epochs": 2,
        "learning_rate": 5e-3,
    }
    own = {k: v.model_dump() for k, v in changes.items() if isinstance(v, MethodSettings)}
    return expand.make_spec({**fields, **changes, **own}, "test")


def changed(spec: RunSpec, **changes) -> RunSpec:
    """Copy a run with other fields, by their names in a study file; nothing is checked."""
    method = METHODS[changes.get("method", spec.method)]
    adapter = {key: changes.pop(key) for key in AdapterSpec.model_fields if key in changes}
    if method.trains != "adapter":
        changes["adapter"] = None
    elif adapter:
        changes["adapter"] = spec.lora.model_copy(update=adapter)
    own = changes.pop(method.name, None) if method.settings else None
    cls = resolve(method.settings) if method.settings else None
    changes["settings"] = (own or spec.settings or cls()) if cls else None
    return spec.model_copy(update=changes)


def rechosen(train: Train, choice: str, **changes) -> Train:
    """Copy a record's part on training with another epoch, or other scores, of a choice."""
    chosen = train.epochs[choice].model_copy(update=changes)
    return train.model_copy(update={"epochs": {**train.epochs, choice: chosen}})


TRAIN = Train(
    steps=3,
    epochs={
        "best": {"epoch": 1, "scores": {"accuracy": 0.1 + 0.2}},
        "last": {"epoch": 2, "scores": {"accuracy": 1 / 3}},
    },
    parameters={"adapter": 12},
    bytes={"adapter": 34},
    rows={"train": 5},
    tokens={"real": 6, "padded": 7},
    seconds={"train": 42.000943946000916, "total": 1e-09},
    cpu_seconds={"train": 41.5, "evaluate": 0.25},
    peak_memory_mib=897.5703125,
)
