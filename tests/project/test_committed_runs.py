"""The runs on record are of clean commits, whose code they carry the digests of, and are stable."""

import functools
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from statistics import stdev

import pytest

from committed import COMMITTED, of_today, records_of
from loraudit.studies.expand import load_study

STUDIES = [file.parent for file in sorted(COMMITTED.glob("*/records.jsonl"))]
TODAYS = [folder for folder in STUDIES if of_today(folder)]


@pytest.fixture(scope="module")
def digests_at(tmp_path_factory):
    """Give a function that computes each method's digest of training code as a commit would.

    It does so once for each commit, which several studies may share.
    """

    @functools.cache
    def compute(commit: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("commit")
        archive = folder / "tree.tar"
        command = ["git", "archive", "--output", str(archive), commit, "src", "scripts"]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip(f"commit {commit} is not in this copy of the repository")
        with tarfile.open(archive) as tree:
            tree.extractall(folder, filter="data")
        code = (
            "import json; from loraudit.studies.methods import METHODS; "
            "from loraudit.studies.training_code import training_code; "
            "print(json.dumps({name: training_code(name) for name in METHODS}))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder / "src")},
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(run.stdout)

    return compute


@pytest.mark.parametrize("folder", TODAYS, ids=lambda path: path.name)
def test_records_are_of_clean_commits_of_one_code_whose_digests_they_carry(folder, digests_at):
    """Of one commit, or of several between which no line that trains has changed."""
    records = records_of(folder)
    states = [record["environment"]["git"] for record in records]
    assert not any(state["dirty"] for state in states)
    for commit in {state["commit"] for state in states}:
        digests = digests_at(commit)
        for record in records:
            assert record["code_sha256"] == digests[record["spec"]["method"]], commit


def test_the_readme_of_results_names_the_studies_of_older_code():
    text = " ".join(Path("results/README.md").read_text().split())
    older = [folder.name for folder in STUDIES if folder not in TODAYS]
    named = re.search(r"Of older code, .*?, are (.*?)\. They", text)
    assert re.split(", | and ", named[1] if named else "") == (older or [""])


BETWEEN = ("seed", "selection_rows", "validate_epochs", "tuned")
"""Fields of a spec in which the quickstart's runs and those that its settings are from differ."""


def settings(spec: dict) -> dict:
    return {field: value for field, value in spec.items() if field not in BETWEEN}


def test_the_settings_of_the_quickstart_have_ten_stable_seeds_on_record():
    """Each cell has them with its learning rate: SD at most 2 points, and no run collapsed."""
    quickstart = load_study(Path("config/studies/quickstart.yaml"))
    folder = COMMITTED / quickstart.settings_from
    if folder not in TODAYS:
        pytest.skip(f"{folder} is not on record yet")
    reported = [
        record for record in records_of(folder) if record["spec"]["validate_epochs"] != "none"
    ]
    # PEFT's twins have the settings of ours
    for run in [run for run in quickstart.runs if run.spec.method != "peft" and run.spec.seed == 0]:
        wanted = settings(run.spec.model_dump(mode="json"))
        same = [record for record in reported if settings(record["spec"]) == wanted]
        scores = [record["train"]["epochs"]["last"]["scores"]["accuracy"] for record in same]
        assert {record["spec"]["seed"] for record in same} == set(range(10)), run.id
        assert not any(record["train"]["collapsed"] for record in same), run.id
        assert stdev(scores) <= 0.02, run.id
