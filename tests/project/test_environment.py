"""Environments, recipe, pyproject.toml and the lock agree; the repository keeps its manners."""

import re
import subprocess
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())
LINES = [line for line in Path("requirements.lock").read_text().splitlines() if line[:1] != "#"]
LOCK = dict(line.split("==") for line in LINES)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_pins_every_dependency_exactly():
    names = {canonical(name) for name in LOCK}
    extras = PROJECT["project"]["optional-dependencies"].values()
    extra = [name for group in extras for name in group]
    build = [re.match(r"[\w-]+", name).group() for name in PROJECT["build-system"]["requires"]]
    wanted = [*PROJECT["project"]["dependencies"], *extra, *build]
    assert not {canonical(Requirement(name).name) for name in wanted} - names
    assert all(re.fullmatch(r"[\w.]+", value) for value in LOCK.values())


def test_what_the_lock_pins_installs_on_the_python_of_debian_12():
    """Its Python is 3.11.2; a package may ask for a later one of the same minor version."""
    refused = {}
    for name in LOCK:
        with suppress(PackageNotFoundError):  # of another platform
            asked = metadata(name).get("Requires-Python")
            if asked and "3.11.2" not in SpecifierSet(asked):
                refused[name] = asked
    assert refused == {}


def test_a_wheel_holds_the_packages_other_files():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["loraudit"]
    root = Path("src/loraudit")
    files = [file.relative_to(root) for file in root.rglob("*") if file.is_file()]
    other = [file for file in files if file.suffix not in {".py", ".pyc"}]
    assert {file.parent.name for file in other} >= {"report", "studies"}
    for file in other:
        assert any(file.match(pattern) for pattern in patterns), file


def test_conda_users_get_the_lock_and_the_same_python():
    environment = yaml.safe_load(Path("environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    python = next(name.split("=")[1] for name in packages if name.startswith("python="))
    assert PROJECT["project"]["requires-python"].startswith(f">={python},")
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_the_rules_conda_environment_is_the_lock_and_refers_to_no_other_file():
    """Snakemake copies it to a folder of its own, where no relative path leads anywhere."""
    environment = yaml.safe_load(Path("workflow/envs/loraudit.yaml").read_text())
    python, pip, packages = environment["dependencies"]
    assert PROJECT["project"]["requires-python"].startswith(f">={python.split('=')[1]},")
    assert pip == "pip" and packages == {"pip": LINES}
    assert not [line for line in LINES if Requirement(line).url or line.startswith("-")]
    rules = "".join(path.read_text() for path in Path("workflow/rules").glob("*.smk"))
    assert 'ENVIRONMENT = "../envs/loraudit.yaml"' in rules


def test_the_container_recipe_installs_the_lock_on_the_same_python():
    lines = Path("Dockerfile").read_text().splitlines()
    python = next(line for line in lines if line.startswith("FROM ")).split(":")[1].split("-")[0]
    assert PROJECT["project"]["requires-python"].startswith(f">={python},")
    copied = [line.split()[1] for line in lines if line.startswith("COPY ")]
    assert copied == ["requirements.lock", "."] and Path("requirements.lock").is_file()
    pip = [line for line in lines if line.startswith("RUN pip install")]
    assert "--requirement /loraudit/requirements.lock" in pip[0]
    assert "--no-deps" in pip[1] and "--editable /loraudit" in pip[1]
    left_out = set(Path(".dockerignore").read_text().split())
    assert {".venv", "results", "figures", "resources"} <= left_out


def test_the_running_environment_is_the_lock():
    found = {}
    for name in LOCK:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "missing"
    assert found == LOCK


def test_the_lock_names_what_its_packages_require():
    """A requirement that the lock lacks would be installed at whatever version is newest.

    Not so for torch, whose builds for GPUs bring libraries that those for CPUs do not have.
    """
    locked = {canonical(name) for name in LOCK}
    for name in set(LOCK) - {"torch"}:
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonical(requirement.name) in locked, f"{name} requires {line}"


def test_results_are_not_committed_where_the_pipeline_writes():
    """A committed artefact would look fresh to Snakemake on a clone and be taken for a result."""
    done = subprocess.run(
        ["git", "ls-files", "results", "figures", "resources"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    found = {name for name in done.stdout.split() if name.split("/")[1] != "committed"}
    assert found == {"results/README.md", "figures/README.md"}
