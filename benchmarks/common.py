"""What the benchmarks share: models without a download, and timing that is interleaved.

Every round times each variant once, in an order drawn anew; a variant's ratio is its time over the
reference's time in the same round, so that a slow minute of the machine slows both. Time is CPU
time of this process, which other programs' turns on the core do not lengthen.
"""

import random
import time
from collections.abc import Callable

import pandas as pd
import torch
import transformers

from loraudit.studies.entry_files import load_model
from loraudit.studies.expand import load_study, make_spec
from loraudit.studies.spec import RunSpec

RANK = 8


def spec_of(model: str = "minilm", **changes) -> RunSpec:
    """Take the quickstart study's run of LoRA at rank 8 on q and v, with changes."""
    runs = load_study("config/studies/quickstart.yaml").runs
    specs = [run.spec for run in runs if run.spec.method == "lora"]
    chosen = next(s for s in specs if s.lora.rank == RANK and s.lora.targets == ("q", "v"))
    entries = {"task": chosen.task, "model": load_model(model)}
    return make_spec({**chosen.flat(), **entries, **changes}, "benchmarks")


def random_model(name: str) -> torch.nn.Module:
    """Make a random classifier of the shape of "minilm", "roberta-base" or "roberta-large"."""
    torch.manual_seed(0)
    if name == "minilm":
        config = transformers.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        return transformers.BertForSequenceClassification(config)
    shape = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    if name == "roberta-large":
        shape |= {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        shape["intermediate_size"] = 4096
    config = transformers.RobertaConfig(**shape)
    return transformers.RobertaForSequenceClassification(config)


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, warm_up: int = 3
) -> pd.DataFrame:
    """Time every call once a round, in random order; returns rounds x calls of CPU seconds."""
    order, rows = list(calls), []
    shuffle = random.Random(0).shuffle
    for _ in range(rounds + warm_up):
        shuffle(order)
        row = {}
        for name in order:
            started = time.process_time()
            calls[name]()
            row[name] = time.process_time() - started
        rows.append(row)
    return pd.DataFrame(rows[warm_up:])[list(calls)]


def spread(values: pd.DataFrame) -> pd.DataFrame:
    """Return the median and quartiles of each column, a row per column."""
    found = values.quantile([0.5, 0.25, 0.75]).T
    found.columns = ["median", "lower", "upper"]
    return found.rename_axis("what").reset_index()
