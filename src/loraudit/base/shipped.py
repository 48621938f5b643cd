"""The project's own files, found from any working folder.

What a user may edit (config/, profiles/, the Snakefile) is looked up by one rule: the user's own in
the working folder first, else what is shipped with the package, beside the Snakefile. The rule
holds for whole files, and for each entry of a table such as config/tasks.yaml. So a study can be
run from another folder that holds only what differs there.
"""

from pathlib import Path

from loraudit.base.errors import UserError
from loraudit.base.yaml_file import read_yaml

ROOT = Path(__file__).resolve().parents[3]
"""The repository's folder. A package that was installed without its repository has none: nothing is
found there then."""


def shipped(path: Path | str) -> Path:
    """Return a file of the repository.

    Args:
        path: relative to the repository's folder; an absolute path is returned as it is.

    Returns:
        The path as given if the working folder is the repository, or if the repository has no such
        file; an absolute path otherwise.
    """
    path = Path(path)
    return ROOT / path if Path.cwd() != ROOT and (ROOT / path).exists() else path


def own_or_shipped(path: Path | str) -> Path:
    """Return a file of the working folder or, if there is none, the shipped one."""
    path = Path(path)
    return path if path.exists() else shipped(path)


def own_and_shipped(folder: Path | str) -> list[Path]:
    """Return the YAML files of a folder by name; an own file hides the shipped one of its name."""
    folders = (ROOT / folder, Path(folder))
    names = {path.name for place in folders for path in place.glob("*.yaml")}
    return [own_or_shipped(Path(folder, name)) for name in sorted(names)]


def tables(path: Path | str) -> list[Path]:
    """Return the shipped table of a path and the own one, which overrides it; those that exist.

    Raises:
        UserError: there is neither.
    """
    found = [file for file in dict.fromkeys((shipped(path), Path(path))) if file.is_file()]
    if not found:
        raise UserError(f"no file {path}: run this in the repository's folder")
    return found


def read_table(path: Path | str, *groups: str) -> dict:
    """Read a YAML table: the shipped entries, and the own ones, which hide those of their names.

    Args:
        path: the table, such as config/tasks.yaml.
        groups: keys whose values are tables of entries themselves.

    Raises:
        UserError: there is no such file, or one can't be read.
    """
    merged: dict = {}
    for file in tables(path):
        table = read_yaml(file)
        for group in groups:
            own, above = table.get(group), merged.get(group)
            if isinstance(own, dict) and isinstance(above, dict):
                table = {**table, group: {**above, **own}}
        merged |= table
    return merged
