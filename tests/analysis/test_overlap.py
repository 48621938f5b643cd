"""Tasks that are made of the same texts are found, and never count as two."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from loraudit.analysis.overlap import overlap_sentences, overlaps
from loraudit.base.text_keys import TEXTS, text_keys
from loraudit.studies.known import SharedTexts
from loraudit.studies.study import Run, Study
from tiny import make_spec, make_task


def fetched(folder: Path, **tasks: dict[str, list[list[str]]]) -> dict[str, Path]:
    """Write the keys of tasks' texts: {split: a list of texts per column}."""
    for name, splits in tasks.items():
        (folder / name).mkdir()
        keys = {
            s: np.stack([text_keys(c) for c in columns], axis=1) for s, columns in splits.items()
        }
        save_file(keys, folder / name / TEXTS)
    return {name: folder / name for name in tasks}


ONE = {"train": [["a", "b", "c"]], "validation": [["d", "e"]]}
PAIR = {"train": [["x", "D!"], ["A", "y"]], "validation": [["z"], ["b"]]}
"""Two of its three rows have a text of `ONE`: "A" and "D!" in train; "b" in validation."""


def study(warm_start=None, **changes) -> Study:
    specs = [
        make_spec(task=make_task(name="pair"), warm_start=warm_start),
        make_spec(task=make_task(name="one")),
    ]
    runs = [Run(id=f"{s.task.name}/tiny/x/s0", label="", spec=s) for s in specs]
    return Study(name="two", question="", runs=tuple(runs), **changes)


def test_rows_with_a_text_of_the_other_task_are_counted_both_ways(tmp_path):
    found = overlaps(fetched(tmp_path, one=ONE, pair=PAIR)).set_index("task").T.to_dict()
    assert found["one"] == {
        "other": "pair", "rows": 5, "in_other": 3, "validation": 2, "in_others_train": 1,
    }  # fmt: skip
    assert found["pair"] == {
        "other": "one", "rows": 3, "in_other": 3, "validation": 1, "in_others_train": 1,
    }  # fmt: skip


def test_a_task_that_is_not_fetched_is_left_out(tmp_path):
    folders = fetched(tmp_path, one=ONE, pair=PAIR) | {"third": tmp_path / "third"}
    assert set(overlaps(folders).task) == {"one", "pair"}
    assert overlaps({"one": folders["one"]}).empty


def test_tasks_of_one_source_are_no_confirmation_of_each_other(tmp_path):
    found = overlaps(fetched(tmp_path, one=ONE, pair=PAIR))
    (said,) = overlap_sentences(study(), found)
    assert "3 of the 5 rows of one" in said and "is no confirmation" in said


def test_texts_that_anyone_writes_do_not_count(tmp_path):
    texts = [f"text {i}" for i in range(300)]
    many = {"train": [["Great product.", *texts]], "validation": [["v"]]}
    other = {"train": [["great product", *(f"other {t}" for t in texts)]], "validation": [["w"]]}
    found = overlaps(fetched(tmp_path, one=many, pair=other))
    assert found.in_other.tolist() == [1, 1]
    assert overlap_sentences(study(), found) == []


def test_a_start_from_a_task_with_the_validation_rows_is_said(tmp_path):
    start = {"run": "one/tiny/x/s0", "spec_sha256": "0" * 64, "tensors": "adapter"}
    found = overlaps(fetched(tmp_path, one=ONE, pair=PAIR))
    said = overlap_sentences(study(start), found)
    assert len(said) == 2
    assert said[1].startswith(
        "runs on pair start from one, whose training rows have the texts of 1"
    )


def test_what_the_files_say_already_is_not_repeated(tmp_path):
    known = SharedTexts(task="one", other="pair", what="all")
    found = overlaps(fetched(tmp_path, one=ONE, pair=PAIR))
    assert overlap_sentences(study(shared_texts=(known,)), found) == []


@pytest.mark.parametrize(("one", "two", "equal"), [("A  b!", "a B", True), (":)", ":(", False)])
def test_texts_are_equal_but_for_case_punctuation_and_space(one, two, equal):
    assert (text_keys([one])[0] == text_keys([two])[0]) == equal
