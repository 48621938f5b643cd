"""A tiny task of prompts and completions, a GPT-2 to go with it, and a run of them."""

import numpy as np
import pandas as pd
import torch
import transformers

from loraudit.data.fetch_task import fetch_task
from loraudit.data.tokenise import tokenise
from loraudit.studies.entries import FolderSource, TaskEntry
from loraudit.studies.spec import RunSpec
from tiny import BAD, FILLER, GOOD, make_spec, save_tiny_model, tiny_config, tiny_entry

TEXT = {
    "source": {"folder": "unused"},
    "kind": "causal_lm",
    "text": ["question", "answer"],
    "metrics": ["log_loss", "perplexity"],
    "headline": "log_loss",
}
"""A task's entry on `save_answers`'s tables."""


def text_task(**changes) -> TaskEntry:
    return TaskEntry(**{"name": "answers", **TEXT, **changes})


def text_spec(**changes) -> RunSpec:
    """Make a run of the tiny GPT-2 on `text_task`."""
    own = {"task": text_task(), "model": tiny_entry("gpt2"), "targets": ("q", "v"), "rank": 2}
    return make_spec(**{**own, "learning_rate": 1e-2, **changes})


def answers(rows: int, seed: int) -> pd.DataFrame:
    """Make prompts of filler with good or bad words; the completion repeats the last such word."""
    random, rows_made = np.random.default_rng(seed), []
    for _ in range(rows):
        words = random.choice([*GOOD, *BAD], random.integers(1, 4))
        prompt = [*random.choice(FILLER, random.integers(1, 6)), *words]
        rows_made.append((" ".join(prompt), " ".join([words[-1], *random.choice(FILLER, 2)])))
    return pd.DataFrame(rows_made, columns=["question", "answer"])


def save_answers(folder, rows: int = 64) -> FolderSource:
    folder.mkdir(parents=True)
    for number, (split, count) in enumerate((("train", rows), ("validation", rows // 2))):
        answers(count, number).to_csv(folder / f"{split}.csv", index=False)
    return FolderSource(folder=str(folder))


def make_text_run(root, task: TaskEntry | None = None, max_length: int = 64):
    """Fetch and tokenise the task below `root` for a tiny GPT-2; returns their folders."""
    (root / "model").mkdir()
    save_tiny_model(root / "model", "gpt2")
    task = task or text_task(source=save_answers(root / "source"))
    fetch_task(task, root / "task")
    tokenise(root / "task", root / "model", max_length, root / "tokens")
    return root / "tokens", root / "model"


def tiny_lm(family: str = "gpt2"):
    """Make a random language model of a family, whose biases are not zero."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(family))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model
