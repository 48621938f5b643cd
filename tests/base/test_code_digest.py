"""What changes the digest of code, and what does not."""

import ast
import shutil
import textwrap
from pathlib import Path

import pytest

from loraudit.base import code_digest
from loraudit.report.figure_registry import FIGURES
from loraudit.report.table_registry import TABLES, early_tables, table_modules
from loraudit.studies.methods import METHODS

TRAINED = set(METHODS)
BASELINES = {"full", "full_saved", "bitfit", "head"}
SHOWN = {figure.module for figure in FIGURES.values()} | set(table_modules(TABLES))
SCRIPTS = ("crosscheck", "collect", "subspace", "fetch_task", "fetch_model")
PROGRAMS: dict[str, tuple] = {
    **{name: (name, ()) for name in SCRIPTS},
    "cost figures": ("figures", [FIGURES["cost"].module]),
    "curves": ("figures", [FIGURES["learning_curves"].module]),
    "tables": ("tables", table_modules(early_tables())),
    "report": ("report", SHOWN),
}
"""What a digest is of, by name: a program, and the modules that its rule names."""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Give a function that writes a package "loraudit" and a script, and returns its closure."""

    def write(script: str, **files: str) -> set[str]:
        shutil.rmtree(tmp_path / "loraudit", ignore_errors=True)
        for name, text in {"script": script, **files}.items():
            inside = "" if name == "script" else "loraudit/"
            path = tmp_path / f"{inside}{name.replace('__init__', 'INIT').replace('__', '/')}.py"
            path = path.with_name(path.name.replace("INIT", "__init__"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        code_digest._parsed.cache_clear()
        return set(code_digest.closure(tmp_path / "script.py"))

    monkeypatch.setattr(code_digest, "PACKAGE", tmp_path / "loraudit")
    return write


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import loraudit.sub.a", {"sub", "sub.a"}),
        ("import loraudit.sub.a as x, os", {"sub", "sub.a"}),
        ("import loraudit.sub", {"sub"}),
        ("from loraudit import sub", {"sub"}),
        ("from loraudit.sub import a", {"sub", "sub.a"}),
        ("from loraudit.sub.a import ONE", {"sub", "sub.a"}),
        ("from loraudit.sub import *", {"sub"}),
        ("def f():\n    import loraudit.sub.a", {"sub", "sub.a"}),
        ("try:\n    import loraudit.sub.a\nexcept ImportError:\n    pass", {"sub", "sub.a"}),
    ],
)
def test_every_form_of_import_is_seen_with_the_packages_around_it(package, line, found):
    modules = {"sub____init__": "", "sub__a": "ONE = 1", "__init__": ""}
    assert package(line, **modules) == {"loraudit", *(f"loraudit.{name}" for name in found)}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from . import b", {"one.b"}),
        ("from .b import ONE", {"one.b"}),
        ("from .. import other", {"other"}),
        ("from ..two.b import ONE", {"two", "two.b"}),
        ("from ..two import b", {"two", "two.b"}),
    ],
)
def test_relative_imports_are_seen(package, line, found):
    modules = {name: "" for name in ("other", "one__b", "two____init__", "two__b", "__init__")}
    expected = {"loraudit", "loraudit.one", "loraudit.one.a", *(f"loraudit.{n}" for n in found)}
    assert package("import loraudit.one.a", one____init__="", one__a=line, **modules) == expected


def test_a_packages_init_is_code_that_runs_and_its_relative_imports_start_inside_of_it(package):
    modules = {"__init__": "", "sub__a": "", "sub__b": "", "b": ""}
    found = package("import loraudit.sub.a", sub____init__="from . import b", **modules)
    assert found == {"loraudit", "loraudit.sub", "loraudit.sub.a", "loraudit.sub.b"}


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_imports_for_type_checkers_alone_do_not_count(package, test):
    script = f"""
    import typing
    from typing import TYPE_CHECKING
    if {test}:
        from loraudit.a import One
    else:
        import loraudit.b
    """
    assert package(script, __init__="", a="", b="") == {"loraudit", "loraudit.b"}


def test_a_file_named_in_a_string_is_found_beside_the_file_that_names_it(package):
    modules = {"__init__": "", "sub__other": "", "other": "", "sub__long": ""}
    found = package("import loraudit.sub.a", sub__a="NAME = 'other.py'", **modules)
    assert found == {"loraudit", "loraudit.sub.a", "loraudit.sub.other"}
    found = package("import loraudit.sub.a", sub__a="NAME = '../other.py'", **modules)
    assert found == {"loraudit", "loraudit.sub.a", "loraudit.other"}
    strings = ("'''named in text: other.py'''", "'\\0other.py'", f"'{'x' * 5000}.py'")
    for text in strings:
        assert package("import loraudit.sub.a", sub__a=f"NAME = {text}", **modules) == {
            "loraudit",
            "loraudit.sub.a",
        }


def digest_of(package, tmp_path, script: str, **files: str) -> str:
    package(script, **files)
    return code_digest.code_digest(tmp_path / "script.py")


def test_two_modules_of_one_name_are_two(package, tmp_path):
    """What one holds and the other holds may not be exchanged unseen."""
    script = "import loraudit.a.x.same, loraudit.b.x.same"
    made = {
        digest_of(package, tmp_path, script, a__x__same=f"V = {one}", b__x__same=f"V = {two}")
        for one, two in ((1, 2), (2, 1))
    }
    assert len(made) == 2


def test_a_named_module_that_is_not_there_is_an_error(package, tmp_path):
    package("")
    with pytest.raises(ModuleNotFoundError, match=r"loraudit\.nope"):
        code_digest.code_digest(tmp_path / "script.py", "loraudit.nope")


def test_where_the_script_is_called_from_does_not_matter(monkeypatch):
    """Snakemake names it from the repository's folder, the running script by its whole path."""
    here = code_digest.code_digest("scripts/train.py")
    assert code_digest.code_digest(Path("scripts/train.py").absolute()) == here
    monkeypatch.chdir("scripts")
    assert code_digest.code_digest("train.py") == here


SAME = [
    ("x = 1", "x = 1  # a comment"),
    ("x = 1", "'''A docstring.'''\n\n\nx = (\n    1\n)"),
    ("def f():\n    return 1", "def f():\n    'Return one.'\n    return 1"),
    ("x = 'a' 'b'", 'x = "ab"'),
    ("x = f'a{y}' 'b'", "x = f'a{y}b'"),
    ("x = 1_000", "x = 1000"),
    ("if y:\n    'text'\n    z()", "if y:\n    z()"),
    ("import a", "import a\nif TYPE_CHECKING:\n    import b"),
]
DIFFERENT = [
    ("x = 1", "x = 1.0"),
    ("x = 1", "x = True"),
    ("x = 'a'", "x = b'a'"),
    ("x = '1'", "x = 1"),
    ("x = None", "x = []"),
    ("x = None", "x: int"),
    ("f(*a)", "f(**a)"),
    ("{**a, b: c}", "{b: c, **a}"),
    ("def f(a, *, b, c=1): pass", "def f(a, *, b=1, c): pass"),
    ("def f(a, /): pass", "def f(a): pass"),
    ("x = a or b and c", "x = (a or b) and c"),
    ("x = f'{y!r}'", "x = f'{y!s}'"),
    ("x = f'{y:>3}'", "x = f'{y:>4}'"),
    ("x = f'{y}a'", "x = f'a{y}'"),
    ("from a import b", "from .a import b"),
    ("match x:\n    case None: pass", "match x:\n    case True: pass"),
    ("if a:\n    b()\nelse:\n    c()", "if a:\n    b()\nc()"),
    ("for a in b: pass", "async def f():\n    async for a in b: pass"),
    ("x = a[1:]", "x = a[:1]"),
    ("class A(B): pass", "class A: pass"),
    ("def f(x): return x", "def f(x: int): return x"),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_layout_and_texts_that_nobody_reads_do_not_count(package, tmp_path, one, two):
    assert digest_of(package, tmp_path, one) == digest_of(package, tmp_path, two)


@pytest.mark.parametrize(("one", "two"), DIFFERENT)
def test_everything_else_counts(package, tmp_path, one, two):
    assert digest_of(package, tmp_path, one) != digest_of(package, tmp_path, two)


def newer(node: ast.AST) -> ast.AST:
    """Rewrite a tree of Python 3.11 in the ways in which those of 3.12 and 3.13 differ."""
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            part.type_params = []
            part._fields = (*part._fields, "type_params")
        if isinstance(part, ast.JoinedStr):  # an f-string's empty parts come and go by version
            part.values = [ast.Constant(""), *part.values]
    return node


def test_a_trees_text_does_not_depend_on_the_version_of_python():
    """Only 3.11 is here to run: the other versions' trees are made from its own."""
    code = """
class A:
    async def f(self, x, *more, y=None, **others): return f'{x!r:>{y}} text {more}' + u'text'
def g(): return lambda z: [f'', f'{z:}', ..., 1e400, 2j, b'ab', {**z}]
"""
    assert code_digest._text(newer(ast.parse(code))) == code_digest._text(ast.parse(code))
    for file in code_digest.PACKAGE.rglob("*.py"):
        text = file.read_text()
        assert code_digest._text(newer(ast.parse(text))) == code_digest._text(ast.parse(text))


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
        name: code_digest.code_digest(tree / "scripts/train.py", method.module)
        for name, method in METHODS.items()
    }
    for name, (script, modules) in PROGRAMS.items():
        out[name] = code_digest.code_digest(tree / "scripts" / f"{script}.py", *modules)
    return out


def changed_by(tree, file: str, old: str, new: str) -> set[str]:
    before, path = digests(tree), tree / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    after = digests(tree)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("adapters/lora.py", "class LoRALinear", "# a comment\nclass LoRALinear", set()),
        ("adapters/lora.py", "A frozen `nn.Linear` plus", "Another docstring", set()),
        ("adapters/lora.py", "= alpha / rank", "= alpha * rank", {"lora", "alora", "crosscheck"}),
        ("training/resize_ranks.py", "layer.rank > 0", "layer.rank > 1", {"alora"}),
        ("training/methods/adalora.py", "if not weight", "if weight", {"adalora"}),
        (
            "training/methods/baselines.py",
            "return False",
            "return None",
            BASELINES,
        ),
        ("training/loop.py", "journal.batch += 1", "journal.batch += 2", TRAINED),
        ("training/measures.py", "f1_score", "fbeta_score", TRAINED),
        ("training/__init__.py", '"""', 'import os\n"""', TRAINED | {"crosscheck"}),
        ("report/cost_figures.py", "s=7", "s=8", {"cost figures", "report"}),
        ("report/tables.py", '"disk per task"', '"disk"', {"tables", "report"}),
        ("analysis/section7.py", "MOST = 8", "MOST = 9", {"subspace"}),
        ("data/fetch_task.py", "na_filter=False", "na_filter=True", {"fetch_task"}),
        ("data/fetch_model.py", '"*.txt"', '"*.text"', {"fetch_model"}),
        ("../scripts/train.py", "required=True", "required=False", TRAINED),
    ],
)
def test_an_edit_changes_what_depends_on_it(tree, file, old, new, expected):
    assert changed_by(tree, f"loraudit/{file}", old, new) == expected
