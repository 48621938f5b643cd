"""What jobs ask of a cluster, and the profiles that ask for it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from loraudit.base.errors import UserError
from loraudit.studies.cluster import ClusterFile, node_request, read_cluster

TABLE = """
jobs: {train: {minutes: 10, mem_mb: 1000}, tokenise: &one {minutes: 1, mem_mb: 1},
  crosscheck: *one, subspace: *one, forgetting: *one, language_loss: *one}
models: {roberta-base: {minutes: 3, mem_mb: 2}}
tasks: {mnli: {minutes: 4, mem_mb: 1.5}}
most_minutes: 200
"""


@pytest.fixture
def folder(tmp_path):
    """Give a folder with the repository's models and tasks, and a small table."""
    for name in ("models", "tasks"):
        shutil.copy(f"config/{name}.yaml", tmp_path)
    (tmp_path / "cluster.yaml").write_text(TABLE)
    return tmp_path


@pytest.mark.parametrize(
    ("models", "tasks", "attempt", "wanted"),
    [
        (["minilm"], ["mrpc"], 1, (10, 1000)),
        (["roberta-base"], ["mrpc"], 1, (30, 2000)),
        (["roberta-base"], ["mnli"], 1, (120, 3000)),
        (["minilm", "roberta-base"], ["mnli", "mrpc"], 1, (120, 3000)),  # the largest counts
        (["minilm"], ["mrpc"], 3, (30, 3000)),
        (["roberta-base"], ["mnli"], 2, (200, 6000)),  # not above the cluster's longest
    ],
)
def test_bigger_models_tasks_and_later_attempts_ask_for_more(
    models, tasks, attempt, wanted, folder
):
    need = read_cluster(folder).needs("train", models, tasks, attempt)
    assert (need.minutes, need.mem_mb) == wanted


def test_each_process_of_a_job_takes_the_memory_and_none_the_time(folder):
    """Eight processes that each load the model asked for one's memory."""
    asked = read_cluster(folder).needs("train", ["roberta-base"], ["mrpc"], 1, 8)
    assert (asked.minutes, asked.mem_mb) == (30, 16_000)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("roberta-base", "roberta-bse", "models: 'roberta-bse' is not known; did you mean 'rober"),
        ("mnli", "mnil", "tasks: 'mnil' is not known; did you mean 'mnli'"),
        ("most_minutes", "minutes", "key: 'minutes' is not known"),
        ("{minutes: 10,", "{minutes: 0,", "jobs.train.minutes = 0"),
        ("train:", "trian:", "jobs"),
        ("subspace: *one, ", "", "jobs: key 'subspace' is missing"),
        ("subspace: *one, ", "train: *one, ", "key 'train' stands there twice"),
    ],
)
def test_a_wrong_table_is_one_sentence(old, new, message, folder):
    (folder / "cluster.yaml").write_text(TABLE.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_cluster(folder)


def test_the_shipped_table_knows_every_job_of_the_rules():
    table = read_cluster()
    rules = [path.stem for path in Path("workflow/rules").glob("*.smk")
             if f'needs("{path.stem}")' in path.read_text()]  # fmt: skip
    assert set(rules) == set(table.jobs)
    for job in rules:
        assert table.needs(job, ["minilm"], ["mrpc"], 1) == table.jobs[job]


def test_the_slurm_profile_speaks_of_rules_that_exist():
    profile = yaml.safe_load(Path("profiles/slurm/config.yaml").read_text())
    rules = {path.stem for path in Path("workflow/rules").glob("*.smk")}
    assert set(profile["groups"]) <= rules
    assert set(profile["group-components"]) == set(profile["groups"].values())


class Resources(dict):
    """A job's resources as Snakemake gives them to the plugin."""

    __getattr__ = dict.get


def sbatch(launch: str) -> list[str]:
    """Return the options that the plugin passes to sbatch for a run with a launch file."""
    submit = pytest.importorskip("snakemake_executor_plugin_slurm.submit_string")
    gpus = pytest.importorskip("snakemake_executor_plugin_slurm.utils")
    validation = pytest.importorskip("snakemake_executor_plugin_slurm.validation")
    launcher = yaml.safe_load(Path(f"profiles/accelerate/{launch}.yaml").read_text())
    job = SimpleNamespace(resources=Resources(node_request(launcher)), threads=1, name="train")
    validation.validate_slurm_extra(job)
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    call = submit.get_submit_command(job, dict.fromkeys(names, "x"))
    return (call + gpus.set_gres_string(job)).split()


@pytest.mark.parametrize(
    ("launch", "asked"),
    [
        ("cpu", set()),
        ("cpu2", set()),
        ("gpu", {"--gpus=1"}),
        ("gpu2", {"--gpus=2", "--nodes=1", "--ntasks-per-node=1"}),
        ("gpu8", {"--gpus=8", "--nodes=1", "--ntasks-per-node=1"}),
        (
            "two_nodes",
            {"--gpus=2", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--gpus-per-node=1"},
        ),
    ],
)
def test_a_run_asks_slurm_for_its_nodes_and_for_its_gpus_on_each(launch, asked):
    """Without --nodes, the GPUs of one job may be on several nodes; --nodes alone spreads none."""
    options = sbatch(launch)
    places = ("--gpus", "--nodes", "--ntasks-per", "--gpus-per")
    several = places if launch != "two_nodes" else (*places, "--ntasks=")
    assert {option for option in options if option.startswith(several)} == asked
    assert "--signal=TERM@90" in options


MEASURED = Path("results/committed/bench/job_memory.csv")
MARGIN = 1.25
"""How many times the measured peak a job asks for; the rest is for Snakemake beside it."""


def shipped_table_with_its_example() -> ClusterFile:
    """Read config/cluster.yaml with the line for RoBERTa-large, which is a comment there."""
    text = Path("config/cluster.yaml").read_text().replace("  # roberta-large:", "  roberta-large:")
    return ClusterFile(**yaml.safe_load(text))


@pytest.mark.parametrize(
    "row", [*pd.read_csv(MEASURED).itertuples()], ids=lambda row: str(row.case)
)
def test_a_job_asks_for_a_quarter_more_memory_than_it_was_measured_to_take(row):
    """A run on rows of more than 128 tokens gets it at its last attempt only."""
    job = "crosscheck" if row.job == "layers" else row.job
    attempt = 3 if job == "train" and row.tokens > 128 else 1
    need = shipped_table_with_its_example().needs(job, [row.model], ["mrpc"], attempt)
    assert need.mem_mb >= MARGIN * row.peak_mib * 2**20 / 1e6
