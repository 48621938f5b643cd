"""Splits are read as they are written: text stays text, and each split is read by itself."""

import json

import pandas as pd
import pytest

from loraudit.base.errors import UserError
from loraudit.data.fetch_task import fetch_task
from tiny import make_task

WORDS = ["00007", "0.50", "true", "NA", "null", "None", "nan", "N/A", "1e3", "2020-01-01", "a,b"]
"""Texts that a reader which guesses types would change or drop."""

TASK = {"text": ["text"], "label": "label"}
NUMBER = {**TASK, "classes": [], "metrics": ["pearson"], "headline": "pearson"}


def write(file, rows: dict) -> None:
    """Write columns as the kind of file that the name says."""
    table = pd.DataFrame(rows)
    if file.suffix == ".jsonl":
        columns = zip(*rows.values(), strict=True)
        lines = [json.dumps(dict(zip(rows, row, strict=True))) for row in columns]
        file.write_text("\n".join(lines))
    elif file.suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="\t" if file.suffix == ".tsv" else ",")


def fetched(folder, changes: dict, splits: dict[str, dict], suffix: str = ".csv") -> dict:
    """Write each split as a file, fetch the task, and return its tables."""
    (folder / "data").mkdir()
    for split, rows in splits.items():
        write(folder / "data" / f"{split}{suffix}", rows)
    fetch_task(make_task(source={"folder": str(folder / "data")}, **changes), folder / "out")
    return {split: pd.read_parquet(folder / "out" / f"{split}.parquet") for split in splits}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_texts_are_what_the_file_says(tmp_path, suffix):
    labels = [i % 2 for i in range(len(WORDS))]
    rows = {"text": WORDS, "label": labels}
    digits = {"text": ["000", "001"], "label": [0, 1]}
    tables = fetched(tmp_path, TASK, {"train": rows, "validation": digits}, suffix)
    assert tables["train"].text_1.tolist() == WORDS
    assert tables["train"].label.tolist() == labels
    assert tables["validation"].text_1.tolist() == digits["text"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_splits_do_not_share_types(tmp_path, suffix):
    """Whole numbers in one split and fractions in the other, digits and words."""
    train = {"text": ["000", "111"], "label": [1, 2]}
    validation = {"text": ["words", "more"], "label": [1.5, 2.25]}
    tables = fetched(tmp_path, NUMBER, {"train": train, "validation": validation}, suffix)
    assert tables["train"].label.tolist() == [1.0, 2.0]
    assert tables["validation"].label.tolist() == [1.5, 2.25]
    assert tables["train"].text_1.tolist() == ["000", "111"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_that_is_not_named_may_be_in_one_split_only(tmp_path, suffix):
    train = {"text": ["a", "b"], "label": [0, 1], "source": ["web", "book"]}
    validation = {"id": [3, 4], "text": ["c", "d"], "label": [0, 1]}
    tables = fetched(tmp_path, TASK, {"train": train, "validation": validation}, suffix)
    assert tables["validation"].text_1.tolist() == ["c", "d"]


def test_names_of_classes_are_labels_too(tmp_path):
    rows = {"text": ["a", "b", "c"], "label": ["positive", "negative", "positive"]}
    tables = fetched(tmp_path, TASK, {"train": rows, "validation": rows})
    assert tables["train"].label.tolist() == [1, 0, 1]


def test_a_missing_text_of_a_pair_is_empty(tmp_path):
    rows = {"one": ["a", "b"], "two": [None, "d"], "label": [0, 1]}
    pair = {"text": ["one", "two"], "label": "label"}
    tables = fetched(tmp_path, pair, {"train": rows, "validation": rows}, ".jsonl")
    assert tables["train"].text_2.tolist() == ["", "d"]


def test_a_text_may_hold_any_line_separator(tmp_path):
    texts = ["one\u2028two", "three\ntwo"]
    rows = {"text": texts, "label": [0, 1]}
    tables = fetched(tmp_path, TASK, {"train": rows, "validation": rows}, ".jsonl")
    assert tables["train"].text_1.tolist() == texts


README = """---
configs:
- config_name: one
  data_files:
  - split: train
    path: train.csv
  - split: validation
    path: {validation}
---
"""


@pytest.mark.parametrize(
    ("files", "readme", "reason"),
    [
        (["train"], "validation-*.csv", "README.md names the split 'validation', whose files are"),
        (["train", "validation", "dev"], None, "files called 'validation' and files called 'dev'"),
        (["train", "test"], None, "split: 'validation' is not known.*legal: test, train"),
    ],
)
def test_a_split_that_is_not_there_or_there_twice_is_one_sentence(tmp_path, files, readme, reason):
    for name in files:
        write(tmp_path / f"{name}.csv", {"text": ["a", "b"], "label": [0, 1]})
    if readme:
        (tmp_path / "README.md").write_text(README.format(validation=readme))
    entry = make_task(source={"folder": str(tmp_path)}, **TASK)
    with pytest.raises(UserError, match=f"^task 'tinytask': folder {tmp_path}: .*{reason}"):
        fetch_task(entry, tmp_path / "out")


def test_a_readme_may_name_both_validation_and_dev(tmp_path):
    for name, text in (("train", "a"), ("validation", "b"), ("dev", "c")):
        write(tmp_path / f"{name}.csv", {"text": [text, text], "label": [0, 1]})
    more = "  - split: dev\n    path: dev.csv\n---\n"
    text = README.format(validation="validation.csv").removesuffix("---\n") + more
    (tmp_path / "README.md").write_text(text)
    for split, there in (("validation", "b"), ("dev", "c")):
        source = {"folder": str(tmp_path), "config": "one"}
        entry = make_task(source=source, validation_split=split, **TASK)
        fetch_task(entry, tmp_path / "out")
        assert pd.read_parquet(tmp_path / "out/validation.parquet").text_1[0] == there


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train.csv", 'text,label\na,0\nb,1,"2",3\n', "train.csv: Error tokenizing.*line 3"),
        ("train.jsonl", '{"text": "a", "label": 0}\n{"text"\n', "train.jsonl: line 2: not valid"),
        ("train.jsonl", '["a", 0]\n', "train.jsonl: row 0: expected an object"),
        ("train.txt", "a\n", "files of kind 'text'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    (tmp_path / name.replace("train", "validation")).write_text(content)
    with pytest.raises(UserError, match=reason):
        fetch_task(make_task(source={"folder": str(tmp_path)}, **TASK), tmp_path / "out")
