"""Tokenising and batching."""

import numpy as np
import pytest
import torch
import transformers

from conftest import make_spec
from loraudit.errors import UserError
from loraudit.tasks import collate, global_batches, load_examples

LENGTHS = np.random.default_rng(0).integers(3, 60, 1003)


@pytest.mark.parametrize("batching", ["shuffle", "length_grouped"])
def test_an_epoch_holds_every_row_once(batching):
    batches = global_batches(LENGTHS, 16, batching, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert sorted(map(len, batches))[:2] == [11, 16]
    again = global_batches(LENGTHS, 16, batching, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_length_grouping_saves_padding():
    def padded(batching):
        batches = global_batches(LENGTHS, 16, batching, np.random.default_rng(1))
        return sum(len(batch) * LENGTHS[batch].max() for batch in batches) / LENGTHS.sum()

    assert padded("length_grouped") < 1.1 < 1.5 < padded("shuffle")


def test_subsets_and_padding(tiny):
    spec = make_spec(train_rows=10, max_length=9)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "model")
    examples = load_examples(spec, tiny / "task", "train", tokenizer)
    assert len(examples) == 10
    assert examples.lengths.max() <= 9
    index = np.array([0, 3])
    batch = collate(examples, index, spec, pad_id=0)
    assert batch["input_ids"].shape == (2, max(examples.lengths[index]))
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor(examples.lengths[index]))
    fixed = collate(examples, index, spec.model_copy(update={"padding": "max_length"}), pad_id=0)
    assert fixed["input_ids"].shape == (2, 9)
    with pytest.raises(UserError, match=r"train_rows: 257 asked, .* has 256 .legal: 1 to 256"):
        load_examples(make_spec(train_rows=257), tiny / "task", "train", tokenizer)
