"""Fresh means computed from this code: a digest of the code behind a rule.

Snakemake does not see an edit of a library under a `shell:` rule. Every rule therefore carries
`params: code=` a digest of its script and of the loraudit modules that it imports, as parsed:
comments, docstrings and layout do not count, everything else does.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def code_digest(script: Path | str, *modules: str) -> str:
    """Return the digest of a script, of named modules, and of all that they import from here.

    A module that is chosen at run time (importlib) is not seen in the code and must be named.
    A string that names a .py file of the package counts as an import of it.
    """
    pending = [Path(script), *filter(None, map(_module_file, modules))]
    seen: dict[Path, str] = {}
    while pending:
        file = pending.pop()
        if file not in seen:
            seen[file], imported = _parsed(file)
            pending += imported
    parts = sorted(f"{file.parent.name}/{file.name}:{text}" for file, text in seen.items())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _parsed(file: Path) -> tuple[str, tuple[Path, ...]]:
    """Return the digest of one file's code, and the package files that it imports."""
    tree = ast.parse(file.read_text(), str(file))
    for node in ast.walk(tree):
        _drop_docstring(node)
    text = ast.dump(tree, include_attributes=False)
    return hashlib.sha256(text.encode()).hexdigest(), tuple(sorted(set(_imports(tree, file))))


def _drop_docstring(node: ast.AST) -> None:
    """Remove string statements: they change nothing that runs."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        node.body = [
            part
            for part in node.body
            if not (
                isinstance(part, ast.Expr)
                and isinstance(part.value, ast.Constant)
                and isinstance(part.value.value, str)
            )
        ]


def _imports(tree: ast.AST, file: Path) -> Iterator[Path]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and str(node.value).endswith(".py"):
            named = file.parent / str(node.value)
            if named.is_relative_to(PACKAGE) and named.is_file():
                yield named
    yield from filter(None, map(_module_file, names))


def _module_file(name: str) -> Path | None:
    """Return the file of a loraudit module, None for anything else."""
    package, _, rest = name.partition(".")
    if package != "loraudit":
        return None
    file = (
        PACKAGE.joinpath(*rest.split(".")).with_suffix(".py") if rest else PACKAGE / "__init__.py"
    )
    return file if file.is_file() else None
