"""Tasks in training: from a fetched table to token ids, from ids to batches."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from loraudit.errors import UserError
from loraudit.files import read_json
from loraudit.spec import RunSpec


@dataclass(frozen=True)
class Examples:
    """A tokenised split: `ids[i]` and `types[i]` (segment ids, or None) are token lists."""

    rows: np.ndarray
    ids: list[list[int]]
    types: list[list[int]] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example."""
        return np.array([len(ids) for ids in self.ids])


def load_examples(spec: RunSpec, data: Path, split: str, tokenizer) -> Examples:
    """Tokenise the first `train_rows` or `validation_rows` rows of a fetched split.

    Splits other than "train" are validation splits.

    Raises:
        UserError: the split has fewer rows than the spec asks for.
    """
    table = pd.read_parquet(Path(data) / f"{split}.parquet")
    asked = spec.train_rows if split == "train" else spec.validation_rows
    if asked is not None:
        if asked > len(table):
            raise UserError(
                f"{split}_rows: {asked} asked, but task {spec.task.name!r} has {len(table)} "
                f"(legal: 1 to {len(table)}, or null for all)"
            )
        table = table[:asked]
    texts = [table[name].tolist() for name in ("text_1", "text_2") if name in table]
    tokens = tokenizer(*texts, truncation=True, max_length=spec.max_length)
    return Examples(
        rows=table.row.to_numpy(),
        ids=tokens["input_ids"],
        types=tokens.get("token_type_ids"),
        labels=table.label.to_numpy(),
    )


def scored_splits(spec: RunSpec, data: Path) -> list[str]:
    """Name the splits to score: validation, and those of `also_validate` that were fetched."""
    absent = read_json(Path(data) / "manifest.json")["absent"]
    return ["validation", *(name for name in spec.task.also_validate if name not in absent)]


def data_fingerprint(data: Path) -> dict[str, str]:
    """Return the hashes of a fetched task's splits."""
    splits = read_json(Path(data) / "manifest.json")["splits"]
    return {split: facts["sha256"] for split, facts in splits.items()}


def global_batches(
    lengths: np.ndarray, batch: int, batching: str, generator: np.random.Generator
) -> list[np.ndarray]:
    """Order one epoch's rows into global batches; the last may be short.

    "shuffle" is a permutation cut into batches. "length_grouped" sorts each block of 50 batches of
    the permutation by length before cutting, then shuffles the batches.
    """
    order = generator.permutation(len(lengths))
    if batching == "length_grouped":
        blocks = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
        order = np.concatenate([block[np.argsort(lengths[block])] for block in blocks])
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    if batching == "length_grouped":
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return batches


def collate(examples: Examples, index: np.ndarray, spec: RunSpec, pad_id: int) -> dict:
    """Pad the chosen examples to a batch of tensors (len(index), longest or max_length)."""
    import torch

    longest = max(len(examples.ids[i]) for i in index)
    width = spec.max_length if spec.padding == "max_length" else longest

    def padded(rows: list[list[int]], fill: int) -> "torch.Tensor":
        return torch.tensor([rows[i] + [fill] * (width - len(rows[i])) for i in index])

    batch = {"input_ids": padded(examples.ids, pad_id)}
    mask = [[1] * len(examples.ids[i]) + [0] * (width - len(examples.ids[i])) for i in index]
    batch["attention_mask"] = torch.tensor(mask)
    if examples.types is not None:
        batch["token_type_ids"] = padded(examples.types, 0)
    return batch
