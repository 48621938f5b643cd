"""Repositories as the hub has them, of tiny shapes: three base models and GLUE.

Names of files and of tensors, the classes in config.json, the columns and the cards are those of
the real repositories at the revisions of config/models.yaml and config/tasks.yaml. The content is
random, and the models have two layers of width 16.
"""

import json
from pathlib import Path

import pandas as pd
import torch
import transformers
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from fake_hub import Repository
from loraudit.base.yaml_file import read_yaml
from tiny import BAD, FILLER, GOOD, sentences

WORDS = [*GOOD, *BAD, *FILLER]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "initializer_range": 0.2}  # fmt: skip
BESIDE = {
    "roberta-base": ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
                     "dict.txt", "README.md"),
    "bert-base": ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
                  "coreml/fill-mask/float32_model.mlpackage/Manifest.json",
                  "coreml/fill-mask/float32_model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
                  "LICENSE", "README.md"),
    "distilbert-base": ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
                        "LICENSE", "README.md"),
}  # fmt: skip
"""Files beside the ones that are read."""


def save_roberta(folder: Path) -> None:
    """Write RoBERTa with its masked-language head and byte-level BPE, one token per byte here."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special[:4], *letters, special[4]])}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token=None))
    core.add_special_tokens(special)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    config = transformers.RobertaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=514, type_vocab_size=1, **SHAPE,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, architectures=["RobertaForMaskedLM"],
    )  # fmt: skip
    _save(folder, transformers.RobertaForMaskedLM(config), core, {"model_max_length": 512})
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def save_bert(folder: Path) -> None:
    """Write BERT with its pretraining heads; its LayerNorms' tensors are called gamma and beta."""
    core = _wordpiece(folder)
    config = transformers.BertConfig(
        vocab_size=core.get_vocab_size(), architectures=["BertForMaskedLM"], **SHAPE
    )
    _save(folder, transformers.BertForPreTraining(config), core, UNCASED, old_names=True)


def save_distilbert(folder: Path) -> None:
    """Write DistilBERT with its masked-language head."""
    core = _wordpiece(folder)
    config = transformers.DistilBertConfig(
        vocab_size=core.get_vocab_size(), dim=16, n_layers=2, n_heads=2, hidden_dim=32,
        initializer_range=0.2, architectures=["DistilBertForMaskedLM"],
    )  # fmt: skip
    _save(folder, transformers.DistilBertForMaskedLM(config), core, UNCASED)


UNCASED = {"do_lower_case": True, "model_max_length": 512}


def _wordpiece(folder: Path) -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*words, ""]))
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.add_special_tokens(words[:5])
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return core


def _save(folder: Path, model, core: Tokenizer, settings: dict, old_names: bool = False) -> None:
    """Write config.json, the weights under the names that the hub's file has, and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in model.config.to_diff_dict().items() if key != "dtype"}
    config |= {"architectures": model.config.architectures, "model_type": model.config.model_type}
    (folder / "config.json").write_text(json.dumps(config))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # a pooler whose biases are 0 would count as untrained
            torch.nn.init.normal_(parameter, std=0.1)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for new, old in (("weight", "gamma"), ("bias", "beta")) if old_names else ():
        for name in [name for name in tensors if name.endswith(f"LayerNorm.{new}")]:
            tensors[name.removesuffix(new) + old] = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


SPLITS = {"mnli": ["train", "validation_matched", "validation_mismatched", "test_matched"],
          "ax": ["test"]}  # fmt: skip
"""Splits of the configurations that do not have train, validation and test."""


def save_glue(folder: Path, rows: int) -> None:
    """Write GLUE with four of its tasks and the diagnostic set, which has a test split only."""
    tasks = read_yaml("config/tasks.yaml")
    columns = {name: tasks[name]["text"] for name in ("mnli", "mrpc", "qqp", "sst2")}
    configs = []
    for config, texts in {"ax": columns["mnli"], **columns}.items():
        classes = len(tasks.get(config, tasks["mnli"])["classes"])
        files = []
        for number, split in enumerate(SPLITS.get(config, ["train", "validation", "test"])):
            table = sentences(rows if split == "train" else rows // 2, number)
            data = {text: table.sentence for text in texts}
            labels = -1 if "test" in split else (table.label + table.index) % classes
            data |= {"label": labels, "idx": table.idx}
            file = folder / config / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(data).to_parquet(file)
            files.append({"split": split, "path": f"{config}/{split}-*"})
        configs.append({"config_name": config, "data_files": files})
    card = {"language": ["en"], "license": "other", "pretty_name": "GLUE", "configs": configs}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n\n# Dataset Card\n")


def repositories(root: Path, rows: int = 100) -> dict[str, Repository]:
    """Write all repositories below a folder; returns them by name, at the pinned revisions."""
    found = {}
    listed = read_yaml("config/models.yaml")["models"]
    savers = {"roberta-base": save_roberta, "bert-base": save_bert,
              "distilbert-base": save_distilbert}  # fmt: skip
    for seed, (name, save) in enumerate(savers.items()):
        torch.manual_seed(seed)
        save(root / name)
        for other in BESIDE[name]:
            (root / name / other).parent.mkdir(parents=True, exist_ok=True)
            (root / name / other).write_bytes(b"{}")
        source = listed[name]["source"]
        found[f"models/{source['hub']}"] = Repository(root / name, source["revision"])
    source = read_yaml("config/tasks.yaml")["mrpc"]["source"]
    save_glue(root / "glue", rows)
    found[f"datasets/{source['hub']}"] = Repository(root / "glue", source["revision"])
    return found
