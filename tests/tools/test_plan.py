"""Plans: what Snakemake says is read right, and estimates follow from what was measured."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from loraudit.base.errors import UserError
from loraudit.base.files import read_json, write_json
from loraudit.base.gpu_slots import FOLDER, PER_GPU, VISIBLE, Device, hold
from loraudit.base.yaml_file import read_yaml
from loraudit.studies import paths
from loraudit.studies.cluster import read_cluster
from loraudit.studies.expand import load_configured, load_study
from loraudit.studies.launcher import read_launcher
from loraudit.studies.method_settings import ALoRASettings
from loraudit.studies.record import read_record, write_record
from loraudit.studies.spec import WarmStart, digest
from loraudit.studies.study import Run, Study
from loraudit.tools import calibrate, plan
from loraudit.tools.beside import BESIDE, HEADED, Reading, beside_seconds
from tiny import changed, make_spec, make_task
from tiny_study import small_study

CELL = {"task": "words", "model": "tiny"}
JOBS = [
    {"rule": "train", "wildcards": {**CELL, "variant": "lora-r2-q+v", "seed": "0"}},
    {"rule": "crosscheck", "wildcards": {**CELL, "variant": "r2-q+v"}},
    {"rule": "train", "wildcards": {**CELL, "variant": "head", "seed": "11"}},
    {"rule": "figures", "wildcards": {}},
    {"rule": "all", "wildcards": {}},
]


def test_the_dry_run_is_read():
    jobs = plan.parse_jobs("\n".join(map(json.dumps, JOBS)))
    assert jobs.rules == {"crosscheck": 1, "train": 2, "figures": 1}
    assert jobs.runs == {"words/tiny/lora-r2-q+v/s0", "words/tiny/head/s11"}
    assert jobs.cells == {"words/tiny/r2-q+v"}
    assert plan.parse_jobs("").rules == {}
    beside = {**CELL, "variant": "lora-r2-q+v", "seed": "1"}
    lines = [json.dumps({"rule": rule, "wildcards": beside}) for rule in BESIDE]
    found = plan.parse_jobs("\n".join(lines)).beside
    assert found == {rule: {"words/tiny/lora-r2-q+v/s1"} for rule in BESIDE}


def test_the_dry_run_names_the_runs_of_packs():
    names = [["t/m/lora/s0", "t/m/lora/s1"], ["t/m/lora/s2", "t/m/lora/s3"]]
    lines = [
        json.dumps({"rule": f"train_packed_{number}", "wildcards": {}, "runs": runs})
        for number, runs in enumerate(names)
    ]
    jobs = plan.parse_jobs("\n".join(lines))
    assert jobs.rules == {"train_packed": 2} and jobs.runs == {*names[0], *names[1]}


def test_a_dry_run_names_every_run_of_a_study_that_is_not_there(project):
    root = Path(__file__).parents[2]
    shutil.copyfile(root / "Snakefile", "Snakefile")
    for folder in ("workflow", "src"):
        shutil.copytree(root / folder, folder)
    shutil.rmtree("results")
    study = load_configured({**read_yaml("config/config.yaml"), "study": "small"})
    jobs = plan.dry_run(["study=small"])
    assert jobs.runs == {run.id for run in study.runs}
    assert jobs.cells == set(study.cells())
    assert jobs.rules["train"] == len(study.runs)


def test_snakemakes_own_error_is_passed_on(project):
    Path("Snakefile").write_text("rule all:\n    input: 'nowhere'\n")
    with pytest.raises(UserError, match=r"can't plan this: .*nowhere"):
        plan.dry_run([])


def test_snakemakes_reason_is_passed_on_and_not_where_it_arose(project):
    """Its last line names the place in the workflow."""
    lines = ["from snakemake.exceptions import WorkflowError", "raise WorkflowError('too late')"]
    Path("Snakefile").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"can't plan this: too late$"):
        plan.dry_run([])


def test_rank_and_seed_do_not_make_another_kind_but_batch_and_targets_do():
    spec = make_spec()
    for change in ({"rank": 2}, {"seed": 7}, {"learning_rate": 1.0}, {"epochs": 9}):
        assert plan.class_key(changed(spec, **change)) == plan.class_key(spec)
    for change in ({"global_batch": 16}, {"targets": ("q",)}, {"max_length": 16}):
        assert plan.class_key(changed(spec, **change)) != plan.class_key(spec)
    assert plan.cost_key(changed(spec, epochs=9)) != plan.cost_key(spec)
    assert plan.cost_key(changed(spec, seed=9)) == plan.cost_key(spec)


def test_rows_come_from_the_fetched_task_or_its_published_sizes(tiny, tmp_path):
    sizes = {"train": 100, "validation": 10}
    published = make_task(rows=sizes)
    spec = make_spec(train_rows=64)
    assert calibrate.row_counts(published, tmp_path, spec) == {"train": 64, "validation": 10}
    assert calibrate.row_counts(published, tmp_path, make_spec()) == sizes
    assert calibrate.row_counts(make_task(), tmp_path, spec) is None
    found = calibrate.row_counts(make_task(), tiny / "task", make_spec())
    assert found == {"train": 256, "validation": 128}


CPU = "profiles/accelerate/cpu.yaml"


def measured(spec, task: Path, model: Path, launch: str = CPU) -> dict:
    folders = {"task": task, "tokens": task / "tokens", "model": model}
    return calibrate.measure(spec.model_dump(mode="json"), folders, read_launcher(launch), 1)


@pytest.mark.parametrize("method", ["lora", "peft", "full", "head"])
def test_a_kind_of_run_is_measured_on_its_own_rows(tiny, method):
    found = measured(make_spec(method=method), tiny / "task", tiny / "model")
    assert found["real_rows"] and found["steps"] == calibrate.STEPS
    spec, layers = make_spec(), 2
    adapted = spec.lora.rank * len(spec.lora.targets) * layers
    assert found["ranks"] == (adapted if method in ("lora", "peft") else 0)
    for name in ("step_seconds", "evaluate_row_seconds", "ready_seconds", "memory_mib"):
        assert found[name] > 0
    assert (found["saved_values"] > 0) == (method != "full")


def test_without_data_tokens_are_random_and_without_weights_the_model_is(tiny, tmp_path):
    assert not measured(make_spec(), tmp_path, tiny / "model")["real_rows"]
    shutil.copy(tiny / "model/config.json", tmp_path)
    assert not measured(make_spec(), tmp_path, tmp_path)["real_rows"]


def test_a_launch_on_several_machines_is_not_timed_here():
    with pytest.raises(UserError, match="a launch on several machines"):
        plan.measure_launch("profiles/accelerate/two_nodes.yaml", 1)


def test_a_launch_is_timed_beside_calibrations_that_share_its_gpu(monkeypatch, tmp_path):
    """It waited for the first of the places on the GPU, and its time had the waiting in it."""
    monkeypatch.setenv(VISIBLE, "3")
    monkeypatch.setenv(FOLDER, str(tmp_path / "locks"))
    seen = []

    def launched(command, env, **options):
        with hold(1, ["3"], int(env[PER_GPU])):
            seen.append(os.environ[VISIBLE])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(plan.subprocess, "run", launched)
    with hold(1, ["3"], 2):
        plan.measure_launch("profiles/accelerate/gpu.yaml", 1, 2)
    assert seen == ["3"]


def test_a_gpus_launch_file_needs_a_gpu(tiny):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="this machine has none"):
        measured(make_spec(), tiny / "task", tiny / "model", "profiles/accelerate/gpu.yaml")


def test_a_runs_seconds_add_up():
    cost = {"ready_seconds": 10, "step_seconds": 2, "evaluate_row_seconds": 0.1, "ranks": 32}
    spec = make_spec(epochs=3, global_batch=8)
    rows = {"train": 17, "validation": 10, "mismatched": 10}
    assert calibrate.run_seconds(spec, rows, cost) == pytest.approx(10 + 3 * 3 * 2 + 3 * 20 * 0.1)
    once = changed(spec, validate_epochs="last")
    assert calibrate.run_seconds(once, rows, cost) == pytest.approx(10 + 3 * 3 * 2 + 20 * 0.1)
    moving = changed(
        spec, method="alora", alora=ALoRASettings(first=1, between=0.75, rounds=9, rows=8)
    )
    scored = calibrate.run_seconds(moving, rows, cost) - calibrate.run_seconds(spec, rows, cost)
    assert scored == pytest.approx(3 * 32 * 8 * 0.1)  # after epochs 1, 1.75 and 2.5 of 3


@pytest.fixture
def planned(project, monkeypatch):
    """Return a function that plans study "small", measuring in this process."""

    def serial(tasks, slots):
        cache, failed = plan._cache(), {}
        for task in tasks:
            try:
                cache.setdefault(task.key, task.call(*task.arguments))
            except UserError as error:
                failed[task.key] = f"no estimate: {error}"
        write_json(plan.CACHE, cache)
        return cache, failed

    monkeypatch.setattr(plan, "_measured", serial)
    monkeypatch.setattr(plan, "measure_launch", lambda profile, threads, per_gpu: 5.0)

    def call(todo: set[str], cells: frozenset[str] = frozenset(), **options) -> dict:
        jobs = plan.Jobs({"train": len(todo), "crosscheck": len(cells)}, todo, set(cells))
        monkeypatch.setattr(plan, "dry_run", lambda given: jobs)
        config = paths.settings("small") | options.pop("config", {})
        return plan.plan(config, [], options.pop("cores", 2), **options)

    return call


def ids() -> set[str]:
    return {run.id for run in plan.load_configured(paths.settings("small")).runs}


def test_finished_runs_of_this_machine_are_preferred(planned):
    for path in Path("results/small/runs").rglob("record.json"):
        record = read_record(path)
        seconds = {**record.train.seconds, "total": 100.0}
        here = {"processor": plan.processor(), "threads": 1}
        write_record(
            path.parent,
            record.model_copy(
                update={
                    "train": record.train.model_copy(update={"seconds": seconds}),
                    "environment": record.environment | here,
                }
            ),
        )
    found = planned(ids())
    assert {kind["source"] for kind in found["kinds"]} == {"2 finished runs"}
    assert {kind["seconds"] for kind in found["kinds"]} == {105.0}
    assert found["wall_seconds"] == pytest.approx(3 * 105)
    assert found["cpu_seconds"] == pytest.approx(6 * 105)
    assert found["runs"] == {"all": 6, "done": 0, "to do": 6}
    other = planned(ids(), config={"threads": 2}, measure=False)
    assert {kind["source"] for kind in other["kinds"]} == {"unknown"}


def test_a_run_of_another_spec_tells_nothing_of_todays(planned):
    finished_here("cpu", [])
    assert {kind["source"] for kind in planned(ids())["kinds"]} == {"2 finished runs"}
    path = Path("config/studies/small.yaml")
    content = yaml.safe_load(path.read_text())
    content["defaults"]["epochs"] = 50
    path.write_text(yaml.safe_dump(content))
    study, here = load_configured(paths.settings("small")), planned(set(), measure=False)["machine"]
    assert {run.spec.epochs for run in study.runs} == {50}
    assert plan.finished_costs(study, plan.Machine(**here)) == {}


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "{"])
def test_damaged_files_are_as_if_they_were_not_there_or_named(planned, content):
    finished_here("cpu", [])
    damaged = min(Path("results/small/runs").rglob("record.json"))
    whole = damaged.read_text()
    damaged.write_text(content)
    plan.CACHE.parent.mkdir(exist_ok=True)
    plan.CACHE.write_text(content)
    sources = {kind["source"] for kind in planned(ids())["kinds"]}
    assert sources == {"1 finished run", "2 finished runs"}
    assert plan._cache().keys()  # the measured launch
    damaged.write_text(whole)
    manifest = Path("resources/tasks/words/manifest.json")
    manifest.write_text(content)
    with pytest.raises(UserError, match=f"{manifest}: damaged; delete the folder"):
        planned(ids())


def finished_here(device: str, gpus: list[str]) -> None:
    """Make the finished runs look as if they had run on this machine, on such a device."""
    for path in Path("results/small/runs").rglob("record.json"):
        record = read_record(path)
        here = {"processor": plan.processor(), "threads": 1, "device": device, "gpus": gpus}
        environment = record.environment | here
        write_record(path.parent, record.model_copy(update={"environment": environment}))


@pytest.mark.parametrize(
    ("ran_on", "gpus", "launch", "source"),
    [
        ("cpu", [], "cpu", "2 finished runs"),
        ("cpu", ["NVIDIA L4"], "cpu", "2 finished runs"),
        ("cpu", [], "gpu", "unknown"),
        ("cuda:0", ["NVIDIA L4"], "gpu", "2 finished runs"),
        ("cuda:0", ["NVIDIA H100"], "gpu", "unknown"),
        ("cuda:0", ["NVIDIA L4"], "cpu", "unknown"),
    ],
)
def test_a_run_costs_what_runs_on_such_a_device_did(
    planned, monkeypatch, ran_on, gpus, launch, source
):
    finished_here(ran_on, gpus)
    monkeypatch.setenv(VISIBLE, "0")
    monkeypatch.setattr(plan, "installed", lambda: [Device("0", "NVIDIA L4")])
    found = planned(ids(), measure=False, config={"launch": launch})
    assert {kind["source"] for kind in found["kinds"]} == {source}


@pytest.mark.parametrize(
    ("visible", "runs_per_gpu", "asked", "at_once"),
    [("0", 1, None, 1), ("0,1", 1, None, 2), ("0,1", 2, None, 4), ("", 1, None, 1), ("0", 1, 3, 3)],
)
def test_no_more_runs_than_places_on_the_gpus_are_planned_at_once(
    planned, monkeypatch, visible, runs_per_gpu, asked, at_once
):
    finished_here("cuda:0", ["NVIDIA L4"])
    monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.setattr(plan, "installed", lambda: [Device("0", "NVIDIA L4")])
    config = {"launch": "gpu", "runs_per_gpu": runs_per_gpu}
    found = planned(ids(), measure=False, cores=16, gpus=asked, config=config)
    assert found["at once"] == at_once
    each = [k["seconds"] for k in found["kinds"] for _ in range(k["runs"])]
    assert found["wall_seconds"] >= sum(each) / at_once - 1e-9
    assert f"{len(found['machine']['gpus'])} GPU" in "\n".join(plan.sentences(found))


@pytest.mark.parametrize(("launch", "each"), [("gpu", 1), ("gpu2", 2), ("gpu8", 8)])
def test_fewer_gpus_than_a_run_takes_are_refused(launch, each):
    config = plan.Config(**paths.configuration() | {"study": "small", "launch": launch})
    run = Run(id="a", label="", spec=make_spec(global_batch=16, micro_batch=2))
    study = Study(name="small", question="?", runs=(run,))
    assert len(plan._machine(study, config, 8, "h100", each).gpus) == each
    for few in {1, each - 1} - {0, each}:
        with pytest.raises(UserError, match=rf"gpus: {few}: .*'{launch}' .*legal: {each} or more"):
            plan._machine(study, config, 8, "h100", few)


def test_memory_limits_the_runs_at_once(planned, monkeypatch):
    need = read_cluster().needs("train", ["tiny"], ["words"], 1).mem_mb
    for places in (1, 3):
        monkeypatch.setattr(plan, "memory_mb", lambda room=places * need: room)
        assert planned(ids(), measure=False, cores=8)["at once"] == places


def test_a_measurement_has_a_gpu_to_itself_and_the_rows_of_one_process(monkeypatch, tmp_path):
    monkeypatch.setenv(VISIBLE, "3,5")
    monkeypatch.setenv(FOLDER, str(tmp_path / "locks"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    seen = []

    def inner(spec, folders, launch, threads):
        seen.append((os.environ[VISIBLE], spec.global_batch))
        return {"evaluate_row_seconds": 1.0}

    monkeypatch.setattr(calibrate, "_measure", inner)
    fields = make_spec(global_batch=16, micro_batch=4).model_dump(mode="json")
    for name, batch in (("gpu", 16), ("gpu2", 8)):
        launcher = read_launcher(f"profiles/accelerate/{name}.yaml")
        cost = calibrate.measure(fields, {}, launcher, 1)
        device, rows = seen.pop()
        assert device in ("3", "5") and rows == batch
        assert cost["evaluate_row_seconds"] == batch / 16
        monkeypatch.setenv(VISIBLE, "3,5")


@pytest.mark.slow
def test_what_never_ran_is_measured_once(planned):
    shutil.rmtree("results/small")
    cell = frozenset({"words/tiny/r2-q+v"})
    found = planned(ids(), cell)
    assert {kind["source"] for kind in found["kinds"]} == {"calibration"}
    assert [kind["runs"] for kind in found["kinds"]] == [2, 2, 2]
    assert found["crosscheck_seconds"].keys() == {"tiny"} and found["launch_seconds"] == 5.0
    total = sum(kind["seconds"] * kind["runs"] for kind in found["kinds"])
    assert found["cpu_seconds"] == pytest.approx(total + found["crosscheck_seconds"]["tiny"])
    before = read_json(plan.CACHE)
    assert planned(ids(), cell)["kinds"] == found["kinds"]
    assert read_json(plan.CACHE) == before
    assert planned(ids(), cell, again=True)["kinds"] != found["kinds"]
    text = "\n".join(plan.sentences(found))
    assert "runs: 6, done 0, to do 6" in text and "time: about" in text


def test_no_estimate_is_said_with_its_reason(planned):
    shutil.rmtree("results/small")
    shutil.rmtree("resources")
    shutil.rmtree("tiny-model")
    found = planned(ids())
    assert found["jobs_without_estimate"] == 6
    (note,) = [note for note in found["notes"] if "the model is not here" in note]
    assert note.startswith("words tiny lora q+v, words tiny peft q+v, words tiny head: no estimate")
    text = "\n".join(plan.sentences(found))
    assert "no estimate for 6 runs" in text and "time:" not in text
    assert found["runs"]["to do"] == 6


def test_a_local_models_folder_is_enough(planned):
    shutil.rmtree("results/small")
    shutil.rmtree("resources/models")
    found = planned(ids())
    assert {kind["source"] for kind in found["kinds"]} == {"calibration"}
    assert found["jobs_without_estimate"] == 0
    shutil.rmtree("resources/tokens")
    for path in Path("tiny-model").glob("tokenizer*"):
        path.unlink()
    found = planned(ids(), again=True)
    assert {kind["source"] for kind in found["kinds"]} == {"calibration at max_length"}


@pytest.fixture
def chain() -> Study:
    """Give a study of three runs, each from the one before, on two tasks; nothing is trained."""
    runs, start = [], None
    for name, task in (("a", "words"), ("b", "letters"), ("c", "words")):
        spec = make_spec(task=make_task(name=task, rows={"train": 80, "validation": 30}), epochs=2)
        spec = changed(spec, warm_start=start)
        runs.append(Run(id=f"{task}/tiny/{name}/s0", label="", spec=spec))
        start = WarmStart(run=runs[-1].id, spec_sha256=digest(spec), tensors="adapter")
    return Study(name="chain", question="?", runs=tuple(runs), language_loss=20)


def test_jobs_that_read_a_chain_of_runs_cost_their_models_and_rows(chain):
    names = [run.id for run in chain.runs]
    costs = Reading(5, 0.1, 30), Reading(7, 0.2, 10), Reading(9, 0.3, 30)
    readings = dict(zip(names, costs, strict=True))
    earlier = (7 + 2 * 10 * 0.2) + (5 + 2 * 30 * 0.1)
    assert beside_seconds("forgetting", chain, names[2], readings) == pytest.approx(earlier)
    rows = 2 * (20 * 0.3 + 10 * 0.2 + 20 * 0.1)
    found = beside_seconds("language_loss", chain, names[2], readings)
    assert found == pytest.approx(2 * 9 + HEADED * rows)
    assert beside_seconds("forgetting", chain, names[2], {**readings, names[0]: None}) is None


def test_a_plan_prices_jobs_on_forgetting_after_the_runs_that_they_read(
    chain, tmp_path, monkeypatch
):
    """All else is free, so that the plan's seconds are those of the jobs alone."""
    monkeypatch.chdir(tmp_path)
    names = [run.id for run in chain.runs]
    cost = {"ready_seconds": 10.0, "step_seconds": 0.0, "evaluate_row_seconds": 0.5, "ranks": 0}
    cost |= {"real_rows": True, "saved_values": 0, "memory_mib": 1.0}
    measured = plan.Calibration({plan.class_key(r.spec): cost for r in chain.runs}, {}, 0.0, [])
    room = ("cpu", 2, "2.0", 1, 2, str(Path(__file__).parents[2] / CPU), 10**6, (), 1)
    machine, rules = plan.Machine(*room), {"train": 0, "forgetting": 2, "figures": 1}
    jobs = plan.Jobs(rules, set(), set(), {"forgetting": {names[1], names[2]}})
    answer = plan._answer(chain, jobs, machine, {}, measured)
    each = 10 + 2 * 30 * 0.5
    assert answer["cpu_seconds"] == pytest.approx(each + 2 * each)
    assert answer["wall_seconds"] == pytest.approx(3 * each)  # one waits for the other's run
    assert (answer["jobs_without_estimate"], answer["other_jobs"]) == (0, 1)
    assert answer["steps"] == 0 and answer["runs"]["to do"] == 0
    unknown = plan._answer(chain, jobs, machine, {}, plan.Calibration({}, {}, None, []))
    assert unknown["jobs_without_estimate"] == 2
    shown = {"power": [], "pairs": [], "claims": [], "coarse": {}}
    assert any("time: about" in line for line in plan.sentences(answer | shown))
    said = "\n".join(plan.sentences(unknown | shown))
    assert "no estimate for 2 runs, cross-checks and jobs that read runs" in said


def test_what_finished_runs_tell_of_reading_them_again(chain, tmp_path, monkeypatch):
    """Two epochs of 30 rows were scored in 12 s; what was neither that nor steps is the start."""
    monkeypatch.chdir(tmp_path)
    spec = chain.runs[0].spec
    room = ("cpu", 2, "2.0", 1, 2, str(Path(__file__).parents[2] / CPU), 10**6, (), 1)
    known = {plan.cost_key(spec): {"ready": 8.0, "evaluate": 12.0}}
    nothing = plan.Calibration({}, {}, None, [])
    assert plan._reading(spec, known, nothing, plan.Machine(*room)) == Reading(8.0, 0.2, 30)


def test_a_size_that_nobody_knows_yet_leaves_the_time_open(planned):
    """The step is timed all the same."""
    shutil.rmtree("results/small")
    shutil.rmtree("resources/tasks")
    found = planned(ids())
    assert found["jobs_without_estimate"] == 6
    assert all(kind["step"] > 0 and kind["seconds"] is None for kind in found["kinds"])
    assert any("its size is unknown until it is fetched" in note for note in found["notes"])


def test_what_is_known_of_tasks_and_models_is_noted(planned):
    models = Path("config/models.yaml")
    text = models.read_text()
    models.write_text(text.replace("tiny: {family", "tiny: {trained_on: {words: a corpus}, family"))
    manifest = Path("resources/tasks/words/manifest.json")
    write_json(manifest, read_json(manifest) | {"remarks": ["validation: odd rows"]})
    notes = planned(set())["notes"]
    assert any("tiny was trained on data of words before (a corpus)" in note for note in notes)
    assert "task words: validation: odd rows" in notes


def test_kinds_of_one_reason_share_a_note():
    assert plan.some_of(["a"]) == "a" and plan.some_of(["a", "b", "c"]) == "a, b, c"
    assert plan.some_of(map(str, range(43))) == "0, 1, 2 and 40 more"
    runs = [
        plan.Run(id=f"t{n}", label="", spec=make_spec(task=make_task(name=f"t{n}"))) for n in (1, 2)
    ]
    (note,) = plan._unknown_sizes(runs)
    assert note.startswith("tasks t1, t2: ")


@pytest.mark.parametrize("name", ["quickstart", "frozen-head", "adaptive", "mlp", "code-table2"])
def test_the_rows_of_a_plan_can_be_told_apart(name):
    """Though runs of one method and targets may cost differently, by rank or by label."""
    study = load_study(f"config/studies/{name}.yaml")
    costs = {run.id: plan.UNKNOWN._replace(step=0.1 * plan._rank(run.spec)) for run in study.runs}
    kinds = plan._kinds(study.runs, set(), costs)
    empty = {"power": [], "pairs": [], "claims": [], "study": name, "kinds": kinds}
    ((_, columns, rows),) = plan.sections(empty)
    until = columns.index("runs")
    shown = [tuple(row[:until]) for row in rows]
    assert len(set(shown)) == len(shown)
    assert ("rank" in columns) == any(run.spec.adapter for run in study.runs)
    cheap = plan._kinds(study.runs, set(), dict.fromkeys(costs, plan.UNKNOWN))
    assert sum(kind["runs"] for kind in cheap) == len(study.runs)
    ranks = {rank for kind in cheap for rank in kind["ranks"]}
    assert ranks == {plan._rank(run.spec) for run in study.runs} - {0}


def test_nothing_to_do_takes_no_time(planned):
    found = planned(set())
    assert found["wall_seconds"] == 0 and found["runs"]["done"] == 6
    assert not any(line.startswith("time") for line in plan.sentences(found))


def test_a_plan_says_what_the_seeds_can_show():
    """MRPC of the paper's Table 2: five seeds, ± 0.7, margin 1.5; full fine-tuning has no ±."""
    study = load_study("config/studies/paper-table2.yaml", {"task": "mrpc"})
    power = [row for row in plan.planned_power(study) if row["task"] == "mrpc"]
    lora, full = (next(r for r in power if r["method"] == m) for m in ("lora", "full"))
    assert not any(row["method"] == "peft" for row in power)  # its rows would be LoRA's again
    assert (lora["n"], lora["published_n"], lora["margin"]) == (5, 5, 0.015)
    assert 0.5 < lora["chance"] < 0.8 < lora["at_most"]
    assert 5 < lora["seeds"] < 20
    assert full["chance"] is None
    json.dumps(power, allow_nan=False)
    ((_, columns, rows),) = plan._power_section(power)
    assert [row[:4] for row in rows] == [["mrpc", "lora r8 q+v", "hu2022.table2", "5 (5)"]]
    assert len(columns) == len(rows[0])


def test_a_plan_says_what_the_seeds_can_show_of_pairs(tmp_path, monkeypatch):
    study = small_study()
    monkeypatch.chdir(tmp_path)  # where nothing has run
    unknown, known = plan.planned_pairs(study), plan.planned_pairs(study, 0.01)
    assert [row["sd"] for row in unknown] == [None] and plan._pair_section(unknown) == []
    ((_, columns, (line,)),) = plan._pair_section(known)
    assert line[1] == "lora - full" and len(line) == len(columns)
    assert float(line[-2]) > 1 and int(line[-1]) > 2
    json.dumps([unknown, known], allow_nan=False)


def test_in_another_folder_the_shipped_workflow_is_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan.dry_run(["study=quickstart"]).rules["train"] > 0


def test_it_needs_the_repository(project):
    with pytest.raises(UserError, match="no Snakefile here"):
        plan.dry_run([])
