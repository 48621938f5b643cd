"""Tokenising and batching."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, write_json
from loraudit.data.batches import (
    Examples,
    collate,
    global_batches,
    held_out,
    labels_tensor,
    load_examples,
    pad_id,
)
from loraudit.data.tokenise import tokenise
from tiny import changed, make_spec, make_task

LENGTHS = np.random.default_rng(0).integers(3, 60, 1003)


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (np.array([1, 0, 1], np.int32), torch.int64),
        (np.array([0.5, 2.5, 4.0], np.float64), torch.float32),  # Apple's GPUs have no float64
    ],
)
def test_labels_have_the_dtype_that_losses_and_devices_take(labels, dtype):
    empty = np.zeros(3, int)
    examples = Examples(empty, labels, empty, empty, empty, None)
    found = labels_tensor(examples, np.array([2, 0]), make_spec())
    assert found.dtype == dtype
    assert found.tolist() == labels[[2, 0]].tolist()


@pytest.mark.parametrize("batching", ["shuffle", "length_grouped"])
def test_an_epoch_holds_every_row_once(batching):
    batches = global_batches(LENGTHS, 16, batching, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert sorted(map(len, batches))[:2] == [11, 16]
    again = global_batches(LENGTHS, 16, batching, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_rows_of_equal_length_keep_their_drawn_order():
    """Another order would make other batches on another kind of CPU, whose sort differs."""
    lengths = np.random.default_rng(0).integers(5, 9, 960)
    order = np.random.default_rng(1).permutation(960)
    blocks = [sorted(order[i : i + 400], key=lambda row: lengths[row]) for i in (0, 400, 800)]
    rows = [row for block in blocks for row in block]
    batches = global_batches(lengths, 8, "length_grouped", np.random.default_rng(1))
    assert sorted(map(tuple, batches)) == sorted(tuple(rows[i : i + 8]) for i in range(0, 960, 8))


def test_length_grouping_saves_padding():
    def padded(batching):
        batches = global_batches(LENGTHS, 16, batching, np.random.default_rng(1))
        return sum(len(batch) * LENGTHS[batch].max() for batch in batches) / LENGTHS.sum()

    assert padded("length_grouped") < 1.1 < 1.5 < padded("shuffle")


@pytest.fixture(scope="module")
def tokens(tiny, tmp_path_factory):
    """Give the tiny task cut at 9 tokens, tokenised in parts."""
    out = tmp_path_factory.mktemp("tokens") / "tiny-9"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraudit.data.tokenise.PART", 100)
        tokenise(tiny / "task", tiny / "model", 9, out)
    return out


def test_subsets_and_padding(tokens):
    spec = make_spec(train_rows=10, max_length=9)
    examples = load_examples(spec, tokens, "train")
    assert len(examples) == len(examples.lengths) == 10
    assert examples.lengths.max() <= 9
    index = np.array([0, 3])
    fixed = collate(examples, index, changed(spec, padding="max_length"), pad=0)
    assert fixed["input_ids"].shape == (2, 9)
    with pytest.raises(UserError, match=r"train_rows: 257 asked, .* has 256 .legal: 1 to 256"):
        load_examples(make_spec(train_rows=257, max_length=9), tokens, "train")


def test_a_subset_is_drawn_by_the_seed_and_is_the_same_for_twins(tokens):
    """Other seeds train on other rows; fewer rows are a part of more; the order is the split's."""

    def rows(**fields) -> list[int]:
        spec = make_spec(**{"train_rows": 100, "max_length": 9, **fields})
        return load_examples(spec, tokens, "train").rows.tolist()

    drawn = rows(seed=1)
    assert len(set(drawn)) == 100 and drawn == sorted(drawn)
    for method in ("peft", "full"):
        assert rows(seed=1, method=method) == drawn
    assert rows(seed=2) != drawn != list(range(100))
    assert set(rows(seed=1, train_rows=40)) < set(drawn)
    assert rows(seed=1, train_rows=None) == rows(seed=1, train_rows=256) == list(range(256))
    assert rows(seed=1, train_draw="first") == rows(seed=2, train_draw="first") == list(range(100))


def test_drawn_rows_have_their_own_tokens_and_labels(tokens):
    whole = load_examples(make_spec(max_length=9), tokens, "train")
    some = load_examples(make_spec(train_rows=50, max_length=9, seed=3), tokens, "train")
    assert (some.labels == whole.labels[some.rows]).all()
    index = np.arange(0, 50, 7)
    spec = make_spec(max_length=9)
    one, two = (collate(some, index, spec, 0), collate(whole, some.rows[index], spec, 0))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_validation_rows_are_the_first_for_every_seed(tokens):
    spec = make_spec(validation_rows=20, max_length=9, seed=4)
    assert load_examples(spec, tokens, "validation").rows.tolist() == list(range(20))


def test_selection_rows_are_never_trained_on_and_the_same_for_all_runs(tokens):
    spec = make_spec(selection_rows=50, max_length=9)
    selection = load_examples(spec, tokens, "selection")
    trained = load_examples(spec, tokens, "train")
    assert (len(selection), len(trained)) == (50, 206)
    assert sorted({*selection.rows} | {*trained.rows}) == list(range(256))
    other = changed(spec, train_rows=20, seed=7, method="head", learning_rate=1e-2)
    assert load_examples(other, tokens, "selection").rows.tolist() == selection.rows.tolist()
    assert set(load_examples(other, tokens, "train").rows) < set(trained.rows)
    whole = load_examples(make_spec(max_length=9), tokens, "train")
    for examples in (selection, trained):  # each row keeps its own tokens and label
        for place in (0, len(examples) - 1):
            row = examples.rows[place]
            assert examples.labels[place] == whole.labels[row]
            span = slice(examples.starts[place], examples.starts[place] + examples.lengths[place])
            start = whole.starts[row]
            expected = whole.ids[start : start + whole.lengths[row]]
            assert examples.ids[span].tolist() == expected.tolist()
    with pytest.raises(UserError, match=r"train_rows: 207 asked, .* has 206"):
        load_examples(changed(spec, train_rows=207), tokens, "train")


@given(st.lists(st.integers(2, 40), min_size=2, max_size=4), st.integers(2, 60))
def test_classes_keep_their_shares_in_the_selection(sizes, count):
    labels = np.random.default_rng(0).permutation(np.repeat(range(len(sizes)), sizes))
    task = make_task(classes=[f"c{i}" for i in range(len(sizes))], metrics=["accuracy"])
    spec = changed(make_spec(selection_rows=count), task=task)
    shares = count * np.array(sizes) / len(labels)
    if count >= len(labels):
        with pytest.raises(UserError, match="leaves no training row"):
            held_out(labels, spec)
        return
    try:
        places = held_out(labels, spec)
    except UserError as error:
        assert "training rows of class 'c" in str(error)
        assert min(shares) < 1 or any(shares + 1 > sizes)
        return
    assert len(places) == len(set(places)) == count
    assert np.abs(np.bincount(labels[places], minlength=len(sizes)) - shares).max() < 1


def test_batches_hold_what_the_tokenizer_gives(tiny, tokens):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "model")
    texts = pd.read_parquet(tiny / "task/train.parquet").text_1.tolist()
    examples = load_examples(make_spec(max_length=9), tokens, "train")
    for index in (np.array([5]), np.arange(40, 56), np.array([255, 0])):
        batch = collate(examples, index, make_spec(max_length=9), tokenizer.pad_token_id)
        expected = tokenizer(
            [texts[i] for i in index], truncation=True, max_length=9, padding=True
        ).convert_to_tensors("pt")
        whole = torch.ones_like(expected["attention_mask"])
        batch.setdefault("attention_mask", whole)  # left out where nothing is padded
        assert set(batch) <= set(expected)
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_a_mask_is_given_only_where_there_is_padding(tokens):
    spec = make_spec(max_length=9)
    examples = load_examples(spec, tokens, "train")
    same = np.flatnonzero(examples.lengths == 9)[:4]
    other = np.array([same[0], np.flatnonzero(examples.lengths < 9)[0]])
    assert "attention_mask" not in collate(examples, same, spec, pad=0)
    mask = collate(examples, other, spec, pad=0)["attention_mask"]
    assert torch.equal(mask.sum(1), torch.tensor(examples.lengths[other]).long())


def test_token_files_that_do_not_fit_are_refused(tokens, tmp_path):
    with pytest.raises(UserError, match="cut at max_length 9, the run has 64"):
        load_examples(make_spec(max_length=64), tokens, "train")
    edited = shutil.copytree(tokens, tmp_path / "edited")
    content = bytearray((edited / "train.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (edited / "train.arrow").write_bytes(content)
    with pytest.raises(UserError, match="changed since it was made"):
        load_examples(make_spec(max_length=9), edited, "train")


def test_a_tokenizer_without_padding_fills_with_its_end_of_text(tiny, tmp_path, capsys):
    model = shutil.copytree(tiny / "model", tmp_path / "model")
    config = read_json(model / "tokenizer_config.json")
    config.pop("pad_token")
    write_json(model / "tokenizer_config.json", config | {"eos_token": "[SEP]"})
    tokenise(tiny / "task", model, 9, tmp_path / "out")
    assert pad_id(tmp_path / "out") == 3
    assert "no padding token; its end-of-text token '[SEP]' (3) fills" in capsys.readouterr().err


def test_a_tokenizer_without_padding_leaves_nothing(tiny, tmp_path):
    model = shutil.copytree(tiny / "model", tmp_path / "model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (model / name).exists():
            config = read_json(model / name)
            config.pop("pad_token", None)
            write_json(model / name, config)
    with pytest.raises(UserError, match="no padding token, and no end-of-text token"):
        tokenise(tiny / "task", model, 9, tmp_path / "out")
    assert not (tmp_path / "out").exists()
