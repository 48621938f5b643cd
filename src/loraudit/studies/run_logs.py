"""Scores out of the logs of other programs: Hugging Face's Trainer and PEFT's method comparison.

Trainer (huggingface/transformers, src/transformers/trainer_callback.py, class TrainerState) writes
`trainer_state.json` into its output folder and into each `checkpoint-N`: `log_history` is a list of
logs, and those of an evaluation have `step`, `epoch` and `eval_<metric>`. Nothing in it names the
task, the model or the seed. If `adapter_config.json` (PEFT) stands beside it, that gives the
method, rank, alpha, targets and base model.

PEFT's method comparison (huggingface/peft, method_comparison/MetaMathQA/utils.py, function
`log_results`; seen at commit 0134244) writes a JSON file per run. `run_info.train_config` has
model_id, seed, optimizer_kwargs and others; `run_info.peft_config` is null for full fine-tuning.
`train_info` has the run's status and `metrics`, a list of {step, "valid accuracy", ...} with a last
entry that has "test accuracy". `meta_info.dataset_info` names the data, the scored one last.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loraudit.base.errors import UserError
from loraudit.studies.score_files import METRICS, Legal, Score, score_of

STATE = "trainer_state.json"

SEED = re.compile(r"(?:^|[^a-z])s(?:eed)?[-_=]?(\d+)(?!\d)", re.I)
"""A seed in the name of a folder: seed42, seed-42, s42."""


def log_files(path: Path) -> list[Path]:
    """Return the logs in a folder: Trainer's of each run, and the other JSON files right in it.

    Of a run's checkpoints it is the last one's, unless the run's own folder has the log.

    Raises:
        UserError: the folder has no log.
    """
    states: dict[Path, Path] = {}
    for state in sorted(path.rglob(STATE), key=_step):
        checkpoint = state.parent.name.startswith("checkpoint-") and state.parent != path
        states[state.parent.parent if checkpoint else state.parent] = state
    found = sorted(states.values()) or sorted(path.glob("*.json"))
    if not found:
        raise UserError(f"{path}: no {STATE} in this folder or below it, and no JSON file in it")
    return found


def _step(state: Path) -> float:
    """Return the step of a checkpoint's state; the state of a run's own folder comes last."""
    number = re.fullmatch(r"checkpoint-(\d+)", state.parent.name)
    return int(number[1]) if number else float("inf")


def read_log(path: Path, order: int, given: Mapping[str, Any], legal: Legal) -> list[Score]:
    """Read one log of Trainer or result of PEFT's method comparison.

    Args:
        path: the JSON file.
        order: the seed of a log that tells none and has none in its folder's name.
        given: fields that the log does not tell.
        legal: the known methods and metrics.

    Raises:
        UserError: the file is of neither kind, has no score of a known metric, is of a run that
            failed, or a field is missing.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        content = {}
    if isinstance(content.get("log_history"), list):
        fields, evaluations = _of_trainer(path, content, order)
    elif isinstance(content.get("run_info"), dict) and isinstance(content.get("train_info"), dict):
        fields, evaluations = _of_peft(path, content)
    else:
        raise UserError(
            f"{path}: neither a log of Trainer (log_history) nor a result of PEFT's method "
            "comparison (run_info and train_info)"
        )
    known = [
        score_of({**given, **fields, **evaluation}, f"{path}: {evaluation['metric']}", legal)
        for evaluation in evaluations
        if METRICS.get(evaluation["metric"], evaluation["metric"]) in legal.metrics
    ]
    if not known:
        had = ", ".join(sorted({evaluation["metric"] for evaluation in evaluations})) or "none"
        raise UserError(
            f"{path}: no evaluation has a metric that is known here (it has: {had}; known: "
            f"{', '.join(sorted(legal.metrics))})"
        )
    return known


def _of_trainer(path: Path, state: dict, order: int) -> tuple[dict, list[dict]]:
    """Return what a Trainer's log tells of its run, and its evaluations, one for each step.

    A second evaluation at one step, which `load_best_model_at_end` is followed by, is of the best
    step's weights, and so is left out.
    """
    by_step: dict[object, list[dict]] = {}
    for log in filter(lambda log: isinstance(log, dict), state["log_history"]):
        values = {name[5:]: log[name] for name in log if name.startswith("eval_")}
        step = log.get("step")
        if values and step not in by_step:
            by_step[step] = [
                {"metric": name, "score": value, "epoch": log.get("epoch", step)}
                for name, value in values.items()
            ]
    fields: dict[str, Any] = {"seed": _seed(path, order)}
    if isinstance(epochs := state.get("num_train_epochs"), int):
        fields["epochs"] = epochs
    config = path.with_name("adapter_config.json")
    if config.is_file():
        fields |= _adapter(json.loads(config.read_text()))
    return fields, [evaluation for values in by_step.values() for evaluation in values]


def _seed(path: Path, order: int) -> int:
    found = [SEED.search(part) for part in path.parts[:-1]]
    return next((int(match[1]) for match in reversed(found) if match), order)


def _adapter(config: dict) -> dict[str, Any]:
    """Return what PEFT's adapter_config tells of a run."""
    kind = str(config.get("peft_type", "")).lower()
    variants = {"use_dora": "dora", "use_rslora": "rslora"}
    kind = next((name for flag, name in variants.items() if config.get(flag)), kind)
    told = {
        **{"method": kind, "rank": config.get("r"), "alpha": config.get("lora_alpha")},
        **{"targets": config.get("target_modules"), "lora_dropout": config.get("lora_dropout")},
        "model": config.get("base_model_name_or_path"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _of_peft(path: Path, result: dict) -> tuple[dict, list[dict]]:
    """Return what a result of PEFT's method comparison tells of its run, and its evaluations."""
    run, train = result["run_info"], result["train_info"]
    if train.get("status") != "success":
        raise UserError(f"{path}: status: the run is {train.get('status')!r}, not a success")
    config = run.get("train_config") or {}
    data = list((result.get("meta_info") or {}).get("dataset_info") or {})
    adapter = run.get("peft_config")
    fields = {
        **({"task": data[-1]} if data else {}),
        **({"method": "full"} if adapter is None else _adapter(adapter)),
        **{"seed": config.get("seed", 0), "model": config.get("model_id")},
        **_optimiser(config.get("optimizer_kwargs") or {}),
    }
    splits = {"valid": "validation", "test": "test"}
    return fields, list(_peft_evaluations(train.get("metrics") or [], splits))


def _optimiser(arguments: dict) -> dict[str, Any]:
    names = {"lr": "learning_rate", "weight_decay": "weight_decay"}
    return {names[key]: value for key, value in arguments.items() if key in names}


def _peft_evaluations(metrics: list, splits: dict[str, str]) -> Iterator[dict]:
    """Give the scores of a result: each validation, and the test after the last step."""
    for log in filter(lambda log: isinstance(log, dict), metrics):
        for name, value in log.items():
            split, _, metric = name.partition(" ")
            if split in splits and metric:
                when = {"epoch": log.get("step")} if split == "valid" else {"epoch_choice": "last"}
                yield {"metric": metric, "score": value, "split": splits[split], **when}
