"""A bundle is an RO-Crate that reads back with every file, and no weights unless asked."""

import shutil
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest
from rocrate.rocrate import ROCrate

from loraudit.base.errors import UserError
from loraudit.base.files import sha256
from loraudit.studies.record import read_record
from loraudit.tools.bundle import RUN_FILES, bundle

STUDY = Path("results/small")


def opened(path: Path, folder: Path) -> ROCrate:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return ROCrate(folder)


def test_a_bundle_reads_back_with_every_file(project, tmp_path):
    Path("results/small/report.html").write_text("<html></html>")
    shutil.copy(Path(__file__).parents[2] / "LICENSE", "LICENSE")
    found = bundle("small", tmp_path / "small.zip")
    crate = opened(tmp_path / "small.zip", tmp_path / "crate")
    named = {unquote(entity.id): entity for entity in crate.data_entities}
    assert len(named) == found["files"] and found["runs"] == 6 and found["missing"] == []
    for name, entity in named.items():
        assert sha256(tmp_path / "crate" / name) == entity["sha256"] == sha256(name)
    runs = list((STUDY / "runs").rglob("record.json"))
    wanted = {str(run.parent / name) for run in runs for name in RUN_FILES}
    wanted |= {str(path) for path in (STUDY / "tables").iterdir()}
    wanted |= {str(path) for path in Path("figures/small").iterdir()}
    wanted |= {"config/studies/small.yaml", f"{STUDY}/report.html", "LICENSE"}
    assert wanted <= named.keys()
    assert not [name for name in named if "/adapter/" in name]
    assert all(
        "encodingFormat" in entity.properties()
        for entity in named.values()
        if entity.id != "LICENSE"
    )


def test_it_names_question_code_and_licence(project, tmp_path):
    bundle("small", tmp_path / "small.zip")
    crate = opened(tmp_path / "small.zip", tmp_path / "crate")
    assert crate.name == "loraudit study small"
    assert "Do the commands find" in crate.description and "6 of 6 runs" in crate.description
    assert crate.license.id == "https://spdx.org/licenses/Apache-2.0"
    commit = read_record(next((STUDY / "runs").rglob("record.json"))).environment["git"]["commit"]
    assert str(commit or "unknown") in crate.root_dataset["isBasedOn"]["softwareVersion"]


def test_weights_come_when_asked_and_missing_runs_are_named(project, tmp_path):
    shutil.rmtree(STUDY / "runs/words/tiny/head/s1")
    found = bundle("small", tmp_path / "small.zip", weights=True)
    assert found["missing"] == ["words/tiny/head/s1"]
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        names = [name for name in archive.namelist() if "/adapter/" in name]
    assert sum(name.endswith("adapter_model.safetensors") for name in names) == 4


def test_what_can_not_be_bundled_is_refused(project, tmp_path):
    (tmp_path / "there.zip").touch()
    with pytest.raises(UserError, match="exists already"):
        bundle("small", tmp_path / "there.zip")
    with pytest.raises(UserError, match=r"legal: NAME\.zip"):
        bundle("small", tmp_path / "small.tar")
    with pytest.raises(UserError, match="'smal' is not known; did you mean 'small'"):
        bundle("smal", tmp_path / "small.zip")
    shutil.rmtree(STUDY / "runs")
    with pytest.raises(UserError, match="no finished run"):
        bundle("small", tmp_path / "small.zip")
    assert [path.name for path in tmp_path.glob("*.zip")] == ["there.zip"]
