# The study, and the helpers that the rules share. Everything wrong in a study is found here, before
# any job starts.
import shlex
from pathlib import Path

import yaml
from loraudit.code_digest import code_digest
from loraudit.errors import UserError
from loraudit.locate import tokens_folder
from loraudit.pairs import lora_runs
from loraudit.products import TABLES, study_figures
from loraudit.spec import METHOD_MODULES, digest
from loraudit.study import Config, load_configured
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

if {"{", "}"} & set(str(Path.cwd())):
    raise WorkflowError(
        f"{Path.cwd()}: Snakemake can't work in a folder with {{ or }} in its name; rename it"
    )

try:
    STUDY = load_configured(config)
except UserError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:
    logger.info(f"study {STUDY.name}: {STUDY.describe()}")
RUNS = {run.id: run.spec for run in STUDY.runs}
CELLS = STUDY.cells()
LORA_RUNS = lora_runs(STUDY)
TASKS = {spec.task.name: spec.task for spec in RUNS.values()}
MODELS = {spec.model.name: spec.model for spec in RUNS.values()}
RESULTS = f"results/{STUDY.name}"
FIGURES = f"figures/{STUDY.name}"
FIGURE_TABLES = study_figures(STUDY)
DEFAULTS = yaml.safe_load(Path("config/config.yaml").read_text())
SWITCHES = " ".join(  # how this study is asked for on the command line
    shlex.quote(f"{key}={value}")
    for key, value in Config(**config)
    .model_dump(exclude={"launch", "threads", "checkpoint_minutes"})
    .items()
    if key == "study" or value != DEFAULTS[key]
)
LAUNCH = f"profiles/accelerate/{config['launch']}.yaml"
PROCESSES = yaml.safe_load(Path(LAUNCH).read_text())["num_processes"]
ENVIRONMENT = "../../environment.yml"


wildcard_constraints:
    task=r"[^/]+",
    model=r"[^/]+",
    variant=r"[^/]+",
    seed=r"\d+",
    length=r"\d+",
    figure=r"[a-z_]+",


def run_spec(wildcards):
    """Return the spec behind results/<study>/runs/<task>/<model>/<variant>/s<seed>."""
    return RUNS[f"{wildcards.task}/{wildcards.model}/{wildcards.variant}/s{wildcards.seed}"]


def tokens_of(spec):
    """Return the manifest of the tokens that a run or cross-check reads."""
    return str(tokens_folder(spec) / "manifest.json")


def start_record(wildcards):
    """Return the record that a run starts from: an edge of the DAG, or nothing."""
    start = run_spec(wildcards).warm_start
    return f"{RESULTS}/runs/{start.run}/record.json" if start else []


def cell_spec(wildcards):
    """Return the spec behind results/<study>/crosscheck/<task>/<model>/<variant>.json."""
    return CELLS[f"{wildcards.task}/{wildcards.model}/{wildcards.variant}"]


def parent(wildcards, output):
    """Return the folder of a rule's first output."""
    return str(Path(output[0]).parent)
