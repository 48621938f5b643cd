"""YAML that people write: no key is lost because it stands there twice."""

from pathlib import Path

import pytest

from loraudit.base.errors import UserError
from loraudit.base.written_yaml import read_written, refuse_doubled


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' stands there twice (before that in line 1)"),
        ("a:\n  - {b: 1, b: 2}\n", "line 2: key 'b' stands there twice (before that in line 2)"),
        ("a: &x\n  c: 1\n  c: 1\nb: *x\n", "line 3: key 'c' stands there twice"),
    ],
)
def test_a_key_that_stands_there_twice_is_refused(tmp_path, text, lines):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_written(path)
    assert str(caught.value).startswith(f"{path}, {lines}")


def test_aliases_and_merged_keys_are_no_doubles(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &x {c: 1}\nb: {<<: *x, c: 2}\nd: [*x, *x]\n1: x\n'1': y\n")
    assert read_written(path) == {
        "a": {"c": 1},
        "b": {"c": 2},
        "d": [{"c": 1}] * 2,
        1: "x",
        "1": "y",
    }


def test_no_shipped_file_has_a_key_twice():
    for path in Path("config").rglob("*.yaml"):
        refuse_doubled(path)
