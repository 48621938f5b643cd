"""A digest of the code behind a rule: a result is fresh if the present code computed it.

Snakemake does not see an edit of a library under a `shell:` rule. Every rule therefore carries
`params: code=`, a digest of its script and of the loraudit modules that run when it runs: those it
imports, anywhere in its code, those that they import, and the `__init__` of the packages around
them. Comments, docstrings, layout and what stands under `if TYPE_CHECKING:` do not run and do not
count. Everything else does.
"""

import ast
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from loraudit.base.shipped import shipped

PACKAGE = Path(__file__).parents[1]

FILE_NAME = re.compile(r"[\w./-]{1,200}\.py")
"""A string in the code that may be the path of a Python file."""


def code_digest(script: Path | str, *modules: str, data: str = "") -> str:
    """Return the digest of a script, of named modules, and of all that they import from here.

    A script's relative path starts in the repository's folder (shipped.py).
    A module that is chosen at run time (importlib) is not seen in the code and must be named.
    A string that names a .py file of the package, relative to the folder of the file that it
    stands in, counts as an import of that file. `data` is text that decides what the code does.

    Raises:
        ModuleNotFoundError: this package has no module of a given name.
    """
    script = shipped(script).absolute()
    files = _closure(script, modules)
    parts = [f"{name}:{_parsed(file, name)[0]}" for name, file in sorted(files.items())]
    parts.append(f"{script.parent.name}/{script.name}:{_parsed(script, '')[0]}")
    parts += [data] if data else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def closure(script: Path | str, *modules: str) -> list[str]:
    """Return the dotted names of the modules that the digest of the same arguments covers."""
    return sorted(_closure(shipped(script).absolute(), modules))


def _closure(script: Path, modules: tuple[str, ...]) -> dict[str, Path]:
    """Return {dotted name: file} of all modules behind a script, without the script."""
    for name in modules:
        if _module_file(name) is None:
            raise ModuleNotFoundError(f"no module {name} in {PACKAGE}")
    pending = [*modules, *_parsed(script, "")[1]]
    files: dict[str, Path] = {}
    while pending:
        name = pending.pop()
        if not name or name in files:
            continue
        pending.append(name.rpartition(".")[0])  # the packages around a module run first
        if (file := _module_file(name)) is not None:
            files[name] = file
            pending += _parsed(file, name)[1]
    return files


def _module_file(name: str) -> Path | None:
    """Return the file of a loraudit module or package, None for anything else."""
    package, *inside = name.split(".")
    if package != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*inside)
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


@functools.cache
def _parsed(file: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of one file's code, and the names that it imports.

    Args:
        file: the file to read.
        name: the dotted name from which its relative imports start; empty for a script.
    """
    tree = _WhatRuns().visit(ast.parse(file.read_text(encoding="utf-8"), str(file)))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    nodes = list(ast.walk(tree))
    imported = {*_imports(nodes, package), *_named_files(nodes, file.parent)}
    return hashlib.sha256(_text(tree).encode()).hexdigest(), tuple(sorted(imported))


class _WhatRuns(ast.NodeTransformer):
    """Remove string statements, such as docstrings, and blocks under `if TYPE_CHECKING:`."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Look into statements alone: an expression holds none."""
        return node if isinstance(node, ast.expr) else super().generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Remove an expression statement that is a string alone."""
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Replace an `if TYPE_CHECKING:` by what stands under its `else`."""
        self.generic_visit(node)
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
        return node.orelse if name == "TYPE_CHECKING" else node


def _text(node: object) -> str:
    """Write a syntax tree in a way that is the same in Python 3.11 to 3.13.

    Fields that are None or an empty list are left out, because newer versions add such fields. The
    parts of an f-string are joined first, because versions cut them differently.
    """
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!a}"
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    texts = []
    for key in sorted(node._fields):
        value = getattr(node, key, None)
        if isinstance(node, ast.JoinedStr):
            value = _joined(node.values)
        elif key == "format_spec" and isinstance(value, ast.JoinedStr):
            value = _joined(value.values)
        if value is not None and value != []:
            texts.append(f"{key}={_text(value)}")
    return f"{type(node).__name__}({','.join(texts)})"


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """Return an f-string's parts with neighbouring texts as one, and without empty texts."""
    joined: list[ast.expr] = []
    for part in values:
        last = joined[-1] if joined else None
        if isinstance(part, ast.Constant) and isinstance(last, ast.Constant):
            joined[-1] = ast.Constant(f"{last.value!s}{part.value!s}")
        elif not (isinstance(part, ast.Constant) and part.value == ""):
            joined.append(part)
    return joined


def _imports(nodes: list[ast.AST], package: str) -> Iterator[str]:
    """List the names that a tree may import; a name that is no module is dropped later."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # each dot after the first goes one package up
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _named_files(nodes: list[ast.AST], folder: Path) -> Iterator[str]:
    """List the modules of this package whose files a tree's strings name."""
    for node in nodes:
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and FILE_NAME.fullmatch(value):
            file = Path(os.path.normpath(folder / value))
            if file.is_relative_to(PACKAGE) and file.is_file():
                inside = file.relative_to(PACKAGE).with_suffix("").parts
                yield ".".join([PACKAGE.name, *inside]).removesuffix(".__init__")
