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
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from loraudit.base.errors import UserError, did_you_mean
from loraudit.studies.score_files import Legal, Score, known_method, known_metric, score_of

STATE = "trainer_state.json"

SEED = re.compile(r"(?:^|[^a-z])s(?:eed)?[-_=]?(\d+)(?!\d)", re.I)
"""A seed in the name of a folder: seed42, seed-42, s42."""

VARIANTS = {"use_dora": "dora", "use_rslora": "rslora", "use_qalora": "qalora"}
"""Switches of PEFT's LoraConfig that have a method's name, and the name."""

UNLIKE_LORA = (
    *VARIANTS,
    *("use_bdlora", "lora_bias", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config", "rank_pattern", "alpha_pattern"),
    *("layers_to_transform", "layer_replication", "exclude_modules", "target_parameters"),
    *("trainable_token_indices", "bias"),
)
"""Keys of PEFT's LoraConfig (peft/tuners/lora/config.py) with which a run is not plain LoRA on the
matrices that `target_modules` names, unless they are in `OFF`."""

OFF = ("null", "false", '""', '"none"', "[]", "{}")
"""Values of such a key, as JSON, that change nothing."""

INITS = {True: "kaiming", "gaussian": "gaussian"}
"""What `init_lora_weights` of plain LoRA may be, and the same as the field `init` of a run. Others,
such as "pissa" and "olora", change the base's weights or are named as methods of their own."""


class Told(NamedTuple):
    """What a log tells: fields of its run (None where they are empty), and its evaluations.

    `adapter` is PEFT's configuration of the run's adapter, and `place` says where that stands.
    """

    fields: dict[str, Any]
    evaluations: list[dict]
    adapter: object
    place: str


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


def seed_in_name(path: Path, within: Path, alone: bool) -> int | None:
    """Return the seed that a folder's name says of a log; None where none does.

    Args:
        path: the log.
        within: what the user named: the log itself, or a folder with it. What stands above it says
            nothing of a run (/mnt/s3).
        alone: whether it is the only log there; the folder is then the run's own, and its name
            counts too.
    """
    path, within = Path(os.path.abspath(path)), Path(os.path.abspath(within))
    if alone:
        own = path.parent if within == path else within
        within = (own.parent if own.name.startswith("checkpoint-") else own).parent
    found = [SEED.search(part) for part in path.parent.relative_to(within).parts]
    return next((int(match[1]) for match in reversed(found) if match), None)


def read_log(path: Path, seed: int, given: Mapping[str, Any], legal: Legal) -> list[Score]:
    """Read one log of Trainer or result of PEFT's method comparison.

    Args:
        path: the JSON file.
        seed: the seed of a log that tells none.
        given: fields that the log does not tell.
        legal: the known methods and metrics.

    Raises:
        UserError: the file is of neither kind, has no score of a known metric, is of a run that
            failed, a field is missing, or the adapter's configuration can't be read or is of no
            known method while `given` names none.
    """
    content = _json(path)
    if not isinstance(content, dict):
        content = {}
    if isinstance(content.get("log_history"), list):
        told = _of_trainer(path, content)
    elif isinstance(content.get("run_info"), dict) and isinstance(content.get("train_info"), dict):
        told = _of_peft(path, content)
    else:
        raise UserError(
            f"{path}: neither a log of Trainer (log_history) nor a result of PEFT's method "
            "comparison (run_info and train_info)"
        )
    fields = {"seed": seed, **given}
    if told.adapter is not None:
        config = _object(told.adapter, told.place)
        fields |= _stated({**_adapter(config), "method": _method(config, told.place, given, legal)})
    fields |= _stated(told.fields)
    known = [
        score_of({**fields, **evaluation}, f"{path}: {evaluation['metric']}", legal)
        for evaluation in told.evaluations
        if known_metric(evaluation["metric"], legal)
    ]
    if not known:
        had = ", ".join(sorted({evaluation["metric"] for evaluation in told.evaluations})) or "none"
        raise UserError(
            f"{path}: no evaluation has a metric that is known here (it has: {had}; known: "
            f"{', '.join(sorted(legal.metrics))})"
        )
    return known


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8
        raise UserError(f"{path} can't be read as JSON: {error}") from None


def _object(value: object, where: str) -> dict[str, Any]:
    """Check that a value out of a log is an object; null counts as an empty one."""
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: expected an object of JSON ({{...}}), got {value!r}")
    return value or {}


def _stated(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _of_trainer(path: Path, state: dict) -> Told:
    """Read a Trainer's log; its evaluations are one for each step.

    A second evaluation at one step, which `load_best_model_at_end` is followed by, is of the best
    step's weights, and so is left out.
    """
    by_step: dict[str, list[dict]] = {}
    for log in filter(lambda log: isinstance(log, dict), state["log_history"]):
        values = {name[5:]: log[name] for name in log if name.startswith("eval_")}
        step = repr(log.get("step"))
        if values and step not in by_step:
            by_step[step] = [
                {"metric": name, "score": value, "epoch": log.get("epoch", log.get("step"))}
                for name, value in values.items()
            ]
    epochs = state.get("num_train_epochs")
    fields = {"epochs": epochs if isinstance(epochs, int) else None}
    evaluations = [evaluation for values in by_step.values() for evaluation in values]
    config = path.with_name("adapter_config.json")
    adapter = _object(_json(config), f"{config}") if config.is_file() else None
    return Told(fields, evaluations, adapter, f"{config}")


def _adapter(config: dict) -> dict[str, Any]:
    """Return what PEFT's adapter_config tells of a run, but for its method.

    AdaLoRA's rank is the one that it ends with on average; it makes no use of `r`.
    """
    kind, init = _kind(config), config.get("init_lora_weights")
    start = INITS.get(init, init) if isinstance(init, str) or init is True else None
    return {
        **{"rank": config.get("target_r" if kind == "adalora" else "r")},
        **{"alpha": config.get("lora_alpha"), "lora_dropout": config.get("lora_dropout")},
        **{"targets": config.get("target_modules"), "init": start if kind == "lora" else None},
        "model": config.get("base_model_name_or_path"),
    }


def _kind(config: dict) -> str:
    return str(config.get("peft_type", "")).lower()


def _is_plain(init: object) -> bool:
    return isinstance(init, str | bool) and init in INITS


def _unlike_lora(config: dict) -> dict[str, Any]:
    """Return the keys, and their values, by which a LoRA configuration is not plain LoRA."""
    found = {key: config[key] for key in UNLIKE_LORA if json.dumps(config.get(key)) not in OFF}
    init = config.get("init_lora_weights")
    return found if init is None or _is_plain(init) else {**found, "init_lora_weights": init}


def _method(config: dict, where: str, given: Mapping[str, Any], legal: Legal) -> str:
    """Return the known method that PEFT's adapter_config describes, or else the given one.

    Raises:
        UserError: it describes none that is known here, and none is given.
    """
    unlike = _unlike_lora(config) if _kind(config) == "lora" else {}
    told = unlike or {"peft_type": config.get("peft_type")}
    key, value = next(iter(told.items()))
    name = VARIANTS.get(key, str(value)) if len(told) == 1 else ""
    if known := known_method(name, legal):
        return known
    if "method" in given:
        return str(given["method"])
    said = ", ".join(f"{key} is {json.dumps(value)}" for key, value in told.items())
    what = "this is not plain LoRA" if unlike else "no known method is called so"
    raise UserError(
        f"{where}: {said}: {what}; say --set method=NAME to judge it as that method"
        f"{did_you_mean(name, legal.methods)} (legal: {', '.join(sorted(legal.methods))})"
    )


def _of_peft(path: Path, result: dict) -> Told:
    """Read a result of PEFT's method comparison."""
    run, train = result["run_info"], result["train_info"]
    if train.get("status") != "success":
        raise UserError(f"{path}: status: the run is {train.get('status')!r}, not a success")
    config = _object(run.get("train_config"), f"{path}: train_config")
    about = _object(result.get("meta_info"), f"{path}: meta_info")
    data = list(_object(about.get("dataset_info"), f"{path}: dataset_info"))
    adapter = run.get("peft_config")
    fields = {
        **{"task": data[-1] if data else None, "method": "full" if adapter is None else None},
        **{"seed": config.get("seed"), "model": config.get("model_id")},
        **_optimiser(_object(config.get("optimizer_kwargs"), f"{path}: optimizer_kwargs")),
    }
    splits = {"valid": "validation", "test": "test"}
    metrics = train.get("metrics")
    evaluations = list(_peft_evaluations(metrics if isinstance(metrics, list) else [], splits))
    return Told(fields, evaluations, adapter, f"{path}: peft_config")


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
