"""Logs of Trainer and results of PEFT's method comparison, in the layouts that those write."""

import json

import pytest
from transformers import TrainerState

from loraudit.base.errors import UserError
from loraudit.studies.reference import select
from loraudit.studies.run_logs import log_files, read_log
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
    assert (best.seeds, best.scores(), last.scores()) == ({42: (0.86, 0.89, 0.88)}, [0.89], [0.88])
    assert best.settings["epochs"] == 3


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
