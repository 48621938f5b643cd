"""Read the splits of a folder or hub repository, each by itself, and their text as it is written.

`datasets` finds out which files a split has. It doesn't read them: it would guess each column's
type (00007 is text, not 7; NA is a word) and then force all splits into the types of the first. Of
a hub repository only the files that the wanted splits name in its README.md are fetched.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from loraudit.base.errors import UserError, unknown
from loraudit.data.hub import announce, download, listed
from loraudit.data.sources import describe
from loraudit.studies.entries import FolderSource, HubSource

if TYPE_CHECKING:
    from datasets import DatasetBuilder

VALIDATION = ("validation", "valid", "val", "dev")
"""Words in a file's path by which `datasets` takes it for the validation split."""


def read_splits(
    source: FolderSource | HubSource, splits: list[str], optional: list[str], where: str
) -> dict[str, pd.DataFrame]:
    """Read splits of a source, by their names there; an `optional` one may be missing.

    A CSV file's columns are all text. JSON lines and Parquet keep what they say of types. `where`
    is the task's place, for error messages.

    Raises:
        UserError: no such folder, configuration or split, an unreachable hub, or a file that can't
            be read.
    """
    with tempfile.TemporaryDirectory() as cache:
        if isinstance(source, HubSource):
            folder = Path(cache, "repository")
            _link_from_hub(source, splits, optional, where, folder)
        elif not (folder := Path(source.folder)).is_dir():
            raise UserError(
                f"no data folder {source.folder} (config key glue, or the task's source)"
            )
        with _explained(source, where):
            builder = _found(folder, source.config, cache)
            files = {str(split): found for split, found in builder.config.data_files.items()}
            for split in splits:
                if split not in files:
                    raise unknown("split", split, files)
            wanted = [*splits, *(split for split in optional if split in files)]
            if isinstance(source, FolderSource):
                _check_one_validation(folder, files)
            return {split: _read(builder, files[split], cache) for split in wanted}


def _link_from_hub(
    source: HubSource, splits: list[str], optional: list[str], where: str, out: Path
) -> None:
    """Make a folder of links to a configuration's files in the hub's cache, downloaded if need be.

    Its README.md names that configuration alone, and of its splits those that are wanted:
    `datasets` would ask for the files of others, too.
    """
    files = listed(source, "dataset")
    card = download(source, "dataset", ["README.md"]) / "README.md"
    with _explained(source, where):
        entry = _wanted(_configuration(card, source.config), splits, optional)
    patterns = _patterns(entry)
    announce(source, files, patterns)
    folder = download(source, "dataset", patterns)
    for file in folder.rglob("*"):
        if file.is_file():
            link = out / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    if entry:
        (out / "README.md").unlink(missing_ok=True)
        (out / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [entry]})}---\n")


def _configuration(card: Path, name: str | None) -> dict[str, Any]:
    """Return a configuration as README.md has it, or nothing if README.md names no files."""
    from huggingface_hub import DatasetCard

    head = DatasetCard.load(card).data.to_dict() if card.is_file() else {}
    entries = {entry["config_name"]: entry for entry in head.get("configs") or ()}
    if name is None:
        default = [entry for entry in entries.values() if entry.get("default")]
        default += [entries["default"]] if "default" in entries else []
        return (default or [*entries.values()])[0] if default or len(entries) == 1 else {}
    if entries and name not in entries:
        raise unknown("configuration", name, entries)
    return entries.get(name, {})


def _wanted(entry: dict[str, Any], splits: list[str], optional: list[str]) -> dict[str, Any]:
    """Return a configuration without the splits that are not wanted, if it has those that are."""
    files = entry.get("data_files")
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    named = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    if not named or not {*splits} <= {file["split"] for file in named}:
        return entry
    return {**entry, "data_files": [f for f in named if f["split"] in {*splits, *optional}]}


def _patterns(entry: dict[str, Any]) -> list[str]:
    """Return the names of a configuration's files, with `*` for any text; all if it names none."""
    files = entry.get("data_files") or ["**"]
    paths = []
    for file in files if isinstance(files, list) else [files]:
        path = file["path"] if isinstance(file, dict) else file
        paths += path if isinstance(path, list) else [path]
    base = entry.get("data_dir") or ""
    return [str(PurePosixPath(base, path)).replace("**/", "*") for path in paths]


@contextmanager
def _explained(source: FolderSource | HubSource, where: str) -> Iterator[None]:
    """Turn whatever goes wrong with a source into one sentence that names it."""
    try:
        yield
    except (UserError, ValueError, FileNotFoundError) as error:
        raise UserError(f"{where}: {describe(source)}: {_reason(error)}") from None
    except Exception as error:
        reason = _reason(error.__cause__ or error)
        raise UserError(f"{where}: {describe(source)}: {reason}") from None


def _reason(error: BaseException) -> str:
    """Return an error's first line; of a split without files, what is wrong with it."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if first.startswith("Couldn't infer the same data file format"):
        if lost := re.findall(r"'(\w+)'\)?: \(None", first):
            return (
                f"its README.md names the split {lost[0]!r}, whose files are not there; put them "
                "there, or remove the split from README.md"
            )
        return f"its splits are files of different kinds; give all of them one kind ({first})"
    return first


def _found(folder: Path, config: str | None, cache: str) -> "DatasetBuilder":
    """Let `datasets` find a folder's files. The shared cache could hand back another folder's."""
    from datasets import disable_progress_bars, load_dataset_builder

    if not sys.stderr.isatty():
        disable_progress_bars()
    builder = load_dataset_builder(str(folder.resolve()), name=config, cache_dir=cache)
    if _kind(builder) not in READERS:
        raise UserError(f"files of kind {_kind(builder)!r} (legal: {', '.join(READERS)})")
    return builder


def _kind(builder: "DatasetBuilder") -> str:
    """Return the name of the module of `datasets` that would read the files."""
    return type(builder).__module__.rpartition(".")[2]


def _check_one_validation(folder: Path, files: dict[str, list[str]]) -> None:
    """Refuse a folder of, say, validation.csv and dev.csv, which `datasets` reads as one split."""
    readme = folder / "README.md"
    if readme.is_file() and "data_files" in readme.read_text(encoding="utf-8"):
        return
    names = [os.path.relpath(file, folder.resolve()) for file in files.get("validation", [])]
    words = {word for name in names for word in re.split(r"[\W_\d]+", name.lower())}
    both = [word for word in VALIDATION if word in words]
    if len(both) > 1:
        raise UserError(
            f"it has files called {both[0]!r} and files called {both[1]!r}, which would be one "
            "split; remove or rename one of them, or name each split's files in README.md"
        )


def _read(builder: "DatasetBuilder", files: list[str], cache: str) -> pd.DataFrame:
    """Read one split's files, which are downloaded and unpacked where necessary."""
    from datasets import DownloadConfig, DownloadManager

    settings = DownloadConfig(
        cache_dir=f"{cache}/downloads",
        use_etag=False,
        token=builder.token,
        storage_options=builder.storage_options,
    )
    here = DownloadManager(download_config=settings).download_and_extract(list(files))
    tables = []
    for address, file in zip(files, here, strict=True):
        try:
            tables.append(READERS[_kind(builder)](file, builder.config))
        except ValueError as error:  # of pandas, pyarrow and json too
            raise UserError(f"{Path(address).name}: {_reason(error)}") from None
    return pd.concat(tables, ignore_index=True)


def _read_csv(file: str, config: Any) -> pd.DataFrame:
    """Read a CSV file by the settings of its README.md, such as `sep`; every value is text."""
    settings = {**config.pd_read_csv_kwargs, "chunksize": None, "na_filter": False}
    return pd.read_csv(file, dtype=str, **settings)


def _read_json(file: str, config: Any) -> pd.DataFrame:
    """Read JSON lines, or one list of objects; a key that a row lacks is missing there."""
    text = Path(file).read_text(encoding=config.encoding)
    whole = text.lstrip().startswith("[")
    rows = json.loads(text) if whole else [*_json_lines(text)]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number}: expected an object of keys and values, got {row!r}")
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: pd.Series([row.get(key) for row in rows], dtype=object) for key in keys}
    return pd.DataFrame(columns)


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: not valid JSON: {error}") from None


def _read_parquet(file: str, config: Any) -> pd.DataFrame:
    return pd.read_parquet(file)


READERS: dict[str, Callable[[str, Any], pd.DataFrame]] = {
    "csv": _read_csv,
    "json": _read_json,
    "parquet": _read_parquet,
}
"""What reads a file, by the name that `datasets` has for its kind; tsv counts as csv."""
