# The study, and the helpers that the rules share. A study is checked here as a whole, before any job
# starts.
import json
import os
import shlex
import sys
from pathlib import Path

# The package beside this file is the one that runs, installed or not, whichever folder is worked in.
REPOSITORY = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from loraudit.analysis.section7_runs import lora_runs, measured_runs
from loraudit.base.code_digest import code_digest
from loraudit.base.errors import UserError
from loraudit.base.forks import start_server
from loraudit.base.snakemake_timer import one_timer
from loraudit.base.shipped import own_and_shipped, own_or_shipped, shipped, tables
from loraudit.base.yaml_file import read_yaml
from loraudit.report.figure_registry import figure_modules, study_figures
from loraudit.report.table_registry import READ_LATE, SECTION7, TABLES, TIDY, early_tables
from loraudit.report.table_registry import late_tables, read_by_tables, shipped_files
from loraudit.report.table_registry import study_tables, table_modules
from loraudit.studies.advice import advice
from loraudit.studies.cluster import node_request, read_cluster
from loraudit.studies.expand import load_configured
from loraudit.studies.launcher import idle_gpus, launch_file, local_limits, read_launcher
from loraudit.studies.launcher import processes_per_machine, require_devices, require_fit
from loraudit.studies.packs import pack_note, packed_code, require_packs
from loraudit.studies.paths import configuration, tokens_folder, training_log
from loraudit.studies.spec import digest
from loraudit.studies.study_file import Config
from loraudit.studies.training_code import training_code
from loraudit.tools import job_lines
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

one_timer()

# Snakemake takes {...} in a path for a wildcard.
if {"{", "}"} & set(str(Path.cwd())):
    raise WorkflowError(
        f"{Path.cwd()}: Snakemake can't work in a folder with {{ or }} in its name; rename it"
    )

# A module with a `config:` of its own reads no configfile. Keys that it leaves out are as shipped.
for file in tables("config/config.yaml"):

    configfile: file


config = {**read_yaml(shipped("config/config.yaml")), **config}

# Jobs find their programs by it. It is no parameter, so that moving the repository reruns nothing.
os.environ.update(LORAUDIT=str(REPOSITORY))


envvars:
    "LORAUDIT",


NO_CLUSTER = workflow.resource_settings.nodes is None
try:
    STUDY = load_configured(config)
    config |= Config(**config).model_dump()  # numbers as they were checked: threads "2" are 2
    CLUSTER = read_cluster()
    LAUNCH = launch_file(config["launch"])
    LAUNCHER = read_launcher(LAUNCH)
    require_fit(STUDY.all_runs, config["launch"], LAUNCHER)
    if workflow.is_main_process and NO_CLUSTER:
        require_devices(config["launch"], LAUNCHER)
    PACKS = require_packs(STUDY.all_runs, config["runs_per_batch"], LAUNCHER["num_processes"])
except UserError as error:
    raise WorkflowError(str(error)) from None

RUNS = {run.id: run.spec for run in STUDY.all_runs}
REPORTED = [run.id for run in STUDY.runs]
CELLS = STUDY.cells()
LORA_RUNS = lora_runs(STUDY)
MEASURED_RUNS = measured_runs(STUDY)
WARM_RUNS = [run.id for run in STUDY.runs if run.spec.warm_start]
LANGUAGE_RUNS = [run.id for run in STUDY.language_runs()]
TASKS = {spec.task.name: spec.task for spec in RUNS.values()}
MODELS = {spec.model.name: spec.model for spec in RUNS.values()}
RESULTS = f"results/{STUDY.name}"
FIGURES = f"figures/{STUDY.name}"
FIGURES_WANTED = study_figures(STUDY)
STUDY_TABLES = study_tables()
EARLY_TABLES = early_tables()
LATE_TABLES = late_tables()
DEFAULTS = configuration()
# The keys that decide what the study is, without those that say how its runs are launched.
HOW = {"launch", "threads", "runs_per_gpu", "runs_per_batch", "checkpoint_minutes"}
CHOICES = Config(**config).model_dump(exclude=HOW)
SWITCHES = " ".join(  # what to write after --config to get this study; the report shows it
    shlex.quote(f"{key}={value}")
    for key, value in CHOICES.items()
    if key == "study" or value != DEFAULTS[key]
)
if workflow.is_main_process:  # each job parses this file again and need not repeat the lines
    alone = [*(TASKS if len(TASKS) == 1 else ()), *(MODELS if len(MODELS) == 1 else ())]
    about = job_lines.About(STUDY.name, SWITCHES, frozenset(alone))
    job_lines.install(workflow.output_settings, about)
    logger.info(f"study {STUDY.name}: {STUDY.describe()}")
    for sentence in advice(STUDY):
        logger.info(f"note: {sentence}")
    if PACKS:
        logger.info(f"note: {pack_note(PACKS, len(STUDY.all_runs))}")
PROCESSES = processes_per_machine(LAUNCHER)
ENVIRONMENT = "../envs/loraudit.yaml"


# Without a cluster, jobs share this machine's memory and GPUs, and no more start than these hold.
if workflow.is_main_process and NO_CLUSTER:
    for resource, amount in local_limits(LAUNCHER, config["runs_per_gpu"]).items():
        if resource not in workflow.global_resources:
            workflow.register_resource(resource, amount)
    for sentence in idle_gpus(LAUNCHER):
        logger.info(f"note: {sentence}")


# Jobs of this machine need not import torch one by one. With GPUs each does, because a copy of a
# process that has looked for them can't use them.
onstart:
    if NO_CLUSTER and LAUNCHER["use_cpu"]:
        start_server(config["threads"])


wildcard_constraints:
    task=r"[^/]+",
    model=r"[^/]+",
    variant=r"[^/]+",
    seed=r"\d+",
    length=r"\d+",


def run_spec(wildcards):
    """Return the spec behind results/<study>/runs/<task>/<model>/<variant>/s<seed>."""
    return RUNS[f"{wildcards.task}/{wildcards.model}/{wildcards.variant}/s{wildcards.seed}"]


def tokens_of(spec):
    """Return the manifest of the tokens that a run or cross-check reads."""
    return str(tokens_folder(spec) / "manifest.json")


def start_record(wildcards):
    """Return the record of the run that this one starts from, or nothing: that run comes first."""
    start = run_spec(wildcards).warm_start
    return f"{RESULTS}/runs/{start.run}/record.json" if start else []


def chain_runs(wildcards):
    """Return the names of a run and of those before it in its chain, the last one first."""
    return STUDY.chain("{task}/{model}/{variant}/s{seed}".format(**wildcards))


def earlier_runs(wildcards):
    """Return the names of the runs before this one in its chain, the last one first."""
    return chain_runs(wildcards)[1:]


def trial_records(wildcards):
    """Return the records of the runs that try values for this one: they come first."""
    tuned = run_spec(wildcards).tuned
    return [f"{RESULTS}/runs/{run}/record.json" for run in tuned.runs] if tuned else []


def trials_of_pack(pack):
    """Return the records of the runs that try values for the runs of a pack."""
    runs = [run for member in pack if member.spec.tuned for run in member.spec.tuned.runs]
    return [f"{RESULTS}/runs/{run}/record.json" for run in dict.fromkeys(runs)]


def cell_spec(wildcards):
    """Return the spec behind results/<study>/crosscheck/<task>/<model>/<variant>.json."""
    return CELLS[f"{wildcards.task}/{wildcards.model}/{wildcards.variant}"]


def needs(job):
    """Return a job's time limit and memory, each a function of its wildcards and attempt.

    They are there under the names of Snakemake (runtime in minutes) and of its HTCondor plugin.
    """
    return {
        "runtime": lambda wildcards, attempt: _needs(job, wildcards, attempt).minutes,
        "mem_mb": lambda wildcards, attempt: _needs(job, wildcards, attempt).mem_mb,
        "allowed_execute_duration": lambda wildcards, attempt: (
            60 * _needs(job, wildcards, attempt).minutes
        ),
        "htcondor_request_mem_mb": lambda wildcards, attempt: (
            _needs(job, wildcards, attempt).mem_mb
        ),
    }


def pack_needs(pack):
    """Return a pack's time limit and memory, as `needs` does: those of its runs together."""

    def need(attempt):
        spec = pack[0].spec
        one = CLUSTER.needs("train", [spec.model.name], [spec.task.name], attempt)
        return min(one.minutes * len(pack), CLUSTER.most_minutes), one.mem_mb * len(pack)

    return {
        "runtime": lambda wildcards, attempt: need(attempt)[0],
        "mem_mb": lambda wildcards, attempt: need(attempt)[1],
        "allowed_execute_duration": lambda wildcards, attempt: 60 * need(attempt)[0],
        "htcondor_request_mem_mb": lambda wildcards, attempt: need(attempt)[1],
    }


def _needs(job, wildcards, attempt):
    """Return what config/cluster.yaml gives a job, for its task and model or for all of them."""
    models = [wildcards.model] if "model" in wildcards.keys() else list(MODELS)
    tasks = [wildcards.task] if "task" in wildcards.keys() else list(TASKS)
    if job in ("forgetting", "language_loss"):  # they read the tasks before
        names = chain_runs(wildcards)
        tasks = [RUNS[run].task.name for run in names[job == "forgetting" :]]
    processes = PROCESSES if job == "train" else 1
    return CLUSTER.needs(job, models, tasks, attempt, processes)


def from_results(*names):
    """Return a function that gives a path beside results/, where a module's prefix may put both."""
    return lambda wildcards, input: str(Path(input.study).parents[2].joinpath(*names))


def given(path):
    """Mark an input that is no product of the workflow: a module's prefix does not apply to it."""
    return local(str(path))


def parent(wildcards, output):
    """Return the folder of a rule's first output."""
    return str(Path(output[0]).parent)
