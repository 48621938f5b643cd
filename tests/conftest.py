"""Small models and data of the real ones' shape, made here: no test needs a network."""

import contextlib
import json
import os
import runpy
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml
from beartype import beartype
from jaxtyping import jaxtyped

from loraudit.fast import FastLoRALinear
from loraudit.files import write_json
from loraudit.first_token import FirstTokenAttention
from loraudit.lora import LoRALinear
from loraudit.spec import FolderSource, ModelEntry, RunSpec, TaskEntry
from loraudit.yaml_file import read_yaml

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
    kind = {
        "bert": transformers.BertConfig,
        "roberta": transformers.RobertaConfig,
        "deberta-v2": transformers.DebertaV2Config,
    }[model_type]
    return kind(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        **shape,
    )


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
    return RunSpec(**{**fields, **changes})


@pytest.fixture(autouse=True)
def shapes_checked(request, monkeypatch):
    """Check the shapes in the annotations of the layers at every call."""
    if request.node.get_closest_marker("shapes_unchecked"):
        return
    for owner, name in (
        (LoRALinear, "forward"),
        (LoRALinear, "delta_weight"),
        (FastLoRALinear, "forward"),
        (FirstTokenAttention, "forward"),
    ):
        checked = jaxtyped(getattr(owner, name), typechecker=beartype)
        monkeypatch.setattr(owner, name, checked)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Give the folders of a fetched tiny task, a fetched tiny model, and the tokens."""
    from loraudit.fetch import fetch_task
    from loraudit.tokenise import tokenise

    root = tmp_path_factory.mktemp("tiny")
    save_hub_folder(root / "hub")
    entry = make_task(source={"folder": str(root / "hub"), "config": "sst2"})
    fetch_task(entry, root / "task")
    save_tiny_model(root / "model")
    tokenise(root / "task", root / "model", 64, root / "tokens")
    return root


@pytest.fixture
def batch():
    """Give a batch for tiny models: token ids (4, 9) with padding in the last two rows."""
    torch.manual_seed(1)
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[2:, 6:] = 0
    return {"input_ids": torch.randint(4, 60, (4, 9)), "attention_mask": mask}


SMALL = """
question: Do the commands find what a study wrote?
defaults: {task: words, model: tiny, epochs: 2, global_batch: 16, learning_rate: 1.0e-2,
           rank: 2, max_length: 64, train_rows: 96}
per_method: {head: {learning_rate: 1.0e-2}}
grid:
  - {method: [lora, peft], targets: q+v, seed: [0, 1]}
  - {method: head, seed: [0, 1]}
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Give a project's folder with the finished study "small", made by the scripts of the rules."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree("config", root / "config")
    shutil.copytree("profiles", root / "profiles")
    shutil.copytree("scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    save_tiny_model(root / "tiny-model")
    save_hub_folder(root / "hub")
    words = {"name": "words", "source": {"folder": "hub", "config": "sst2"}}
    entry = make_task(**words).model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    tasks, models = root / "config/tasks.yaml", root / "config/models.yaml"
    tasks.write_text(tasks.read_text() + yaml.safe_dump({"words": entry}))
    tiny = "  tiny: {family: bert, source: {folder: tiny-model}}\n"
    models.write_text(models.read_text() + tiny)
    (root / "config/studies/small.yaml").write_text(SMALL)
    with contextlib.chdir(root):
        _run_study()
    return root


def _run_study() -> None:
    """Do what the DAG does, in this process."""
    from loraudit.code_digest import code_digest
    from loraudit.products import study_figures
    from loraudit.spec import METHOD_MODULES
    from loraudit.study import load_configured

    config = {**read_yaml("config/config.yaml"), "study": "small"}
    study = load_configured(config)
    task, model = "resources/tasks/words", "resources/models/tiny"
    first = study.runs[0].spec
    script("fetch_task", entry=first.task.model_dump_json(), out=task)
    script("fetch_model", entry=first.model.model_dump_json(), out=model)
    results = f"results/{study.name}"
    tokens = f"resources/tokens/words/tiny-{first.max_length}"
    made = {"data": task, "model": model, "out": tokens}
    script("tokenise", **{"max-length": first.max_length}, **made)
    script("study", config=json.dumps(config), out=f"{results}/study.json")
    for run in study.runs:
        folders = {"tokens": tokens, "model": model, "out": f"{results}/runs/{run.id}"}
        code = code_digest("scripts/train.py", METHOD_MODULES[run.spec.method])
        script("train", spec=run.spec.model_dump_json(), code=code, **folders)
    for cell, spec in study.cells().items():
        out = f"{results}/crosscheck/{cell}.json"
        script("crosscheck", spec=spec.model_dump_json(), tokens=tokens, model=model, out=out)
    script("collect", results=results)
    script("tables", results=results)
    script("subspace", results=results, models="resources/models")
    for name, tables in study_figures(study).items():
        svg = f"figures/{study.name}/{name}.svg"
        script("figures", figure=name, tables=[f"{results}/{table}" for table in tables], svg=svg)


def script(name: str, **options: object) -> None:
    """Run a program of scripts/ in this process; a list gives an option several values."""
    arguments = []
    for key, value in options.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{key}", *map(str, values)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(f"scripts/{name}.py", run_name="__main__")


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """Give a copy of the finished project that the test may edit, as the working folder."""
    root = tmp_path / "project"
    shutil.copytree(finished, root)
    monkeypatch.chdir(root)
    return root
