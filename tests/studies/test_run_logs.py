"""Logs of Trainer and results of PEFT's method comparison, in the layouts that those write."""

import json
from pathlib import Path

import pytest
from peft import AdaLoraConfig, LoraConfig
from transformers import TrainerState

from loraudit.base.errors import UserError
from loraudit.studies.reference import select
from loraudit.studies.run_logs import log_files, read_log, seed_in_name
from loraudit.studies.score_files import as_published, legal_names

LEGAL = legal_names(select(("hu2022.table2",)))
GIVEN = {"task": "mrpc", "model": "roberta-base", "method": "lora", "rank": 8, "targets": "q+v"}


def write_state(folder, scores, metric="eval_accuracy", again=()):
    """Write a log as Trainer does, one evaluation per epoch and `again` at the last step."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = [{"epoch": 0.5, "loss": 0.6, "learning_rate": 1e-4, "step": 1}]
    for epoch, score in enumerate(scores, 1):
        logs.append({"epoch": float(epoch), "eval_loss": 0.5, metric: score, "step": 2 * epoch})
    for score in again:
        logs.append({"epoch": float(len(scores)), metric: score, "step": 2 * len(scores)})
    state = TrainerState(log_history=logs, num_train_epochs=len(scores), max_steps=2 * len(scores))
    state.save_to_json(str(folder / "trainer_state.json"))
    return folder / "trainer_state.json"


def result(**changes) -> dict:
    """Return a result in the layout of PEFT's method comparison, cut to what is read."""
    metrics = [{"step": 250, "valid accuracy": 0.4, "train loss": 1.0, "train samples": 1000}]
    metrics += [{"step": 500, "valid accuracy": 0.5}, {"step": 500, "test accuracy": 0.48}]
    config = {
        "peft_type": "LORA",
        "r": 32,
        "lora_alpha": 64,
        "target_modules": ["v_proj", "q_proj"],
    }
    train_config = {
        "model_id": "meta-llama/Llama-3.2-3B",
        "seed": 7,
        "optimizer_kwargs": {"lr": 1e-4},
    }
    return {
        "run_info": {"train_config": train_config, "peft_config": config},
        "train_info": {"status": "success", "metrics": metrics},
        "meta_info": {"dataset_info": {"metamath": {}, "gsm8k": {}}},
        **changes,
    }


def write(path, content) -> object:
    path.write_text(json.dumps(content))
    return path


def test_a_trainers_log_has_the_best_and_the_last_epoch(tmp_path):
    path = write_state(tmp_path / "seed42", [0.86, 0.89, 0.88])
    best, last = as_published(read_log(path, 0, GIVEN, LEGAL), "log")
    assert (best.seeds, best.scores(), last.scores()) == ({0: (0.86, 0.89, 0.88)}, [0.89], [0.88])
    assert best.settings["epochs"] == 3


@pytest.mark.parametrize(
    ("within", "log", "alone", "seed"),
    [
        ("/mnt/s3/runs", "/mnt/s3/runs/a/trainer_state.json", False, None),
        ("/mnt/s3/runs", "/mnt/s3/runs/a/trainer_state.json", True, None),
        ("/mnt/s3", "/mnt/s3/a/trainer_state.json", False, None),
        ("/mnt/s3/runs", "/mnt/s3/runs/mrpc-s42/trainer_state.json", False, 42),
        ("runs", "runs/mrpc/seed_7/checkpoint-9/trainer_state.json", False, 7),
        ("runs/seed7", "runs/seed7/trainer_state.json", True, 7),
        ("runs/seed7/trainer_state.json", "runs/seed7/trainer_state.json", True, 7),
        ("s3/seed7/checkpoint-9", "s3/seed7/checkpoint-9/trainer_state.json", True, 7),
        ("s3/a/checkpoint-9", "s3/a/checkpoint-9/trainer_state.json", True, None),
        ("../s3/a", "../s3/a/trainer_state.json", True, None),
    ],
)
def test_the_seed_stands_in_a_folders_name_below_what_was_given(within, log, alone, seed):
    assert seed_in_name(Path(log), Path(within), alone) == seed


def test_the_evaluation_of_the_best_weights_after_training_is_no_further_epoch(tmp_path):
    path = write_state(tmp_path / "s1", [0.86, 0.89, 0.88], again=[0.89])
    (number,) = as_published(read_log(path, 0, GIVEN, LEGAL), "log")[1:]
    assert number.scores() == [0.88]


def test_an_adapter_config_beside_the_log_tells_the_cell(tmp_path):
    path = write_state(tmp_path / "s1", [0.5], metric="eval_matthews_correlation")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    config["base_model_name_or_path"] = "FacebookAI/roberta-base"
    write(path.with_name("adapter_config.json"), config)
    number = as_published(read_log(path, 0, {"task": "cola"}, LEGAL), "log")[0]
    assert (number.method, number.rank, number.targets, number.alpha) == ("lora", 4, "q+v", 8)
    assert (number.model, number.metric) == ("roberta-base", "matthews")


def peft_config(**changes):
    """Return the adapter_config.json that PEFT writes of plain LoRA, and its changes."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    return {**config, **changes}


def judged_as(folder, config, **given):
    """Return the number of a Trainer's log beside such a configuration."""
    path = write_state(folder, [0.5])
    write(path.with_name("adapter_config.json"), config)
    cell = {"task": "mrpc", "model": "roberta-base", **given}
    return as_published(read_log(path, 0, cell, LEGAL), "log")[0]


@pytest.mark.parametrize("init", [True, "gaussian"])
def test_a_configuration_of_plain_lora_is_lora_with_its_starting_values(tmp_path, init):
    number = judged_as(tmp_path, peft_config(init_lora_weights=init), method="dora")
    assert (number.method, number.rank, number.targets) == ("lora", 8, "q+v")
    assert number.settings["init"] == {True: "kaiming"}.get(init, init)


@pytest.mark.parametrize(
    "change",
    [
        *({"init_lora_weights": init} for init in ("pissa", "pissa_niter_16", "olora", "loftq")),
        *({"init_lora_weights": init} for init in ("eva", "corda", "orthogonal", False)),
        *({"use_dora": True}, {"use_rslora": True}, {"use_qalora": True}, {"lora_bias": True}),
        *({"rank_pattern": {"layer.0": 4}}, {"alpha_pattern": {"layer.0": 4}}, {"bias": "all"}),
        *({"layers_to_transform": 0}, {"layers_to_transform": [0]}),
        {"alora_invocation_tokens": [1, 2]},
    ],
    ids=str,
)
def test_what_is_not_plain_lora_needs_a_name(tmp_path, change):
    """It was judged as plain LoRA. A method that the user names is taken."""
    config = peft_config(**change)
    with pytest.raises(UserError) as caught:
        judged_as(tmp_path, config)
    (key,) = change
    assert f"adapter_config.json: {key} is {json.dumps(change[key])}: this is not plain" in str(
        caught.value
    )
    assert "say --set method=NAME" in str(caught.value)
    number = judged_as(tmp_path, config, method="lora")
    assert number.method == "lora"
    start = change.get("init_lora_weights", "kaiming")
    assert number.settings.get("init") == (start or None)


def test_a_variant_that_the_published_table_has_is_judged_as_it(tmp_path):
    legal = LEGAL._replace(methods=LEGAL.methods | {"dora", "pissa", "vb-lora"})
    path = write_state(tmp_path, [0.5])
    for change, name in (
        ({"use_dora": True}, "dora"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "VBLORA"}, "vb-lora"),
    ):
        write(path.with_name("adapter_config.json"), peft_config(**change))
        cell = {"task": "mrpc", "model": "roberta-base"}
        assert read_log(path, 0, cell, legal)[0].cell["method"] == name
    write(path.with_name("adapter_config.json"), peft_config(peft_type="OFT"))
    with pytest.raises(UserError, match='peft_type is "OFT": no known method is called so; say'):
        read_log(path, 0, cell, legal)


def test_adalora_has_the_rank_that_it_ends_with(tmp_path):
    config = AdaLoraConfig(init_r=12, target_r=4, total_step=9, target_modules=["query"]).to_dict()
    config |= {"target_modules": ["query"], "rank_pattern": {"layer.0": [True, False]}}
    number = judged_as(tmp_path, config)
    assert (number.method, number.rank) == ("adalora", 4)


@pytest.mark.parametrize("text", ["{", "[1]", '"lora"', "\x80"])
def test_a_broken_configuration_of_the_adapter_is_told(tmp_path, text):
    path = write_state(tmp_path, [0.5])
    path.with_name("adapter_config.json").write_bytes(text.encode("latin-1"))
    said = "can't be read as JSON|expected an object of JSON"
    with pytest.raises(UserError, match=rf"adapter_config\.json:? ({said})"):
        read_log(path, 0, GIVEN, LEGAL)


def test_a_folder_has_one_log_per_run_and_of_checkpoints_the_last(tmp_path):
    for step in (9, 10, 100):
        write_state(tmp_path / "runs" / "seed1" / f"checkpoint-{step}", [0.8])
    whole = write_state(tmp_path / "runs" / "seed2", [0.8])
    write_state(tmp_path / "runs" / "seed2" / "checkpoint-10", [0.8])
    found = log_files(tmp_path / "runs")
    assert found == [tmp_path / "runs/seed1/checkpoint-100/trainer_state.json", whole]


def test_a_folder_without_logs_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no trainer_state\.json in this folder"):
        log_files(tmp_path)


def test_a_result_of_pefts_comparison_has_validation_and_test(tmp_path):
    path = write(tmp_path / "lora.json", result())
    numbers = as_published(read_log(path, 0, {}, LEGAL), "lora.json")
    assert {(n.split, n.selection): n.scores() for n in numbers} == {
        ("validation", "best epoch"): [0.5],
        ("validation", "last epoch"): [0.5],
        ("test", "last epoch"): [0.48],
    }
    first = numbers[0]
    assert (first.task, first.model, first.method) == ("gsm8k", "Llama-3.2-3B", "lora")
    assert (first.rank, first.targets, first.alpha, list(first.seeds)) == (32, "q+v", 64, [7])
    assert first.settings == {"learning_rate": 1e-4}


def test_a_result_without_an_adapter_is_full_fine_tuning(tmp_path):
    content = result()
    content["run_info"]["peft_config"] = None
    number = as_published(read_log(write(tmp_path / "f.json", content), 0, {}, LEGAL), "f")[0]
    assert (number.method, number.rank) == ("full", None)


def test_what_a_result_does_not_tell_is_taken_from_what_is_given(tmp_path):
    content = result()
    content["run_info"]["train_config"] = {"model_id": None, "seed": None}
    path = write(tmp_path / "lora.json", content)
    number = as_published(read_log(path, 5, {"model": "roberta-base"}, LEGAL), "lora.json")[0]
    assert (number.model, list(number.seeds)) == ("roberta-base", [5])
    with pytest.raises(UserError, match=r"model is missing .*--set model=VALUE"):
        read_log(path, 5, {}, LEGAL)


@pytest.mark.parametrize("key", ["train_config", "peft_config", "optimizer_kwargs", "dataset_info"])
def test_a_part_of_a_result_that_is_no_object_is_named(tmp_path, key):
    content = result()
    place = {
        **{"optimizer_kwargs": content["run_info"]["train_config"]},
        "dataset_info": content["meta_info"],
    }.get(key, content["run_info"])
    place[key] = [1]
    with pytest.raises(UserError, match=rf"a\.json: {key}: expected an object of JSON .*got \[1\]"):
        read_log(write(tmp_path / "a.json", content), 0, {}, LEGAL)


def test_metrics_and_steps_of_another_type_are_told(tmp_path):
    """Each was a traceback."""
    train = {"status": "success", "metrics": True}
    with pytest.raises(UserError, match=r"no evaluation has a metric .* \(it has: none"):
        read_log(write(tmp_path / "a.json", result(train_info=train)), 0, {}, LEGAL)
    state = {"log_history": [{"step": [1], "eval_accuracy": 0.5}]}
    with pytest.raises(UserError, match=r"epoch: expected a number, got \[1\]"):
        read_log(write(tmp_path / "b.json", state), 0, GIVEN, LEGAL)


def test_what_is_wrong_with_a_log_is_named(tmp_path):
    def error(path, given=GIVEN):
        with pytest.raises(UserError) as caught:
            read_log(path, 0, given, LEGAL)
        return str(caught.value)

    failed = {"status": "failed", "metrics": []}
    assert "the run is 'failed'" in error(write(tmp_path / "a.json", result(train_info=failed)))
    assert "neither a log of Trainer" in error(write(tmp_path / "b.json", {"loss": 1}))
    assert "neither a log of Trainer" in error(write(tmp_path / "c.json", [1]))
    (tmp_path / "d.json").write_text("{")
    assert "can't be read as JSON" in error(tmp_path / "d.json")
    only_loss = write_state(tmp_path / "e", [0.5], metric="eval_perplexity")
    assert "no evaluation has a metric that is known here (it has: loss, perplexity" in error(
        only_loss
    )
    whole = write_state(tmp_path / "f", [0.5])
    assert "task is missing" in error(whole, {})
