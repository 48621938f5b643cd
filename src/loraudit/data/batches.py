"""What training reads: token files mapped into memory, and batches made from them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, sha256
from loraudit.studies.spec import RunSpec, derive_seed


@dataclass(frozen=True)
class Examples:
    """n tokenised examples; example i's tokens are `ids[starts[i] : starts[i] + lengths[i]]`.

    `rows` (n,) are row numbers of the source, `labels` (n,) classes or numbers, `starts` and
    `lengths` (n,) whole numbers, `types` the segment id of each of the `ids`, or None. The `ids`
    are the whole split's. They are read-only and mapped into memory, so that all runs on a machine
    share them.

    Where text is to be predicted, the first `given` (n,) tokens of an example carry no loss, and
    its label is the number of tokens that do; otherwise `given` is None.
    """

    rows: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    types: np.ndarray | None
    given: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> "Examples":
        """Return the examples at these places, in this order; their tokens are not copied."""
        return replace(
            self,
            rows=self.rows[index],
            labels=self.labels[index],
            starts=self.starts[index],
            lengths=self.lengths[index],
            given=None if self.given is None else self.given[index],
        )

    def weight(self, index: np.ndarray | None = None) -> int:
        """Return what the summed loss of some examples, or of all, is divided by for the mean.

        That is their number or, where text is predicted, that of the tokens that carry loss.
        """
        if self.given is None:
            return len(self) if index is None else len(index)
        return int((self.labels if index is None else self.labels[index]).sum())


def load_run(spec: RunSpec, tokens: Path) -> dict[str, Examples]:
    """Load what a run trains on and the splits that it is scored on; raises as `load_examples`."""
    whole = functools.cache(functools.partial(_whole_split, spec, tokens))
    return {split: _used(spec, whole, split) for split in ("train", *scored_splits(spec, tokens))}


def load_examples(spec: RunSpec, tokens: Path, split: str) -> Examples:
    """Map the rows of a split that a run uses into memory.

    "selection" is the part of the training split that `selection_rows` of the spec holds out
    (`held_out`). "train" are its other rows, or as many of them as `train_rows` says, by
    `train_draw`. Of any other split these are the first `validation_rows`.

    Raises:
        UserError: the split has fewer rows than the spec asks for, was cut at another length, or
            its file was changed after it was made.
    """
    return _used(spec, functools.partial(_whole_split, spec, tokens), split)


def _used(spec: RunSpec, read: Callable[[str], Examples], split: str) -> Examples:
    """Return the rows of a split that a run uses; `read` returns a whole one of the token files."""
    whole = read("train" if split == "selection" else split)
    if split == "selection":
        return whole.take(held_out(whole.labels, spec))
    if split == "train" and spec.selection_rows is not None:
        whole = whole.take(np.setdiff1d(np.arange(len(whole)), held_out(whole.labels, spec)))
    asked = spec.train_rows if split == "train" else spec.validation_rows
    if asked is None or asked == len(whole):
        return whole
    if asked > len(whole):
        raise UserError(
            f"{split}_rows: {asked} asked, but task {spec.task.name!r} has {len(whole)} "
            f"(legal: 1 to {len(whole)}, or null for all)"
        )
    drawn = split == "train" and spec.train_draw == "seed"
    return whole.take(_drawn(spec.seed, len(whole), asked) if drawn else np.arange(asked))


def _drawn(seed: int, rows: int, asked: int) -> np.ndarray:
    """Return the places of the training rows that a seed draws, in the split's order.

    They depend on the seed and the number of rows only: twins get the same rows, and fewer rows
    are a part of more.
    """
    random = np.random.default_rng(derive_seed(seed, "train rows"))
    return np.sort(random.permutation(rows)[:asked])


def held_out(labels: np.ndarray, spec: RunSpec) -> np.ndarray:
    """Return the places of the rows that a run holds out of the training split, in order.

    They depend on the task and on `selection_rows` alone, so that they are the same for all its
    runs. Classes keep their shares, up to rounding (by largest remainders).

    Args:
        labels: classes or numbers (n,) of the whole training split.
        spec: the run; its `selection_rows` is not None.

    Raises:
        UserError: no training row would be left, or a class would have no row in the selection or
            none to train on.
    """
    count, where = spec.selection_rows or 0, f"selection_rows: {spec.selection_rows}"
    if count >= len(labels):
        raise UserError(
            f"{where} leaves no training row: task {spec.task.name!r} has {len(labels)} "
            f"(legal: 1 to {len(labels) - 1}, or null for none)"
        )
    order = np.random.default_rng(derive_seed(0, "selection", spec.task.name)).permutation
    if not spec.task.classes:
        return np.sort(order(len(labels))[:count])
    classes, sizes = np.unique(labels, return_counts=True)
    exact = count * sizes / len(labels)
    quotas = np.floor(exact).astype(int)
    more = np.argsort(quotas - exact, kind="stable")[: count - quotas.sum()]
    quotas[more] += 1
    for label, size, quota in zip(classes, sizes, quotas, strict=True):
        if not 0 < quota < size:
            name, lacks = spec.task.classes[int(label)], "none" if quota == 0 else "all"
            raise UserError(f"{where} takes {lacks} of the {size} training rows of class {name!r}")
    mixed = order(len(labels))
    parts = [mixed[labels[mixed] == c][:q] for c, q in zip(classes, quotas, strict=True)]
    return np.sort(np.concatenate(parts))


def _whole_split(spec: RunSpec, tokens: Path, split: str) -> Examples:
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
    ids = table["ids"]
    offsets, names = ids.offsets.to_numpy(), table.schema.names
    return Examples(
        rows=table["row"].to_numpy(zero_copy_only=False),
        labels=table["label"].to_numpy(zero_copy_only=False),
        starts=offsets[:-1],
        lengths=np.diff(offsets),
        ids=ids.values.to_numpy(),
        types=table["types"].values.to_numpy() if "types" in names else None,
        given=table["given"].to_numpy(zero_copy_only=False) if "given" in names else None,
    )


def scored_splits(spec: RunSpec, tokens: Path) -> list[str]:
    """Return the names of the splits that a run is scored on.

    "selection" if rows are held out for it; then, unless `validate_epochs` is "none",
    "validation" and the fetched splits of `also_validate`.
    """
    held = ["selection"] if spec.selection_rows else []
    if spec.validate_epochs == "none":
        return held
    absent = read_json(Path(tokens) / "manifest.json")["absent"]
    also = [name for name in spec.task.also_validate if name not in absent]
    return [*held, "validation", *also]


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
        # Stable: how another sort orders equal lengths depends on the CPU's instructions.
        order = np.concatenate(
            [block[np.argsort(lengths[block], kind="stable")] for block in blocks]
        )
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    if batching == "length_grouped":
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return batches


def sorted_batches(lengths: np.ndarray, batch: int) -> list[np.ndarray]:
    """Cut rows sorted by length into batches, for evaluation; the last may be short."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch] for i in range(0, len(order), batch)]


NO_LOSS = -100
"""The label of a token that carries no loss, as transformers and torch have it."""


def labels_tensor(examples: Examples, index: np.ndarray, spec: RunSpec) -> torch.Tensor:
    """Return the labels of the chosen examples: classes in int64, numbers in float32.

    Where text is predicted these are the tokens themselves (len(index), longest or max_length),
    padded as `collate` pads them, and `NO_LOSS` for those that carry no loss.
    """
    if examples.given is not None:
        real, at = _places(examples, index, spec)
        counted = real & (np.arange(real.shape[1]) >= examples.given[index][:, None])
        return torch.from_numpy(np.where(counted, examples.ids[at], NO_LOSS).astype(np.int64))
    labels = torch.from_numpy(examples.labels[index])
    return labels.float() if labels.is_floating_point() else labels.long()


def _places(examples: Examples, index: np.ndarray, spec: RunSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return which places of a padded batch hold tokens, and where these are in `ids`."""
    lengths = examples.lengths[index]
    column = np.arange(spec.max_length if spec.padding == "max_length" else lengths.max())
    real = column < lengths[:, None]  # (rows, width)
    return real, np.where(real, examples.starts[index][:, None] + column, 0)


def collate(examples: Examples, index: np.ndarray, spec: RunSpec, pad: int) -> dict:
    """Pad the chosen examples to a batch of tensors (len(index), longest or max_length).

    A batch in which nothing is padded has no attention_mask: models then attend to all tokens and
    save the cost of a mask.
    """
    real, at = _places(examples, index, spec)

    def padded(values: np.ndarray, fill: int) -> torch.Tensor:
        return torch.from_numpy(np.where(real, values[at], fill).astype(np.int64))

    batch = {"input_ids": padded(examples.ids, pad)}
    if not real.all():
        batch["attention_mask"] = torch.from_numpy(real.astype(np.int64))
    if examples.types is not None:
        batch["token_type_ids"] = padded(examples.types, 0)
    return batch
