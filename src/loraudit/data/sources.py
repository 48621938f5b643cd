"""Where models and data come from: a pinned wheel, a local folder, or the hub (hub.py).

A download first says what is fetched and how large it is. Progress bars are shown on a terminal
only.
"""

import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from humanize import naturalsize

from loraudit.base.errors import UserError
from loraudit.base.files import sha256
from loraudit.studies.entries import HubSource, Source, WheelSource


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
        UserError: the download failed, the hash differs, the path is not in the wheel, or a member
            of the wheel would be written outside `out`.
    """
    with tempfile.TemporaryDirectory() as folder:
        say(f"fetching {describe(source)}")
        wheel = _download_wheel(source, Path(folder))
        say(f"{wheel.name}: {naturalsize(wheel.stat().st_size)}")
        actual = sha256(wheel)
        if actual != source.sha256:
            raise UserError(
                f"wheel {source.wheel}: sha256 is {actual}, expected {source.sha256}; "
                "the file is not the one this project was written for, nothing was kept"
            )
        try:
            _unpack(wheel, source, out)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
            raise UserError(f"wheel {source.wheel}: not a whole zip file: {error}") from None


def _unpack(wheel: Path, source: WheelSource, out: Path) -> None:
    """Copy the members at `source.path`, and write nothing outside `out`.

    A link in the wheel becomes a file that holds the link's text.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if not name.endswith("/")]
        inside = source.path.rstrip("/") + "/"
        wanted = {name: name.removeprefix(inside) for name in members if name.startswith(inside)}
        if source.path in members:
            wanted = {source.path: Path(source.path).name}
        if not wanted:
            raise UserError(f"wheel {source.wheel}: nothing at {source.path!r}")
        for name, relative in wanted.items():
            if Path(relative).is_absolute() or {"..", ""} & set(relative.split("/")):
                raise UserError(f"wheel {source.wheel}: member {name!r} leaves its folder; refused")
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            (out / relative).write_bytes(archive.read(name))


def _download_wheel(source: WheelSource, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [] if sys.stderr.isatty() else ["--quiet"]
    command += ["--retries", "2", "--dest", str(folder), "--", source.wheel]
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        raise UserError(f"cannot download {source.wheel} from the package index: {lines[-1]}")
    return wheels[0]


def say(text: str) -> None:
    """Print one line on stderr."""
    print(text, file=sys.stderr, flush=True)
