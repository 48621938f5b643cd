"""The workflow from another folder: by -s and -d, as a module, and in a conda environment's python.

The folder is a copy of .test, the tiny study that `snakemake --directory .test` runs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tiny_project import ROOT
from warm_python import programs

pytestmark = pytest.mark.pipeline

MODULE = """
rule all:
    input:
        "lora/results/tiny/report.html",

module loraudit:
    snakefile: "{snakefile}"
    config: {{"study": "tiny"}}
    prefix: "lora"

use rule * from loraudit as loraudit_*
"""
CONDA = """#!{python}
import json, os, pathlib, shutil, sys
words = sys.argv[1:]
here = pathlib.Path({root!r})
if words[0] == "info":
    print(json.dumps({{"conda_prefix": str(here), "platform": "linux-64"}}))
elif words[0] == "config":
    print(json.dumps({{"get": {{"channel_priority": "strict"}}}}))
elif words[0] == "--version":
    print("conda 25.1.0")
elif words[0] == "env":
    at = dict(zip(words, words[1:]))
    shutil.copy(at["--file"], here / "given.yaml")
    os.symlink(here / "env", at["--prefix"])
"""
"""A conda whose new environments are all the one in `root`/env."""


@pytest.fixture
def study(tmp_path):
    """Give a copy of .test without what a run has left there."""
    root = tmp_path / "a study"
    made = shutil.ignore_patterns("results", "figures", "logs", "resources", ".snakemake")
    shutil.copytree(ROOT / ".test", root, ignore=made)
    return root


def snakemake(study: Path, *arguments: str, ok: bool = True, **environment: str) -> str:
    """Run Snakemake in a folder with neither the package's folder nor ours on Python's path.

    It and the jobs start as warm_python.py says, unless a PATH is given.
    """
    usual = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    usual["PATH"] = f"{programs()}{os.pathsep}{usual['PATH']}"
    done = subprocess.run(
        ["snakemake", "--cores", "2", *arguments],
        cwd=study,
        env=usual | environment,
        timeout=900,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert (done.returncode == 0) == ok, done.stdout
    return done.stdout


def jobs(output: str) -> dict[str, int]:
    """Read the counts of a dry run with --quiet rules."""
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", output, re.M)}


@pytest.mark.parametrize("name", ["Snakefile", "workflow/Snakefile"])
def test_both_snakefiles_plan_the_same_study_from_another_folder(study, name):
    planned = jobs(snakemake(study, "-s", str(ROOT / name), "-n", "--quiet", "rules"))
    assert planned.pop("default" if name == "Snakefile" else "all") == 1
    assert planned["train"] == 3 and planned["crosscheck"] == 1 and planned["report"] == 1
    assert sum(planned.values()) == 2 * planned["total"] - 1


def test_what_lies_in_the_folder_hides_what_is_shipped(study):
    """Task, model and study are the folder's own; the method's defaults and the launch file not."""
    targets = ("results/tiny/study.json", "results/published/verdicts.md")
    snakemake(study, "-s", str(ROOT / "Snakefile"), *targets)
    runs = json.loads((study / "results/tiny/study.json").read_text())["runs"]
    assert {run["spec"]["task"]["source"]["folder"] for run in runs} == {"data"}
    shipped = ROOT / "results/committed/published/verdicts.md"
    assert (study / "results/published/verdicts.md").read_text() == shipped.read_text()
    (study / "profiles/accelerate").mkdir(parents=True)
    (study / "profiles/accelerate/cpu2.yaml").write_text("num_processes: {}\n")
    config = ("--config", "launch=cpu2")
    said = snakemake(study, "-s", str(ROOT / "Snakefile"), "-n", *config, ok=False)
    assert "num_machines" in said or "use_cpu" in said or "num_processes" in said


def test_jobs_of_one_machine_share_its_memory_and_the_places_on_its_gpus(study):
    call = ["-s", str(ROOT / "Snakefile"), "results/tiny/study.json", "--force"]
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1"}
    said = snakemake(study, *call, "--config", "launch=gpu", "runs_per_gpu=3", **gpus)
    given = re.search("at most at once: (.*)", said)[1]
    assert "6 runs on GPUs" in given and re.search(r"\d{4} MB of memory", given)
    own = ["--resources", "gpu=1", "mem_mb=700", "--config", "launch=gpu"]
    given = re.search("at most at once: (.*)", snakemake(study, *call, *own, **gpus))[1]
    assert "1 runs on GPUs" in given and "700 MB of memory" in given


def test_numbers_of_the_configuration_are_used_as_they_were_checked(study):
    """Text that is a number, and a whole number with a point, passed the check and then failed."""
    path = study / "config/studies/tiny.yaml"
    tiny = yaml.safe_load(path.read_text())
    grid = [{"method": ["lora", "head"], "targets": "q+v", "seed": [0, 1]}]
    path.write_text(yaml.safe_dump({"defaults": tiny["defaults"], "grid": grid}))
    call = ["-s", str(ROOT / "Snakefile"), "-n", "-p", "trained"]
    whole, other = (
        sorted(re.findall("LORAUDIT_RUNS_PER_GPU=.*", snakemake(study, *call, "--config", *keys)))
        for keys in (
            ["threads=2", "runs_per_batch=2", "checkpoint_minutes=3"],
            ["threads='2'", "runs_per_batch=2.0", "checkpoint_minutes=3.0", "runs_per_gpu=1.0"],
        )
    )
    assert whole == other
    assert any("train_packed.py" in line for line in whole)
    assert all("_per_process 2 " in line and "minutes=3 " in line for line in whole)


def test_a_launch_file_that_does_not_fit_is_refused_before_anything_starts(study):
    path = study / "three.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\nmixed_precision: no\n")
    call = ["-s", str(ROOT / "Snakefile"), "-n", "--config", f"launch={path.name}"]
    said = snakemake(study, *call, ok=False)
    assert "launch 'three.yaml' does not fit run" in said
    assert "can't be shared by 3 processes (legal: 1, 2, 4, 8" in said


@pytest.mark.long
@pytest.mark.slow
def test_as_a_module_with_a_prefix_all_files_are_below_it(study):
    """The whole study by real programs. Keys that the module's config leaves out are as shipped."""
    shutil.rmtree(study / "config/config.yaml", ignore_errors=True)
    (study / "config/config.yaml").write_text("samples: an importing workflow's own key\n")
    (study / "Snakefile").write_text(MODULE.format(snakefile=ROOT / "workflow/Snakefile"))
    before = {path.name for path in study.iterdir()}
    snakemake(study, PATH=os.environ["PATH"])
    assert {path.name for path in study.iterdir()} - before == {"lora", ".snakemake"}
    assert {path.name for path in (study / "lora").iterdir()} == {
        *("results", "figures", "logs", "resources")
    }
    page = (study / "lora/results/tiny/report.html").read_text()
    assert "Does the workflow run, from data to report?" in page
    assert jobs(snakemake(study, "-n", "--quiet", "rules")) == {}


def test_a_module_of_the_root_snakefile_leaves_the_default_target_alone(study):
    (study / "Snakefile").write_text(MODULE.format(snakefile=ROOT / "Snakefile"))
    planned = jobs(snakemake(study, "-n", "--quiet", "rules"))
    assert planned["all"] == 1 and planned["loraudit_train"] == 3
    assert "loraudit_default" not in planned and "loraudit_published" not in planned


@pytest.fixture
def conda(tmp_path):
    """Give a folder with a stand-in for conda, whose environment has all packages but loraudit."""
    root = tmp_path / "conda"
    (root / "bin").mkdir(parents=True)
    text = CONDA.format(python=sys.executable, root=str(root))
    (root / "bin/conda").write_text(text)
    (root / "bin/conda").chmod(0o755)
    (root / "bin/activate").write_text('export PATH="$1/bin:$PATH"\n')
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "env"], check=True)
    (site,) = (root / "env/lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = [root / "env/bin/python", "-c", "import pydantic, loraudit"]
    done = subprocess.run(python, cwd=root, env={}, capture_output=True, text=True)
    assert "No module named 'loraudit'" in done.stderr
    return root


def test_conda_is_given_a_file_that_needs_no_other_and_jobs_find_the_package(study, conda):
    """Snakemake copies the file away from the lock, and takes PYTHONPATH from the jobs."""
    target = "resources/tasks/words/manifest.json"
    options = ("-s", str(ROOT / "Snakefile"), "--software-deployment-method", "conda")
    path = f"{conda}/bin{os.pathsep}{os.environ['PATH']}"
    said = snakemake(study, target, *options, PATH=path)
    assert "Activating conda environment" in said and (study / target).is_file()
    given = yaml.safe_load((conda / "given.yaml").read_text())
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert given["dependencies"][-1] == {"pip": [line for line in lock if line[:1] != "#"]}
