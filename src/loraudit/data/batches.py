"""What training reads: token files mapped into memory, and batches made from them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, sha256
from loraudit.studies.spec import RunSpec, derive_seed


@dataclass(frozen=True)
class Examples:
    """Examples of a tokenised split; the tokens of example i are the `lengths[i]` `ids` that begin
    at `starts[i]`.

    `rows` (n,) are row numbers of the source, `labels` (n,) classes or numbers, `starts` and
    `lengths` (n,) whole numbers, `types` the segment id of each of the `ids`, or None. The `ids`
    are the whole split's. They are read-only and mapped into memory, so that all runs on a machine
    share them.
    """

    rows: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    types: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)


def load_examples(spec: RunSpec, tokens: Path, split: str) -> Examples:
    """Map a tokenised split into memory, or as many of its rows as the spec asks for.

    `train_rows` of the spec says how many of "train", and `train_draw` which; `validation_rows`
    says how many of any other split, of which the first are taken.

    Raises:
        UserError: the split has fewer rows than the spec asks for, was cut at another length, or
            its file was changed after it was made.
    """
    manifest = read_json(Path(tokens) / "manifest.json")
    if manifest["max_length"] != spec.max_length:
        raise UserError(
            f"{tokens}: cut at max_length {manifest['max_length']}, the run has {spec.max_length}"
        )
    file = Path(tokens) / f"{split}.arrow"
    if sha256(file) != manifest["files"][file.name]:
        raise UserError(f"{file}: changed since it was made; delete {tokens} to have it made again")
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_file(source).get_batch(0)
    asked = spec.train_rows if split == "train" else spec.validation_rows
    if asked is not None and asked > len(table):
        raise UserError(
            f"{split}_rows: {asked} asked, but task {spec.task.name!r} has {len(table)} "
            f"(legal: 1 to {len(table)}, or null for all)"
        )
    chosen = _drawn(spec, len(table), asked) if split == "train" else slice(asked)
    ids = table["ids"]
    offsets = ids.offsets.to_numpy()
    return Examples(
        rows=table["row"].to_numpy(zero_copy_only=False)[chosen],
        labels=table["label"].to_numpy(zero_copy_only=False)[chosen],
        starts=offsets[:-1][chosen],
        lengths=np.diff(offsets)[chosen],
        ids=ids.values.to_numpy(),
        types=table["types"].values.to_numpy() if "types" in table.schema.names else None,
    )


def _drawn(spec: RunSpec, rows: int, asked: int | None) -> np.ndarray | slice:
    """Return which of a training split's rows a run trains on, in the split's order.

    What "seed" draws depends on the seed and the split's size only: twins get the same rows, and
    fewer rows are a part of more.
    """
    if spec.train_draw == "first" or asked in (None, rows):
        return slice(asked)
    random = np.random.default_rng(derive_seed(spec.seed, "train rows"))
    return np.sort(random.permutation(rows)[:asked])


def scored_splits(spec: RunSpec, tokens: Path) -> list[str]:
    """Return the names of the splits to score: validation, and fetched ones of `also_validate`."""
    absent = read_json(Path(tokens) / "manifest.json")["absent"]
    return ["validation", *(name for name in spec.task.also_validate if name not in absent)]


def pad_id(tokens: Path) -> int:
    """Return the id of the tokenizer's padding token."""
    return read_json(Path(tokens) / "manifest.json")["pad_id"]


def data_fingerprint(tokens: Path) -> dict[str, str]:
    """Return the SHA-256 of each split of the fetched task."""
    return read_json(Path(tokens) / "manifest.json")["splits"]


def global_batches(
    lengths: np.ndarray, batch: int, batching: str, generator: np.random.Generator
) -> list[np.ndarray]:
    """Order one epoch's rows into global batches; the last may be short.

    "shuffle" permutes the rows and cuts them into batches. "length_grouped" also sorts each block
    of 50 batches by length before cutting, and then shuffles the batches.
    """
    order = generator.permutation(len(lengths))
    if batching == "length_grouped":
        blocks = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
        order = np.concatenate([block[np.argsort(lengths[block])] for block in blocks])
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    if batching == "length_grouped":
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return batches


def sorted_batches(lengths: np.ndarray, batch: int) -> list[np.ndarray]:
    """Cut rows sorted by length into batches, for evaluation; the last may be short."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch] for i in range(0, len(order), batch)]


def collate(examples: Examples, index: np.ndarray, spec: RunSpec, pad: int) -> dict:
    """Pad the chosen examples to a batch of tensors (len(index), longest or max_length).

    A batch in which nothing is padded has no attention_mask: models then attend to all tokens and
    save the cost of a mask.
    """
    lengths = examples.lengths[index]
    width = spec.max_length if spec.padding == "max_length" else lengths.max()
    column = np.arange(width)
    real = column < lengths[:, None]  # (rows, width)
    at = np.where(real, examples.starts[index][:, None] + column, 0)

    def padded(values: np.ndarray, fill: int) -> torch.Tensor:
        return torch.from_numpy(np.where(real, values[at], fill).astype(np.int64))

    batch = {"input_ids": padded(examples.ids, pad)}
    if not real.all():
        batch["attention_mask"] = torch.from_numpy(real.astype(np.int64))
    if examples.types is not None:
        batch["token_type_ids"] = padded(examples.types, 0)
    return batch
