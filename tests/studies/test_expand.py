"""Studies: layers, grids, warm starts, ablations; bad input gets one clear error."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from loraudit.analysis.section7_runs import lora_runs
from loraudit.base.errors import UserError
from loraudit.data.fetch_task import fetch_task
from loraudit.report.figure_registry import study_figures
from loraudit.studies import expand
from loraudit.studies.entries import FolderSource
from loraudit.studies.entry_files import load_model, load_task
from loraudit.studies.expand import load_configured, load_study, parse_targets
from loraudit.studies.method_settings import AdaLoRASettings, ALoRASettings
from loraudit.studies.reference import select
from loraudit.studies.spec import digest
from tiny import changed, save_hub_folder, tiny_entry

STUDIES = sorted(Path("config/studies").glob("*.yaml"))
CONFIG = yaml.safe_load(Path("config/config.yaml").read_text())


def study_file(folder, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_load(path):
    study = load_study(path)
    assert study.name == path.stem
    assert study.question
    assert len({run.id for run in study.runs}) == len(study.runs) > 0


def test_quickstart_is_the_grid_of_the_readme():
    runs = load_study("config/studies/quickstart.yaml").runs
    adapters = [run.spec for run in runs if run.spec.adapter]
    cells = {(s.method, s.lora.rank, len(s.lora.targets), s.seed) for s in adapters}
    ours = [(1, 2), (2, 2), (4, 2), (8, 2), (8, 6)]  # rank, matrices of a layer
    pefts = [(8, 2)]
    assert cells == {
        (method, *cell, seed)
        for method, all_cells in (("lora", ours), ("peft", pefts))
        for cell in all_cells
        for seed in (0, 1, 2)
    }
    baselines = [run.spec.method for run in runs if not run.spec.adapter]
    assert baselines == ["head"] * 3 + ["probe"] * 3 + ["full"] * 3
    ratios = {round(s.lora.alpha / s.lora.rank**0.5, 9) for s in adapters}
    assert len(ratios) == 1  # rsLoRA's scaling: ranks are compared, and not scalings


def test_the_quickstarts_settings_are_among_those_that_its_tuning_study_tried():
    study = load_study("config/studies/quickstart.yaml")
    assert study.settings_from in (None, "quickstart-tuning")
    source = load_study("config/studies/quickstart-tuning.yaml")
    tuned = {run.id.rpartition("/")[0]: run.spec for run in source.runs}
    tried_seeds = {run.spec.seed for run in source.tuning}
    for run in study.runs:
        cell = run.id.rpartition("/")[0].replace("/peft-", "/lora-")  # twins are tuned together
        theirs = tuned[cell]
        own = {f: run.spec.flat()[f] for f in (theirs.tuned.fields if theirs.tuned else ())}
        if theirs.tuned:
            assert own in [candidate.values for candidate in theirs.tuned.candidates]
            theirs = theirs.with_values(own)
        same = {"tuned": None, "selection_rows": None}
        same |= {"method": run.spec.method, "seed": run.spec.seed}
        assert theirs.model_copy(update=same) == run.spec
        assert run.spec.seed not in tried_seeds


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("settings_from: quickstart-tunin", "'quickstart-tunin' is not known; did you mean 'quic"),
        ("settings_from: quickstart", "quickstart: expected a study with `tune`"),
        (
            "settings_from: quickstart-tuning\ndefaults: {seed: [0, 100]}",
            "seeds: 100 tuned with in quickstart-tuning; report other seeds",
        ),
    ],
)
def test_settings_come_from_a_study_that_tunes_with_other_seeds(tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        load_study(study_file(tmp_path, f"{keys}\ngrid: [{{method: full}}]"))


def test_lists_are_axes_and_other_axes_show_in_the_name(tmp_path):
    study = load_study(study_file(tmp_path, "grid: [{alpha: [8, 16], seed: [0, 1], rank: 4}]"))
    assert [run.id for run in study.runs] == [
        f"snippets/minilm/lora-r4-q+v-alpha{alpha}/s{seed}" for alpha in (8, 16) for seed in (0, 1)
    ]
    assert len(study.cells()) == 2


def test_switches_override_and_name_the_study(tmp_path):
    plain = load_configured(CONFIG)
    switched = load_configured({**CONFIG, "task": "mrpc", "glue": "some/folder"})
    assert switched.name == "quickstart-mrpc"
    assert len(switched.runs) == len(plain.runs)
    assert {run.spec.task.name for run in switched.runs} == {"mrpc"}
    assert switched.runs[0].spec.task.source == FolderSource(folder="some/folder", config="mrpc")


@pytest.mark.parametrize("study", ["quickstart", "quickstart-tuning", "rank"])
@pytest.mark.parametrize("task", ["cola", "mrpc", "qqp", "rte", "sst2"])
def test_a_task_that_replaces_the_studys_own_is_not_asked_for_more_rows_than_it_has(study, task):
    switched = load_configured({**CONFIG, "study": study, "task": task})
    for run in switched.all_runs:
        spec, rows = run.spec, run.spec.task.rows
        assert (spec.train_rows or 0) + (spec.selection_rows or 0) <= rows["train"]
        assert (spec.validation_rows or 0) <= rows["validation"]
    (own,) = {run.spec.train_rows for run in load_configured({**CONFIG, "study": study}).runs}
    if own + (spec.selection_rows or 0) <= rows["train"]:
        assert {run.spec.train_rows for run in switched.all_runs} == {own}


def test_a_folder_of_models_stands_in_for_the_hub():
    study = load_configured({**CONFIG, "model": "roberta-base", "models": "m"})
    assert study.runs[0].spec.model.source == FolderSource(folder="m/roberta-base")


def test_fields_that_a_method_does_not_use_are_blank(tmp_path):
    (run,) = load_study(study_file(tmp_path, "grid: [{method: full}]")).runs
    assert run.spec.adapter is None
    assert {run.spec.flat()[key] for key in ("rank", "targets", "alpha")} == {None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: [{rnak: 3}]", r"'rnak' is not known; did you mean 'rank'"),
        ("grdi: []", r"'grdi' is not known; did you mean 'grid'"),
        ("grid: []", "grid: expected a list of blocks"),
        ("grid: [{task: mprc}]", r"task: 'mprc' is not known; did you mean 'mrpc'"),
        ("grid: [{model: mini}]", r"model: 'mini' is not known; did you mean 'minilm'"),
        (
            "grid: [{targets: q+w}]",
            r"targets: 'w' is not known.*legal: all, down, gate, k, o, q",
        ),
        ("grid: [{method: lroa}]", r"method: 'lroa' is not known; did you mean 'lora'"),
        ("grid: [{rank: 0}]", "rank = 0: .*greater than or equal to 1"),
        ("grid: [{rank: -8}]", "rank = -8: .*greater than or equal to 1"),
        ("grid: [{rank: null}]", "rank = None: .*valid integer"),
        ("grid: [{global_batch: 16, micro_batch: 5}]", "global_batch 16 is not divisible"),
        ("grid: [{learning_rate: .nan}]", "learning_rate = nan"),
        ("grid: [{learning_rate: fast}]", "learning_rate = 'fast'"),
        ("grid: [{method: head, head: frozen}]", "would train nothing"),
        ("grid: [{alpha: 8}, {alpha: 16}]", "2 runs are called 'snippets/minilm/lora-r8-q.v/s0'"),
        (
            "contrasts: [[lora-r8-q+v, head], {left: head, right: lora-r8-q+v, asks: equivalence}]"
            "\n"
            "grid: [{method: [lora, head]}]",
            "contrasts: head and lora-r8-q.v: 2 times",
        ),
        ("compare: [hu2022.table2, hu2022.table2]\ngrid: [{method: lora}]", "table2: 2 times"),
        (
            "claims: [hu2022.rank-one-is-enough, hu2022.rank-one-is-enough]\n"
            "grid: [{method: lora}]",
            "claims: hu2022.rank-one-is-enough: 2 times",
        ),
        (
            "ablation: {base: {method: lora}, switches: {rank /2: {rank: 4}, rank *2: {rank: 16}}}",
            "'rank /2' and 'rank .2' would both be called 'rank-2'",
        ),
        (
            "ablation: {base: {label: mine}, switches: {lr: {learning_rate: 1.0e-3}}}",
            "base: label = 'mine': .*for task, model, seed only, and the label is made",
        ),
        (
            "defaults: {rank: [4, 8]}\n"
            "ablation: {base: {method: lora}, switches: {lr: {learning_rate: 1.0e-3}}}",
            "ablation: base: beside an ablation lists are legal for task, model, seed only.*'base'",
        ),
        (
            "defaults: {learning_rate: [1.0e-4, 1.0e-3]}\n"
            "ablation: {base: {method: lora}, switches: {alpha: {alpha: 8}}}",
            "lists are legal for task, model, seed only.*'learning_rate0.0001-base'",
        ),
        (
            "grid: [{method: full, label: lr}]\n"
            "ablation: {base: {method: lora}, switches: {lr: {learning_rate: 1.0e-3}}}",
            "label 'lr' is that of .*grid block 1 too; give it another",
        ),
        (
            "grid: [{method: lora}, {method: full}]\ngrid: [{method: head}]",
            "line 2: key 'grid' stands there twice .before that in line 1",
        ),
        ("grid: [{method: lora, rank: 8, rank: 16}]", "key 'rank' stands there twice"),
        ("grid: [{epochs: yes}]", "epochs = True: no field is true or false .YAML takes yes, no"),
        ("grid: [{seed: [0, on]}]", r"seed = \[0, True\]: no field is true or false"),
        (
            "per_method: {full: {learning_rate: yes}}\ngrid: [{method: full}]",
            "per_method: full: learning_rate = True: no field is true or false",
        ),
        (
            "tune: {axes: {learning_rate: [true, 1.0e-3]}, seeds: [9]}\n"
            "grid: [{method: full, selection_rows: 100}]",
            r"tune: learning_rate = \[True, 0.001\]: no field is true or false",
        ),
        (
            "grid: [{method: peft, peft: {use_rslora: true}, base_bits: 4, init: [error]}]",
            "init = 'error': it is computed for the scaling alpha / rank, and peft's use_rslora",
        ),
        (
            "grid: [{method: peft, peft: {use_rslora: true}, base_bits: 4, ranks: error}]",
            "ranks = 'error': it is computed for the scaling alpha / rank",
        ),
        ("grid: [{label: null}]", "label None: legal are letters"),
        ("grid: [3]", "block 1: expected keys and values, got 3"),
        ("grid: [{", "not valid YAML"),
    ],
)
def test_bad_studies_get_one_clear_error(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_study(study_file(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "quikstart"}, r"study: 'quikstart' is not known; did you mean 'quickstart'"),
        ({"stduy": "x"}, r"'stduy' is not known; did you mean 'study'"),
        ({"launch": 3}, "launch = 3"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_bad_configurations_get_one_clear_error(change, message):
    with pytest.raises(UserError, match=message):
        load_configured({**CONFIG, **change})


def test_a_key_of_config_yaml_that_stands_there_twice_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("study: quickstart\nthreads: 1\nthreads: 2\n")
    with pytest.raises(UserError, match=r"config.yaml, line 3: key 'threads' stands there twice"):
        load_configured(CONFIG, tmp_path)


def test_a_switched_study_is_not_called_as_another_study_is(tmp_path):
    """They would share a folder of results, and each would delete the other's runs."""
    with pytest.raises(UserError, match=r"poster-size-tuned.yaml with task=mrpc .*-mrpc.yaml is"):
        load_configured({**CONFIG, "study": "poster-size-tuned", "task": "mrpc"})
    path = study_file(tmp_path, "grid: [{}]")
    assert load_study(path, {"task": "mrpc"}).name == "mine-mrpc"
    shutil.copy(path, tmp_path / "mine-mrpc.yaml")
    with pytest.raises(UserError, match=r"mine.yaml with task=mrpc would be called 'mine-mrpc'"):
        load_study(path, {"task": "mrpc"})
    assert load_study(tmp_path / "mine-mrpc.yaml").name == "mine-mrpc"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("per_method:", "defaults.yaml: per_method = None"),
        ("per_method: [1]", r"defaults.yaml: per_method = \[1\]"),
        ("per_method: {full: null}", "defaults.yaml: per_method.full = None"),
        ("7: 1", "defaults.yaml: .*7"),
        ("per_method: {full: {learning_rate: yes}}", "full: learning_rate = True: no field"),
    ],
)
def test_wrong_defaults_get_one_clear_error(text, message, tmp_path):
    for name in ("tasks", "models"):
        shutil.copy(f"config/{name}.yaml", tmp_path)
    (tmp_path / "defaults.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_study(study_file(tmp_path, "grid: [{}]"), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_targets_have_one_order_and_must_exist():
    assert parse_targets("v+q", tiny_entry()) == ("q", "v")
    assert parse_targets("all", tiny_entry()) == ("q", "k", "v", "o", "up", "down")
    model = tiny_entry().model_copy(update={"modules": {"q": "a", "v": "b"}})
    assert parse_targets("all", model) == ("q", "v")
    with pytest.raises(UserError, match=r"has no matrix 'up' \(legal: q, v\)"):
        parse_targets("up", model)


def test_layers_the_more_special_wins(tmp_path):
    text = """
protocol: hu2022
defaults: {weight_decay: 0.5, learning_rate: 1.0}
per_task: {mrpc: {learning_rate: 2.0, epochs: 7}}
per_method: {full: {learning_rate: 3.0}}
grid:
  - {task: [mrpc, sst2], method: [lora, full], warm_start: null}
  - {task: mrpc, method: full, learning_rate: 4.0, label: block}
"""
    study = load_study(study_file(tmp_path, text))
    found = {
        (run.spec.task.name, run.spec.method, run.label): run.spec.learning_rate
        for run in study.runs
    }
    assert found == {
        ("mrpc", "lora", ""): 2.0,  # the study's task over its defaults
        ("mrpc", "full", ""): 3.0,  # the method over the task
        ("sst2", "lora", ""): 5e-4,  # the protocol's task over the study's defaults
        ("sst2", "full", ""): 3.0,
        ("mrpc", "full", "block"): 4.0,  # the block over all
    }
    assert {run.spec.weight_decay for run in study.runs} == {0.5}
    assert {run.spec.max_length for run in study.runs} == {512}
    assert study.runs[0].spec.epochs == 7
    assert study.protocol.startswith("Hu et al. 2022")


def test_each_baseline_has_a_learning_rate_of_its_own(tmp_path):
    study = load_study(study_file(tmp_path, "grid: [{method: [lora, full, bitfit, head]}]"))
    defaults = yaml.safe_load(Path("config/defaults.yaml").read_text())
    own = {method: fields["learning_rate"] for method, fields in defaults["per_method"].items()}
    assert set(own) == {"full", "bitfit", "head"}
    for run in study.runs:
        wanted = own.get(run.spec.method, defaults["learning_rate"])
        assert run.spec.learning_rate == wanted


def test_a_study_named_like_its_protocol_keeps_its_fields():
    (model,) = {run.spec.model.name for run in load_study("config/studies/poster.yaml").runs}
    assert model == "roberta-base"


def specs(name: str, **chosen) -> list:
    """Return the specs of a shipped study that have the chosen values."""
    found = [run.spec for run in load_study(f"config/studies/{name}.yaml").runs]
    return [s for s in found if all(getattr(s, key) == value for key, value in chosen.items())]


def setting(table: str, metric: str) -> dict[str, float]:
    """Return a published setting per task."""
    return {n.task: n.value for n in select((table,)) if n.metric == metric}


@pytest.mark.parametrize("protocol", ["hu2022", "microsoft-lora"])
def test_only_adapters_start_from_mnli_in_the_papers_protocols(protocol, tmp_path):
    methods = "[lora, peft, full, full_saved, bitfit, head]"
    text = f"protocol: {protocol}\ngrid: [{{task: [mnli, mrpc], method: {methods}}}]"
    runs = load_study(study_file(tmp_path, text)).runs
    assert {run.spec.method for run in runs if run.spec.warm_start} == {"lora", "peft"}


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_the_papers_protocol_is_its_table_9(method):
    runs = specs("paper-table2", method=method)
    for field, metric in (
        ("global_batch", "batch size"),
        ("epochs", "epochs"),
        ("learning_rate", "learning rate"),
    ):
        assert {s.task.name: getattr(s, field) for s in runs} == setting("hu2022.table9", metric)
    assert {s.max_length for s in runs} == {512}
    adapters = [s.lora for s in runs]
    assert {(a.rank, a.alpha, a.targets) for a in adapters} == {(8, 8, ("q", "v"))}
    assert {s.seed for s in runs} == {0, 1, 2, 3, 4}
    warm = {s.task.name for s in runs if s.warm_start}
    assert warm == {"mrpc", "rte", "stsb"}


def test_the_codes_protocol_has_eight_gpus_batches():
    runs = specs("code-table2", method="lora")
    batches = {s.task.name: s.global_batch for s in runs}
    assert batches == {
        **dict.fromkeys(("mnli", "sst2", "mrpc", "qqp", "stsb"), 128),
        **dict.fromkeys(("qnli", "rte"), 256),
        "cola": 64,
    }
    assert {(s.lora.alpha, s.padding, s.lora.init, s.head) for s in runs} == {
        (16, "max_length", "kaiming", "trained")
    }


def test_the_poster_as_run_differs_from_the_poster_where_its_files_do():
    asked = {s.task.name: s for s in specs("poster", method="lora", seed=42)}
    ran = {s.task.name: s for s in specs("poster-as-run", method="lora", seed=42)}
    assert {name: s.lora.alpha for name, s in ran.items()} == {"sst2": 8, "qqp": 16, "mrpc": 16}
    batches = {n: v for n, v in setting("poster2025.settings_as_run", "batch size").items()}
    assert {name: s.global_batch for name, s in ran.items()} == {n: batches[n] for n in ran}
    assert {s.weight_decay for s in ran.values()} == {0.0}
    assert {s.weight_decay for s in asked.values()} == {0.1}
    assert {s.head for s in [*asked.values(), *ran.values()]} == {"frozen"}


def test_the_grid_has_the_posters_cells_under_both_readings_of_alpha():
    runs = specs("poster-mnli-grid", method="lora", seed=42)
    cells = {(n.rank, n.targets) for n in select(("poster2025.mnli_grid",))}
    assert {(s.lora.rank, "+".join(s.lora.targets)) for s in runs} == cells
    assert {s.lora.scaling for s in runs} == {1.0, 16.0, 8.0, 4.0, 2.0, 0.25}


def test_low_data_has_the_papers_training_sizes():
    rows = {s.train_rows or s.task.rows["train"] for s in specs("low-data", method="full")}
    assert rows == {n.train_rows for n in select(("hu2022.table16",))}


def test_equal_budgets_are_equal():
    """RoBERTa-base: q and v are 768 x 768, up and down 768 x 3072."""
    counts = {}
    for s in specs("mlp", method="lora", seed=0):
        sizes = {"up": 768 + 3072, "down": 768 + 3072}
        rank, targets = s.lora.rank, s.lora.targets
        counts[rank, targets] = 12 * rank * sum(sizes.get(t, 2 * 768) for t in targets)
    assert counts[5, ("q", "v")] == counts[2, ("up", "down")]
    assert counts[20, ("q", "v")] == counts[8, ("up", "down")]
    assert counts[8, ("q", "v")] == 294_912


WARM = """
defaults: {model: roberta-base, seed: [0, 1]}
grid:
  - {task: mnli, method: [lora, peft], rank: [4, 8]}
  - {task: rte, method: [lora, peft, full], rank: 8, warm_start: {task: mnli, tensors: adapter}}
"""


def test_a_warm_start_names_the_run_of_the_same_method_rank_and_seed(tmp_path):
    runs = {run.id: run for run in load_study(study_file(tmp_path, WARM)).runs}
    for method in ("lora", "peft"):
        for seed in (0, 1):
            start = runs[f"rte/roberta-base/{method}-r8-q+v/s{seed}"].spec.warm_start
            assert start.run == f"mnli/roberta-base/{method}-r8-q+v/s{seed}"
            assert start.spec_sha256 == digest(runs[start.run].spec)
    assert runs["rte/roberta-base/full/s0"].spec.warm_start is None


def test_a_change_of_the_first_run_is_a_change_of_the_second(tmp_path):
    found = [
        {run.id: digest(run.spec) for run in load_study(study_file(tmp_path, text)).runs}
        for text in (WARM, WARM.replace("rank: [4, 8]}", "rank: [4, 8], epochs: 9}"))
    ]
    changed = {name for name in found[0] if found[0][name] != found[1][name]}
    assert {name.split("/")[0] for name in changed} == {"mnli", "rte"}
    assert not any("/full/" in name for name in changed)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank: [4, 8]", "rank: 4", "the study has no run on task 'mnli' .*lora, 8, 16, 0"),
        ("task: mnli, tensors", "task: mnil, tensors", "no run on task 'mnil'"),
        ("tensors: adapter}", "tensors: all}", r"warm_start.tensors: 'all' is not known"),
        ("{task: mnli, tensors: adapter}", "mnli", "expected {task, tensors} or null, got 'mnli'"),
    ],
)
def test_a_warm_start_without_its_run_is_refused(tmp_path, old, new, message):
    assert old in WARM
    with pytest.raises(UserError, match=message):
        load_study(study_file(tmp_path, WARM.replace(old, new)))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("init", ["kaiming", "error", "loftq"])
def test_an_adapter_is_not_put_on_the_base_that_another_start_changed(init, steps, tmp_path):
    """LoftQ changes the frozen weights too, by an amount that depends on its steps."""
    path = study_file(
        tmp_path,
        f"""
defaults: {{model: roberta-base, method: lora, rank: 8, base_bits: 4}}
grid:
  - {{task: mnli, init: loftq, loftq_steps: 1}}
  - {{task: rte, init: {init}, loftq_steps: {steps}, warm_start: {{task: mnli, tensors: adapter}}}}
""",
    )
    if (init, steps) == ("loftq", 1):
        assert load_study(path).runs[1].spec.warm_start
        return
    with pytest.raises(UserError, match=r"no run on task 'mnli' .*of the same base .base_bits 4"):
        load_study(path)


def test_one_task_of_a_study_brings_the_runs_that_it_starts_from(tmp_path):
    study = load_study(study_file(tmp_path, WARM), {"task": "rte"})
    assert study.name == "mine-rte"
    found = {(run.spec.task.name, run.spec.flat()["rank"]) for run in study.runs}
    assert found == {("rte", 8), ("rte", None), ("mnli", 8)}


CHAIN = """
defaults: {model: roberta-base, rank: 8, seed: [0, 1]}
grid:
  - {task: cola, method: [lora, peft], warm_start: {task: mrpc, tensors: adapter}}
  - {task: mrpc, method: [lora, peft], warm_start: {task: rte, tensors: adapter}}
  - {task: rte, method: [lora, peft]}
"""


def test_warm_starts_make_a_chain_of_tasks_in_any_order_of_the_blocks(tmp_path):
    study = load_study(study_file(tmp_path, CHAIN))
    runs = {run.id: run for run in study.runs}
    for method in ("lora", "peft"):
        for task, before in (("cola", "mrpc"), ("mrpc", "rte")):
            start = runs[f"{task}/roberta-base/{method}-r8-q+v/s1"].spec.warm_start
            assert start.run == f"{before}/roberta-base/{method}-r8-q+v/s1"
            assert start.spec_sha256 == digest(runs[start.run].spec)
    depths = {name.split("/")[0]: depth for name, depth in study.depths().items()}
    assert depths == {"cola": 2, "mrpc": 1, "rte": 0}


def test_a_change_of_the_first_task_changes_the_whole_chain(tmp_path):
    found = [
        {run.id: digest(run.spec) for run in load_study(study_file(tmp_path, text)).runs}
        for text in (CHAIN, CHAIN.replace("{task: rte, method", "{task: rte, epochs: 9, method"))
    ]
    assert not set(found[0].values()) & set(found[1].values())


def test_one_task_of_a_chain_brings_all_before_it(tmp_path):
    study = load_study(study_file(tmp_path, CHAIN), {"task": "mrpc"})
    assert {run.spec.task.name for run in study.runs} == {"mrpc", "rte"}
    study = load_study(study_file(tmp_path, CHAIN), {"task": "cola"})
    assert {run.spec.task.name for run in study.runs} == {"cola", "mrpc", "rte"}


@pytest.mark.parametrize("before", ["cola", "rte"])
def test_a_chain_without_a_beginning_is_refused(tmp_path, before):
    start = f"{{task: {before}, tensors: adapter}}"
    text = CHAIN.replace("{task: rte, method", f"{{task: rte, warm_start: {start}, method")
    with pytest.raises(UserError, match="would start from itself; a chain begins with"):
        load_study(study_file(tmp_path, text))


ABLATION = """
defaults: {task: [mrpc, sst2], seed: [0, 1]}
ablation:
  base: {method: lora, head: frozen}
  switches:
    head trained: {head: trained}
    "alpha 8, as Table 9": {alpha: 8}
"""


def test_an_ablation_flips_one_switch_at_a_time(tmp_path):
    study = load_study(study_file(tmp_path, ABLATION))
    assert len(study.runs) == 2 * 2 * 3
    by_label = {run.label: run.spec for run in study.runs}
    assert set(by_label) == {"base", "head-trained", "alpha-8-as-table-9"}
    base = by_label["base"]
    assert by_label["head-trained"] == changed(base, head="trained")
    assert by_label["alpha-8-as-table-9"] == changed(base, alpha=8)
    assert [switch.name for switch in study.switches] == ["head trained", "alpha 8, as Table 9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("protocol: hu2023\ngrid: [{}]", "protocol: 'hu2023' is not known; did you mean 'hu2022'"),
        ("compare: [hu2022.table3]\ngrid: [{}]", "compare: 'hu2022.table3' is not known"),
        ("margin: 0\ngrid: [{}]", "margin = 0: .*greater than 0"),
        ("reading: std\ngrid: [{}]", "reading: 'std' is not known; did you mean 'sd'"),
        ("per_task: {mprc: {}}\ngrid: [{}]", "per_task: 'mprc' is not known; .*'mrpc'"),
        ("per_method: {ful: {}}\ngrid: [{}]", "per_method: 'ful' is not known; .*'full'"),
        ("per_task: {mrpc: {epoch: 1}}\ngrid: [{}]", "mrpc: key: 'epoch' is not known.*'epochs'"),
        ("ablation: {base: {}}", "ablation.switches"),
        ("ablation: {base: {}, switches: {a: {haed: frozen}}}", "ablation: a: key: 'haed'"),
    ],
)
def test_bad_layers_and_switches_get_one_clear_error(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_study(study_file(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["committed", "published"])
def test_folders_that_are_no_studys_are_refused_as_names(tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text("grid: [{}]")
    with pytest.raises(UserError, match=f"can't be called '{name}'"):
        load_study(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("margin: 1\ngrid: [{}]", "margin = 1: .*less than or equal to 0.1"),
        ("grid: [{targets: null}]", "targets = None: expected matrices joined by"),
        ("grid: [{seed: []}]", "seed: an empty list makes no run"),
        ("grid: [{label: a/b}]", "label 'a/b': legal are letters"),
        (
            "grid: [{seed: 0}, {seed: 1, epochs: 9}]",
            "would be seeds of one cell, but epochs is 3 and 9",
        ),
        ("ablation: {base: {alpha: [8, 16]}, switches: {a: {epochs: 1}}}", "base: alpha = .8, 16"),
        ("ablation: {base: {}, switches: {a: {task: mrpc}}}", "a: a switch can't set task"),
        ("ablation: {base: {}, switches: {'?': {alpha: 8}}}", "needs letters or digits"),
        (
            "contrasts: [[lora-r8-q+v]]\ngrid: [{}]",
            "contrasts.0 = .*: expected two variants, got 1",
        ),
        ("contrasts: [{left: a, rihgt: b}]\ngrid: [{}]", "'rihgt' is not known; .* 'right'"),
        ("contrasts: [[a, a]]\ngrid: [{}]", "'a' is compared with itself"),
        (
            "contrasts: [{left: a, right: b, asks: equality}]\ngrid: [{}]",
            "asks: 'equality' is not known.*legal: difference, equivalence",
        ),
        (
            "contrasts: [{left: a, right: b, margin: 0.02}]\ngrid: [{}]",
            "margin 0.02 goes with asks 'equivalence' only",
        ),
        ("contrasts: [[lora-r8-q+v, full]]\ngrid: [{}]", "contrasts: 'full' is not known"),
        (WARM.replace("rank: 8,", "rank: 8, alpha: 8,"), "no run on task 'mnli' .*8, 8, 0"),
    ],
)
def test_what_would_mix_things_up_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_study(study_file(tmp_path, text))


def test_axes_and_dicts_become_labels_fit_for_a_path(tmp_path):
    text = WARM.replace(
        "warm_start: {task: mnli, tensors: adapter}",
        "warm_start: [null, {task: mnli, tensors: adapter}]",
    )
    labels = {run.label for run in load_study(study_file(tmp_path, text)).runs}
    assert labels == {"", "warm_startNone", "warm_start-mnli-adapter"}


QUANTISED = """
grid:
  - {task: sst2, model: roberta-base, method: [lora, peft], base_bits: [null, 4, 2], seed: 0}
  - {task: sst2, model: roberta-base, method: lora, base_bits: [3, 2], init: [error, loftq],
     ranks: [uniform, error], base_group: 32}
  - {task: sst2, model: roberta-base, method: head, base_bits: [4]}
  - {task: sst2, model: roberta-base, method: peft,
     peft: [{use_dora: true}, {use_rslora: true}, {init_lora_weights: pissa}]}
  - {task: sst2, model: roberta-base, method: lora, lora_plus: [4, 16]}
"""


def test_bits_starts_ranks_and_variants_are_runs_of_their_own(tmp_path):
    study = load_study(study_file(tmp_path, QUANTISED))
    variants = [run.id.split("/")[2] for run in study.runs]
    assert len(set(variants)) == len(variants) == 6 + 8 + 1 + 3 + 2
    assert {"base_bits2", "initloftq", "rankserror"} in [set(v.split("-")[3:]) for v in variants]
    assert {"peft-r8-q+v-peft-use_doraTrue", "peft-r8-q+v-peft-pissa"} < set(variants)
    assert len({digest(run.spec) for run in study.runs}) == len(variants)
    assert len(study.cells()) == 3 + 8 + 2  # none for what PEFT alone has, none for the head
    assert not any("peft-" in cell for cell in study.cells())


def test_a_variant_of_pefts_never_passes_for_the_twin(tmp_path):
    text = """
defaults: {task: sst2, model: roberta-base}
grid:
  - {method: lora, seed: 0}
  - {method: peft, seed: 0, peft: {use_dora: true}}
"""
    runs = load_study(study_file(tmp_path, text)).runs
    assert [run.label for run in runs] == ["", "peft-use_doraTrue"]


def test_a_base_as_loaded_has_no_groups(tmp_path):
    block = "{task: sst2, model: roberta-base, base_bits: [null, 4], base_group: 32}"
    runs = load_study(study_file(tmp_path, f"grid: [{block}]")).runs
    assert [run.spec.base_group for run in runs] == [None, 32]


def test_glue_is_all_there_with_its_published_sizes():
    names = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    tasks = {name: load_task(name) for name in names}
    assert tasks["cola"].headline == "matthews"
    assert tasks["stsb"].regression
    assert tasks["stsb"].metrics == ("pearson", "spearman")
    assert tasks["mnli"].also_validate == {"mismatched": "validation_mismatched"}
    assert tasks["qqp"].rows == {"train": 363_846, "validation": 40_430}
    assert tasks["mnli"].rows == {"train": 392_702, "validation": 9_815, "mismatched": 9_832}
    assert all(task.rows and task.source.config == name for name, task in tasks.items())


def test_a_task_and_a_model_are_one_entry_each(tmp_path):
    """What CONTRIBUTING.md shows: append an entry, and studies can name it."""
    config = tmp_path / "config"
    shutil.copytree("config", config)
    save_hub_folder(tmp_path / "hub")
    entry = {
        "source": {"folder": str(tmp_path / "hub"), "config": "sst2"},
        "text": ["sentence"],
        "label": "label",
        "classes": ["bad", "good"],
        "metrics": ["accuracy"],
        "headline": "accuracy",
    }
    with open(config / "tasks.yaml", "a") as file:
        file.write(yaml.safe_dump({"mine": entry}))
    with open(config / "models.yaml", "a") as file:
        file.write("  my-bert: {family: bert, source: {folder: /models/my-bert}}\n")
    path = study_file(tmp_path, "grid: [{task: mine, model: my-bert}]")
    (run,) = load_study(path, folder=config).runs
    assert run.id == "mine/my-bert/lora-r8-q+v/s0"
    assert run.spec.model.output_layer == "classifier"
    assert fetch_task(run.spec.task, tmp_path / "out")["splits"]["train"]["rows"] == 256


def test_the_output_layer_is_the_one_with_the_classes():
    found = {name: load_model(name).output_layer for name in ("roberta-base", "distilbert-base")}
    assert found == {"roberta-base": "classifier.out_proj", "distilbert-base": "classifier"}


def test_each_entry_is_read_once_and_each_start_digested_once(tmp_path, monkeypatch):
    """What a plan costs must not grow with runs x runs, nor its files be read per run."""
    calls = Counter()

    def counted(function):
        def wrapper(*arguments):
            calls[function.__name__, str(arguments[0])] += 1
            return function(*arguments)

        return wrapper

    for function in (load_task, load_model, digest):
        monkeypatch.setattr(expand, function.__name__, counted(function))
    runs = load_study(study_file(tmp_path, WARM)).runs
    started = {run.spec.warm_start.run for run in runs if run.spec.warm_start}
    assert len(started) == 4
    assert sum(name == "digest" for name, _ in calls) == len(started)
    assert set(calls.values()) == {1}
    assert len({id(run.spec.task) for run in runs}) == 2
    assert len({id(run.spec.model) for run in runs}) == 1


ADAPTIVE_BLOCK = """
per_method:
  alora: {alora: {rounds: 4}}
grid:
  - {method: [lora, peft, alora, adalora, full], rank: 4, seed: [0, 1], init: gaussian}
"""


def test_adaptive_methods_have_their_own_settings_and_blank_what_they_do_not_use(tmp_path):
    study = load_study(study_file(tmp_path, ADAPTIVE_BLOCK))
    specs = {run.id.split("/")[2]: run.spec for run in study.runs}
    assert list(specs) == [*(f"{m}-r4-q+v" for m in ("lora", "peft", "alora", "adalora")), "full"]
    assert specs["alora-r4-q+v"].settings == ALoRASettings(rounds=4)
    assert specs["adalora-r4-q+v"].settings == AdaLoRASettings()
    assert specs["adalora-r4-q+v"].settings.start(4) == 6
    assert specs["alora-r4-q+v"].lora.init == "gaussian"
    assert specs["adalora-r4-q+v"].lora.init is None
    others = [spec for name, spec in specs.items() if "alora" not in name]
    assert all(spec.settings is None for spec in others)
    assert list(study.cells()) == ["snippets/minilm/r4-q+v"]  # LoRA's start; AdaLoRA has none
    assert {run.spec.method for run in lora_runs(study)} == {"lora"}


def test_adalora_alone_has_no_cross_check(tmp_path):
    study = load_study(study_file(tmp_path, "grid: [{method: adalora}]"))
    assert study.cells() == {}
    assert "crosscheck" not in study_figures(study)


def test_settings_of_an_adaptive_method_can_be_an_axis(tmp_path):
    text = "grid: [{method: alora, alora: [{pruned: kinds}, {pruned: modules}]}]"
    study = load_study(study_file(tmp_path, text))
    assert [run.id for run in study.runs] == [
        f"snippets/minilm/alora-r8-q+v-alora-{name}/s0" for name in ("kinds", "modules")
    ]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{method: alora, alora: {round: 4}}", "alora: key: 'round' .* did you mean 'rounds'"),
        ("{method: alora, alora: {alone: modul}}", "alora: alone: 'modul' .* mean 'module'"),
        ("{method: alora, epochs: 1}", "alora.first: .* after 1 epochs, the run has 1 .legal: be"),
        ("{method: alora, rank: 0}", "rank = 0: .*greater than or equal to 1"),
        ("{method: adalora, rank: 8, adalora: {init_rank: 8}}", "init_rank 8 is not above"),
        ("{method: adalora, adalora: {tinit: 1.5}}", "adalora: tinit"),
        (
            "{method: alora, warm_start: {task: mnli, tensors: adapter}}",
            "warm_start: method 'alora' starts cold; set per_method: {alora: {warm_start: null}}",
        ),
    ],
)
def test_wrong_settings_of_adaptive_methods_are_named(tmp_path, block, message):
    with pytest.raises(UserError, match=message):
        load_study(study_file(tmp_path, f"grid: [{block}]"))


def test_a_contrast_is_a_pair_or_a_mapping(tmp_path):
    text = """
margin: 0.02
contrasts:
  - [lora-r8-q+v, full]
  - {left: head, right: full, asks: equivalence}
grid: [{method: [lora, full, head]}]
"""
    (tmp_path / "s.yaml").write_text(text)
    first, second = load_study(tmp_path / "s.yaml").contrasts
    assert (first.left, first.right, first.asks) == ("lora-r8-q+v", "full", "difference")
    assert (second.asks, second.margin) == ("equivalence", None)


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("mlp", "difference"),
        ("paper-table6-roberta", "equivalence"),
        ("poster-mnli-grid", "difference"),
        ("low-data", "difference"),
    ],
)
def test_a_study_tests_what_its_question_asks(name, asks):
    """All but low-data ask about adapters beside adapters, which no baseline row answers."""
    contrasts = load_study(f"config/studies/{name}.yaml").contrasts
    assert {contrast.asks for contrast in contrasts} == {asks}
    rights = {contrast.right.split("-")[0] for contrast in contrasts}
    assert rights == ({"full"} if name == "low-data" else {"lora"})


def test_an_ablation_may_ask_whether_its_switches_change_nothing():
    asks = {s.asks for s in load_study("config/studies/shortcuts.yaml").switches}
    assert asks == {"equivalence"}
    assert {s.asks for s in load_study("config/studies/frozen-head.yaml").switches} == {
        "difference"
    }
