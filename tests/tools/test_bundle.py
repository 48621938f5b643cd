"""A bundle is an RO-Crate that reads back with every file, and no weights unless asked."""

import json
import shutil
import subprocess
import zipfile
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import rocrate
from rocrate.rocrate import ROCrate

from loraudit.base.errors import UserError
from loraudit.base.files import sha256
from loraudit.studies.record import read_record
from loraudit.tools.bundle import RUN_FILES, bundle
from loraudit.tools.crate_verdicts import PROFILE, SCHEMA, read_graph, verdicts_of

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


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_a_study_is_bundled_alike_from_any_folder(project, tmp_path, monkeypatch):
    """The names in the crate are relative to where the results lie."""
    bundle("small", tmp_path / "by_name.zip")
    bundle(str(STUDY.absolute()), tmp_path / "by_path.zip")
    monkeypatch.chdir("results/small/runs")
    bundle("..", tmp_path / "inside.zip")
    by_name, *others = (names(tmp_path / f"{one}.zip") for one in ("by_name", "by_path", "inside"))
    assert others == [by_name, by_name]


@pytest.mark.parametrize(
    ("model", "task"), [(None, None), (None, "words"), ("tiny", None), ("tiny", "words")]
)
def test_its_action_asks_for_the_study_itself(project, tmp_path, model, task):
    """With the switches that gave it its name."""
    switches = {"study": "small", "model": model, "task": task}
    name = "-".join(filter(None, switches.values()))
    file = STUDY.rename(STUDY.with_name(name)) / "study.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": name}))
    bundle(name, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        content = json.loads(archive.read("ro-crate-metadata.json"))
    (action,) = (one for one in content["@graph"] if one["@type"] == "CreateAction")
    command, _, given = action["description"].partition(" --config ")
    assert command.startswith("snakemake ")
    assert dict(one.split("=") for one in given.split()) == {
        key: value for key, value in switches.items() if value
    }


def test_it_follows_the_profile_of_process_runs(project, tmp_path):
    """What Process Run Crate 0.5 asks for: profile, program, and an action that names its files."""
    bundle("small", tmp_path / "small.zip")
    crate = opened(tmp_path / "small.zip", tmp_path / "crate")
    content = json.loads((tmp_path / "crate/ro-crate-metadata.json").read_text())
    (descriptor,) = (e for e in content["@graph"] if e["@id"] == "ro-crate-metadata.json")
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    root = crate.root_dataset
    assert root["conformsTo"].id == PROFILE and root["conformsTo"].type == "CreativeWork"
    assert {"name", "description", "license", "datePublished"} <= set(root.properties())
    (action,) = (one for one in root["mentions"] if one.type == "CreateAction")
    assert action["instrument"].type == "SoftwareApplication"
    assert {"name", "softwareVersion"} <= set(action["instrument"].properties())
    assert datetime.fromisoformat(action["endTime"]).tzinfo
    assert [unquote(one.id) for one in action["object"]] == [f"{STUDY}/study.json"]
    made = {unquote(one.id) for one in action["result"]}
    assert f"{STUDY}/tables/claims.csv" in made
    assert all((tmp_path / "crate" / name).is_file() for name in made)


VALIDATOR = shutil.which("rocrate-validator")


def missing_in(crate: Path, work: Path) -> list[str]:
    """Return what rocrate-validator finds missing of all that the profile requires, offline."""
    script = Path(VALIDATOR or "").read_text().splitlines()[0].removeprefix("#!")
    context = Path(rocrate.__file__).parent / "data/ro-crate.jsonld"
    warm = Path(__file__).parents[1] / "crate_context.py"
    subprocess.run([script, warm, work / "cache", context], check=True)
    command = [VALIDATOR, "--no-interactive", "validate", "--offline", "--no-paging"]
    command += ["--cache-path", work / "cache", "--profile-identifier", "process-run-crate"]
    command += ["--requirement-severity", "required"]
    command += ["--output-format", "json", "--output-file", work / "found.json", crate]
    subprocess.run(command, check=False, capture_output=True)
    found = json.loads((work / "found.json").read_text())
    return [one["message"] for one in found["issues"]] + ["failed"] * (not found["passed"])


@pytest.mark.skipif(
    VALIDATOR is None,
    reason="no rocrate-validator on PATH; it needs rich < 14, so that requirements.lock can't have "
    "it: pipx install roc-validator==0.13.0",
)
def test_the_validator_of_the_profile_misses_nothing(project, tmp_path):
    bundle("small", tmp_path / "small.zip")
    opened(tmp_path / "small.zip", tmp_path / "crate")
    assert missing_in(tmp_path / "crate", tmp_path) == []
    metadata = tmp_path / "crate/ro-crate-metadata.json"
    metadata.write_text(metadata.read_text().replace(PROFILE, f"{SCHEMA}Thing"))
    assert missing_in(tmp_path / "crate", tmp_path) != []  # it does look


def test_every_reference_in_it_leads_to_an_entity(project, tmp_path):
    bundle("small", tmp_path / "small.zip")
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        content = json.loads(archive.read("ro-crate-metadata.json"))
    graph = content["@graph"]
    names = [entity["@id"] for entity in graph]
    assert len(names) == len(set(names))
    referred = set()
    for entity in graph:
        for value in entity.values():
            for one in value if isinstance(value, list) else [value]:
                assert not isinstance(one, dict) or set(one) == {"@id"}  # flattened
                referred |= {one["@id"]} if isinstance(one, dict) else set()
    assert referred - set(names) <= {"https://w3id.org/ro/crate/1.1"}
    assert content["@context"][1]["ClaimReview"] == "https://schema.org/ClaimReview"


def test_it_has_the_verdicts_of_the_studys_table(project, tmp_path):
    bundle("small", tmp_path / "small.zip")
    found = verdicts_of(read_graph(tmp_path / "small.zip"))
    table = pd.read_csv(STUDY / "tables/claims.csv", keep_default_na=False)
    assert len(found) == len(table) > 1
    for row in table.to_dict("records"):
        own = found[row["claim"], row["task"], row["model"]]
        assert (own["verdict"], own["statement"]) == (row["verdict"], row["statement"])
        assert own["study"] == "small"
    asked = found["own.lora-beats-head", "words", "tiny"]
    assert asked["n"] == 2 and asked["effect"]["unit"] == "points"
    score = float(table.set_index("claim").effect["own.lora-beats-head"])
    assert asked["effect"]["value"] == pytest.approx(100 * score)


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
