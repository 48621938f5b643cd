"""Studies of many runs, as benchmarks/plan.py makes them: what is planned, and how often."""

import re
import subprocess
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest

from benchmark import benchmark
from loraudit.base.errors import UserError
from loraudit.base.files import write_json
from loraudit.studies.expand import load_study
from loraudit.tools import status
from warm_python import programs

pytestmark = pytest.mark.pipeline

STUDY = "config/studies/synthetic.yaml"
PLAN = """
import sys
import loraudit.base.code_digest as module
from snakemake.cli import main

calls, digest = [], module.code_digest
module.code_digest = lambda *names, **data: calls.append(names) or digest(*names, **data)
try:
    main(["-n", "--quiet", "rules", "--config", "study=synthetic"])
finally:
    print("digests of code:", len(calls))
"""
"""A dry run that counts how often a digest of code is asked for."""


@pytest.fixture(scope="module")
def plan():
    """Give benchmarks/plan.py as a module; its programs start as warm_python.py says."""
    with benchmark("plan") as module:
        usual = module.environment

        def warm(root: Path) -> dict[str, str]:
            found = usual(root)
            return found | {"PATH": f"{programs()}{module.os.pathsep}{found['PATH']}"}

        module.environment = warm
        yield module


def planned(plan, root: Path, runs: int) -> dict[str, int]:
    """Return how many jobs of each rule a study of so many runs has, and the digests asked for."""
    plan.make_project(root, runs)
    (root / "counted.py").write_text(PLAN)
    done = subprocess.run(
        [programs() / "python", "counted.py"], cwd=root, text=True, capture_output=True,
        check=False, env={**plan.os.environ, "PYTHONPATH": str(root / "src")},
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.M)}
    return jobs | {"digests": int(re.search(r"digests of code: (\d+)", output)[1])}


def test_the_benchmarks_studies_have_the_runs_they_say(plan, tmp_path):
    for runs in plan.SIZES[:3]:
        plan.make_project(tmp_path / str(runs), runs)
        folder = tmp_path / str(runs) / "config"
        study = load_study(folder / "studies/synthetic.yaml", folder=folder)
        assert (len(study.runs), len(study.cells())) == (runs, runs // 10)
    with pytest.raises(UserError, match=r"runs: 20 .legal: 10, 100, 1000, 10000"):
        plan.grid(20)


def test_jobs_grow_with_the_runs_and_digests_of_code_do_not(plan, tmp_path):
    small, large = (planned(plan, tmp_path / str(runs), runs) for runs in (10, 100))
    assert (small["train"], large["train"]) == (10, 100)
    assert (small["crosscheck"], large["crosscheck"]) == (1, 10)
    fixed = ("collect", "tables", "subspace", "figures", "report", "study", "fetch_task")
    assert {small[rule] for rule in fixed} == {large[rule] for rule in fixed} == {1}
    assert small["digests"] == large["digests"]


def test_made_up_runs_are_collected_as_real_ones(plan, tmp_path):
    plan.make_project(tmp_path, 10)
    study = load_study(tmp_path / "config/studies/synthetic.yaml", folder=tmp_path / "config")
    plan.make_results(tmp_path, study)
    programs = plan.stages(tmp_path)
    assert {*plan.STAGES, "published"} == set(programs)
    for name in ("study", "collect", "tables"):
        plan.run(tmp_path, *programs[name])
    tidy = tmp_path / plan.RESULTS / "tidy"
    assert list(pd.read_parquet(tidy / "runs.parquet").run) == [run.id for run in study.runs]
    assert len(pd.read_parquet(tidy / "twins.parquet")) == 5
    history = pd.read_parquet(tidy / "history.parquet")
    best = history.sort_values("epoch").groupby("run").score.last()
    runs = pd.read_parquet(tidy / "runs.parquet").set_index("run")
    assert (runs["last"] == best[runs.index]).all()
    records = (tidy / "records.jsonl").read_text().splitlines()
    assert len(records) == 10


def test_no_command_names_every_run(plan, tmp_path):
    """A command line has a limit; programs find the runs through study.json instead."""
    lengths = []
    for runs in (10, 100):
        root = tmp_path / str(runs)
        plan.make_project(root, runs)
        plan.make_results(root, load_study(root / STUDY, folder=root / "config"))
        commands = plan.stages(root)
        lengths.append({name: max(map(len, commands[name])) for name in ("collect", "subspace")})
        assert max(len(c) for found in commands.values() for c in found) < 5000
    assert lengths[0] == lengths[1]


def test_status_of_many_runs_holds_no_record_in_memory(plan, tmp_path, monkeypatch):
    """Of each run only its name and what made it sick stay, for `--watch`: some 500 bytes."""
    peaks = []
    for runs in (100, 1000):
        root = tmp_path / str(runs)
        plan.make_project(root, runs)
        study = load_study(root / STUDY, folder=root / "config")
        for run in study.runs:
            record = root / plan.RESULTS / "runs" / run.id / "record.json"
            record.parent.mkdir(parents=True)
            record.touch()
        monkeypatch.chdir(root)
        write_json(root / plan.RESULTS / "study.json", study.model_dump(mode="json"))
        places = status.places(plan.NAME)
        tracemalloc.start()
        found = status.summary(plan.NAME, places)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found["done"] == runs
    assert peaks[1] < peaks[0] + 900 * 500
