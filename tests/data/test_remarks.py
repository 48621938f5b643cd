"""What is said of rows that make a score mean less than it seems to."""

import pandas as pd
import pytest

from loraudit.data.remarks import also_in_train, remarks, split_keys
from tiny import make_task


def table(texts: list[str], labels: list[int], second: list[str] | None = None) -> pd.DataFrame:
    pairs = {} if second is None else {"text_2": second}
    return pd.DataFrame({"text_1": texts, **pairs, "label": labels})


def said(train: pd.DataFrame, validation: pd.DataFrame, **task) -> list[str]:
    tables = {"train": train, "validation": validation}
    keys = {split: split_keys(rows) for split, rows in tables.items()}
    return remarks(tables, make_task(**task), also_in_train(tables, keys))


def test_of_sound_rows_nothing_is_said():
    assert said(table(["a", "b"], [0, 1]), table(["c", "d"], [0, 1])) == []


def test_rows_that_are_in_train_are_counted_whatever_their_case_and_spacing():
    train = table(["A good film.", "a bad film", "a bad film", "x"], [1, 0, 1, 0])
    validation = table(["a  GOOD film", "A bad film!", "a good film?", "new"], [1, 0, 0, 1])
    tables = {"train": train, "validation": validation}
    counts = also_in_train(tables, {split: split_keys(rows) for split, rows in tables.items()})
    assert counts == {"validation": {"rows": 3, "other_label": 1}}
    (sentence,) = said(train, validation)
    assert "3 of 4 rows (75.0 %) are also in train" in sentence
    assert "1 of them with another label" in sentence


def test_a_pair_is_in_train_if_both_texts_are_there_together():
    train = table(["a", "c"], [0, 1], ["b", "d"])
    both, mixed = table(["A."], [0], ["b"]), table(["a"], [0], ["d"])
    counts = [
        also_in_train(
            {"train": train, "x": rows}, {"train": split_keys(train), "x": split_keys(rows)}
        )
        for rows in (both, mixed)
    ]
    assert [count["x"]["rows"] for count in counts] == [1, 0]


def test_texts_of_signs_alone_are_not_all_equal():
    assert said(table([":-)", "?"], [1, 0]), table([":-(", "!"], [0, 1])) == []


def test_a_class_without_rows_and_one_with_nearly_all():
    texts = [f"t{i}" for i in range(100)]
    found = said(table(texts, [0] * 99 + [1]), table(["v", "w"], [1, 1]))
    assert found == [
        "train: 99.0 % of the rows are of class 'negative': always answering 'negative' is right "
        "on as many",
        "validation: class 'negative' has no row: its score is not measured",
        "validation: 100.0 % of the rows are of class 'positive': always answering 'positive' is "
        "right on as many",
    ]


def test_a_number_to_predict_has_no_classes_to_remark_on():
    task = {"classes": [], "metrics": ["pearson"], "headline": "pearson"}
    assert said(table(["a", "b"], [0.5, 0.5]), table(["c", "d"], [0.1, 0.2]), **task) == []


@pytest.mark.parametrize("blank", ["", " \t"])
def test_an_empty_text_of_a_pair_is_counted(blank):
    train = table(["a", "b"], [0, 1], [blank, "d"])
    found = said(train, table(["e", "f"], [0, 1], ["g", "h"]))
    assert found == ["train: 1 texts of pairs are empty"]
