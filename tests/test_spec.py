"""Studies and runs as values; bad input gets one clear error."""

from pathlib import Path

import pytest
import yaml

from conftest import make_spec, tiny_entry
from loraudit.errors import UserError
from loraudit.spec import FolderSource, RunSpec, derive_seed, digest, validated
from loraudit.study import load_configured, load_study, parse_targets

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
    cells = {(s.method, s.rank, len(s.targets), s.seed) for s in adapters}
    assert cells == {
        (m, r, t, s) for m in ("lora", "peft") for r in (1, 8) for t in (2, 6) for s in (0, 1)
    }
    assert [run.spec.method for run in runs if not run.spec.adapter] == ["head"] * 2 + ["full"] * 2


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


def test_a_folder_of_models_stands_in_for_the_hub():
    study = load_configured({**CONFIG, "model": "roberta-base", "models": "m"})
    assert study.runs[0].spec.model.source == FolderSource(folder="m/roberta-base")


def test_fields_that_a_method_does_not_use_are_blank(tmp_path):
    (run,) = load_study(study_file(tmp_path, "grid: [{method: full}]")).runs
    assert (run.spec.rank, run.spec.targets, run.spec.alpha) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: [{rnak: 3}]", r"'rnak' is not known; did you mean 'rank'"),
        ("grdi: []", r"'grdi' is not known; did you mean 'grid'"),
        ("grid: []", "grid: expected a list of blocks"),
        ("grid: [{task: mprc}]", r"task: 'mprc' is not known; did you mean 'mrpc'"),
        ("grid: [{model: mini}]", r"model: 'mini' is not known; did you mean 'minilm'"),
        ("grid: [{targets: q+w}]", r"targets: 'w' is not known.*legal: all, down, k, o, q, up, v"),
        ("grid: [{method: lroa}]", r"method: 'lroa' is not known; did you mean 'lora'"),
        ("grid: [{rank: 0}]", "rank = 0: .*greater than or equal to 1"),
        ("grid: [{rank: -8}]", "rank = -8: .*greater than or equal to 1"),
        ("grid: [{rank: null}]", "needs rank"),
        ("grid: [{global_batch: 16, micro_batch: 5}]", "global_batch 16 is not divisible"),
        ("grid: [{learning_rate: .nan}]", "learning_rate = nan"),
        ("grid: [{learning_rate: fast}]", "learning_rate = 'fast'"),
        ("grid: [{method: head, head: frozen}]", "would train nothing"),
        ("grid: [{alpha: 8}, {alpha: 16}]", "2 runs are called 'snippets/minilm/lora-r8-q.v/s0'"),
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
        ({"launch": "cpu3"}, r"launch: 'cpu3' is not known; did you mean 'cpu"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_bad_configurations_get_one_clear_error(change, message):
    with pytest.raises(UserError, match=message):
        load_configured({**CONFIG, **change})


def test_targets_have_one_order_and_must_exist():
    assert parse_targets("v+q", tiny_entry()) == ("q", "v")
    assert parse_targets("all", tiny_entry()) == ("q", "k", "v", "o", "up", "down")
    model = tiny_entry().model_copy(update={"modules": {"q": "a", "v": "b"}})
    assert parse_targets("all", model) == ("q", "v")
    with pytest.raises(UserError, match=r"has no matrix 'up' \(legal: q, v\)"):
        parse_targets("up", model)


def test_a_spec_survives_json_and_its_digest_sees_every_field():
    spec = make_spec()
    assert validated(RunSpec, spec.model_dump(mode="json"), "x") == spec
    assert digest(spec) != digest(make_spec(adam_beta2=0.98))


def test_derived_seeds_differ_by_purpose():
    seeds = {derive_seed(0, "head"), derive_seed(0, "order", 1), derive_seed(1, "head")}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
