"""What changes the digest of code, and what does not."""

import shutil

import pytest

from loraudit.base import code_digest
from loraudit.studies.methods import METHODS


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Give a copy of the package and scripts whose files may be edited."""
    package = tmp_path / "loraudit"
    shutil.copytree(code_digest.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree("scripts", tmp_path / "scripts")
    monkeypatch.setattr(code_digest, "PACKAGE", package)
    return tmp_path


def digests(tree) -> dict[str, str]:
    code_digest._parsed.cache_clear()
    out = {
        method: code_digest.code_digest(tree / "scripts/train.py", module)
        for name, method in METHODS.items()
    }
    for name in ("crosscheck", "collect", "figures", "report", "fetch_task"):
        out[name] = code_digest.code_digest(tree / "scripts" / f"{name}.py")
    return out


def changed_by(tree, file: str, old: str, new: str) -> set[str]:
    before, path = digests(tree), tree / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    after = digests(tree)
    return {name for name in before if before[name] != after[name]}


TRAINED = set(METHODS)


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("loraudit/lora.py", "class LoRALinear", "# a comment\nclass LoRALinear", set()),
        ("loraudit/lora.py", "A frozen `nn.Linear` plus", "Another docstring", set()),
        ("loraudit/lora.py", "= alpha / rank", "= alpha * rank", {"lora", "alora", "crosscheck"}),
        ("loraudit/gates.py", "layer.rank > 0", "layer.rank > 1", {"alora"}),
        ("loraudit/adalora.py", "if not weight", "if weight", {"adalora"}),
        ("loraudit/baselines.py", '== "full"', '!= "full"', {"full", "bitfit", "head"}),
        ("loraudit/train.py", "journal.batch += 1", "journal.batch += 2", TRAINED),
        ("loraudit/glue_metric.py", "f1_score", "fbeta_score", TRAINED),
        ("loraudit/figures.py", "markersize=5", "markersize=4", {"figures", "report"}),
        ("scripts/train.py", "required=True", "required=False", TRAINED),
    ],
)
def test_an_edit_changes_what_depends_on_it(tree, file, old, new, expected):
    assert changed_by(tree, file, old, new) == expected
