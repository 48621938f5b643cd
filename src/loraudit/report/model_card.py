"""A run's adapter as a folder to hand on: PEFT's files, the run's spec, and a model card.

Everything in the card is read from the run's record, and from models.yaml what is known of its
model and task. Names in a record can be anyone's, so they are quoted in the YAML head by
yaml.safe_dump and shown as escaped text in the tables. Paths of local folders stay out of the card
and of the spec beside it.
"""

import json
import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import yaml

from loraudit.adapters import peft_folder
from loraudit.base.errors import UserError
from loraudit.base.files import folder_atomic, read_json, write_json, write_text
from loraudit.studies import paths
from loraudit.studies.entries import FolderSource, HubSource, Source
from loraudit.studies.known import contaminations
from loraudit.studies.methods import names_of
from loraudit.studies.record import RunRecord, read_record
from loraudit.studies.spec import RunSpec

HUB_NAME = r"\w[\w.-]*(/[\w.-]+)?"

LICENCES = {"adapter": "unknown", "base": "unknown", "data": "unknown"}
"""Whose licences the card names, and what it says when it is told nothing."""


def export_run(
    run: Path,
    out: Path,
    licences: dict[str, str] | None = None,
    study: Path | None = None,
    base_model: str | None = None,
) -> RunRecord:
    """Write a run's adapter and head as a PEFT folder with a model card and the run's spec.

    Args:
        run: a run's folder: record.json, spec.json and adapter/.
        out: the folder to write, which must not exist.
        licences: licence names for keys of `LICENCES`.
        study: folder of the run's study (results/<study>), for the other seeds' scores.
        base_model: the base model's name on the hub; None is what the run calls it.

    Raises:
        UserError: no complete run, a method without an adapter, a broken adapter, `out` exists,
            `base_model` is no name on the hub, or the study has no such run.
    """
    if base_model is not None and not re.fullmatch(HUB_NAME, base_model):
        raise UserError(f"base_model = {base_model!r}: expected a name on the hub: OWNER/NAME")
    if out.exists():
        raise UserError(f"out: {out} exists already; name a new folder")
    record = read_finished(run)
    config, state, _ = peft_folder.read_parts(run / "adapter")
    _check_is_the_runs(record, config, state, run)
    config.base_model_name_or_path = base_model or config.base_model_name_or_path
    named = config.base_model_name_or_path or record.spec.model.name
    seeds = seed_scores(record.spec, study) if study else None
    card = model_card(record, named, {**LICENCES, **(licences or {})}, seeds, _known(record.spec))
    with folder_atomic(out) as folder:
        for name in (peft_folder.WEIGHTS, peft_folder.PARTS):
            if (run / "adapter" / name).is_file():
                shutil.copyfile(run / "adapter" / name, folder / name)
        config.save_pretrained(folder)
        write_json(folder / "spec.json", shared_spec(record.spec))
        write_text(folder / "README.md", card)
    return record


def _known(spec: RunSpec) -> list[str]:
    """Return what models.yaml here says of the model and the task, as sentences, if it is here."""
    try:
        met = [(spec.model.name, spec.task.name)]
        return [known.sentence() for known in contaminations(met, paths.CONFIG / "models.yaml")]
    except UserError:  # another folder, or another list of models
        return []


def shared_spec(spec: RunSpec) -> dict[str, Any]:
    """Return a spec as JSON values, with names in place of the paths of local folders."""
    fields = spec.model_dump(mode="json")
    for entry in (fields["task"], fields["model"]):
        if "folder" in entry["source"]:
            entry["source"]["folder"] = entry["name"]
    return fields


def _check_is_the_runs(record: RunRecord, config: Any, state: dict[str, Any], run: Path) -> None:
    """Refuse an adapter whose rank, alpha or size is not what the run's record says."""
    count = sum(t.numel() for name, t in state.items() if name.endswith((".lora_A", ".lora_B")))
    values = {"r": config.r, "alpha": config.lora_alpha, "adapter parameters": count}
    spec = record.spec
    said = spec.lora.rank, spec.lora.alpha, record.train.parameters["adapter"]
    for (name, value), legal in zip(values.items(), said, strict=True):
        if value != legal:
            raise UserError(f"{run}/adapter: {name} is {value:g}, the record says {legal:g}")


def read_finished(run: Path) -> RunRecord:
    """Read the record of a run that has an adapter.

    Raises:
        UserError: a file is missing, spec.json is not the record's, or the method has no adapter.
    """
    for name in ("record.json", "spec.json"):
        if not (run / name).is_file():
            raise UserError(f"{run}: no finished run here ({name} is missing)")
    record = read_record(run / "record.json")
    try:
        asked = read_json(run / "spec.json")
    except ValueError as error:
        raise UserError(f"{run}/spec.json: not valid JSON: {error}") from None
    if asked != record.spec.model_dump(mode="json"):
        raise UserError(f"{run}: spec.json is not the spec of record.json")
    if not record.spec.adapter:
        legal = ", ".join(names_of(trains="adapter"))
        raise UserError(f"{run}: method {record.spec.method!r} has no adapter (legal: {legal})")
    return record


def _without_seed(spec: dict) -> dict:
    """Blank what differs between the seeds of one cell: the seed, and the run it starts from."""
    start = spec["warm_start"] and {"tensors": spec["warm_start"]["tensors"]}
    return {**spec, "seed": None, "warm_start": start}


def seed_scores(spec: RunSpec, study: Path) -> list[float]:
    """Return the scores of the runs that differ from `spec` in the seed at most.

    They are those of the epoch whose weights are saved.

    Raises:
        UserError: the study's folder has no tidy table, or no such run.
    """
    records = study / "tidy" / "records.jsonl"
    if not records.is_file():
        raise UserError(f"{study}: no study here ({records.relative_to(study)} is missing)")
    all_records = [json.loads(line) for line in records.read_text().splitlines()]
    wanted = _without_seed(spec.model_dump(mode="json"))
    scores = [
        record["train"]["epochs"][spec.choices[0]]["scores"][spec.task.headline]
        for record in all_records
        if _without_seed(record["spec"]) == wanted
    ]
    if not scores:
        raise UserError(f"{study}: no run of this spec in its tidy table")
    return [math.nan if score is None else score for score in scores]


def model_card(
    record: RunRecord,
    base_model: str,
    licences: dict[str, str],
    seeds: list[float] | None,
    known: Iterable[str] = (),
) -> str:
    """Return the README.md: a YAML head, then tables of scores, protocol and provenance.

    `known` are sentences on what makes the scores mean less than they seem.
    """
    spec, train = record.spec, record.train
    head = {
        "base_model": plain(base_model),
        "library_name": "peft",
        "license": plain(licences["adapter"]),
        "pipeline_tag": "text-generation" if spec.task.causal_lm else "text-classification",
        "tags": ["lora", "loraudit", plain(spec.task.name)],
    }
    if isinstance(spec.task.source, HubSource):
        head["datasets"] = [plain(spec.task.source.hub)]
    front = yaml.safe_dump(head, sort_keys=False, width=10_000)
    sections = [
        f"---\n{front}---",
        f"# LoRA on {text(spec.model.name)} for {text(spec.task.name)}",
        _usage(spec),
        "\n\n".join(["## Scores", *(f"{text(said)}." for said in known), _scores(record, seeds)]),
        "## Data and protocol\n\n" + table(_protocol(spec, train.rows)),
        "## Size\n\n" + table(_size(record)),
        "## Licences\n\n" + table(licences),
        "## Made with\n\n" + table(_provenance(record.environment)),
    ]
    return "\n\n".join(sections) + "\n"


def _usage(spec: RunSpec) -> str:
    """Say how to load the adapter, in a program that runs with FOLDER and BASE filled in."""
    head = "." if spec.task.causal_lm else ", its head included."
    text = f"The adapter of the {spec.choices[0]} epoch{head}"
    if spec.base_bits is None:
        return f"{text} Load it on the base model:\n\n{_code(_float_base(spec))}"
    return (
        f"{text} It is right only on its base model with the linear layers outside the head packed "
        f"in {spec.base_bits} bits by hqq (groups of {spec.base_group}); on the unquantised model "
        "it loads too, and gives other outputs. The packages loraudit and hqq make that base from "
        f"the spec.json beside this file:\n\n{_code(_packed_base(spec))}"
    )


def _float_base(spec: RunSpec) -> list[str]:
    labels = f", num_labels={max(1, len(spec.task.classes))}"
    kind = "AutoModelForSequenceClassification"
    if spec.task.causal_lm:
        labels, kind = "", "AutoModelForCausalLM"
    return [
        "from peft import PeftModel",
        f"from transformers import {kind}, AutoTokenizer",
        "",
        "# FOLDER: where this file is; BASE: the base model's name on the hub, or its folder",
        f"base = {kind}.from_pretrained(BASE{labels})",
    ]


def _packed_base(spec: RunSpec) -> list[str]:
    lines = [
        "from pathlib import Path",
        "",
        "from loraudit.adapters import inject",
        "from loraudit.adapters.base_model import load_base",
        "from loraudit.base.files import read_json",
        "from loraudit.studies.spec import RunSpec",
        "from peft import PeftModel",
        "from transformers import AutoTokenizer",
        "",
        "# FOLDER: where this file is; BASE: folder of the base model with model.safetensors",
        'spec = RunSpec(**read_json(f"{FOLDER}/spec.json"))',
        "base = load_base(spec, Path(BASE))",
    ]
    if spec.lora.init == "loftq":  # its steps quantise the base again
        return [*lines, "base = inject.remove(inject.apply(base, spec))"]
    return [line for line in lines if "inject" not in line]


def _code(base: list[str]) -> str:
    lines = [
        *base,
        "tokenizer = AutoTokenizer.from_pretrained(BASE)",
        "base.config.pad_token_id = tokenizer.pad_token_id",
        "model = PeftModel.from_pretrained(base, FOLDER).eval()",
    ]
    return "\n".join(["```python", *lines, "```"])


def _scores(record: RunRecord, seeds: list[float] | None) -> str:
    """Show each chosen epoch with the number of rows; other seeds' scores where known."""
    train, headline = record.train, record.spec.task.headline
    lines = ["| epoch | metric | value |", "|---|---|---|"]
    for name, chosen in train.epochs.items():
        lines += [
            f"| {name} ({chosen.epoch}) | {text(m)} | {'undefined' if v is None else f'{v:.4f}'} |"
            for m, v in chosen.scores.items()
        ]
    scored = {split: count for split, count in train.rows.items() if split != "train"}
    counts = ", ".join(f"{text(split)} n = {count} rows" for split, count in scored.items())
    picked = {
        "selected": f"The selected epoch was picked by {text(headline)} on rows held out of the "
        "training split.",
        "best": f"The best epoch was picked by {text(headline)} on the validation rows themselves, "
        "which is optimistic.",
        "last": "The last epoch is not picked.",
    }
    said = [picked[choice] for choice in train.epochs]
    if record.spec.epochs == 1:
        said = ["There is one epoch, so that none was picked."]
    notes = [" ".join([f"Scored on {counts}.", *said])]
    if seeds:
        spread = f", standard deviation {stdev(seeds):.4f}" if len(seeds) > 1 else ""
        notes.append(
            f"Over n = {len(seeds)} seeds of this setting, {record.spec.choices[0]} epochs: median "
            f"{text(headline)} {median(seeds):.4f}, mean {mean(seeds):.4f}{spread}."
        )
    else:
        notes.append(f"One run (seed {record.spec.seed}): says nothing about other seeds.")
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes)


def _protocol(spec: RunSpec, rows: dict[str, int]) -> dict[str, Any]:
    said = {key: value for key, value in spec.flat().items() if value not in (None, {})}
    return {
        "task": spec.task.name,
        "data": describe(spec.task.source),
        "rows": ", ".join(f"{split} {count}" for split, count in rows.items()),
        "base model": f"{spec.model.name}: {describe(spec.model.source)}",
        **{k.replace("_", " "): v for k, v in said.items() if k not in ("task", "model")},
    }


def describe(source: Source) -> str:
    """Say a source in one line: what, and what pins it; a local folder's path is not told."""
    facts = {key: value for key, value in source.model_dump().items() if value}
    if isinstance(source, FolderSource):
        facts["folder"] = "(local)"
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _size(record: RunRecord) -> dict[str, Any]:
    parameters, size = record.train.parameters, record.train.bytes
    return {
        "adapter parameters": f"{parameters['adapter']:,}",
        "head parameters": f"{parameters['head']:,}",
        "adapter folder, bytes": f"{size['adapter']:,}",
        "full checkpoint, bytes": f"{size['checkpoint']:,}",
    }


def _provenance(environment: dict) -> dict[str, Any]:
    git = environment.get("git") or {}
    dirty = {True: "yes: the code differed from the commit", False: "no"}.get(git.get("dirty", ""))
    return {
        "loraudit commit": git.get("commit") or "unknown",
        "uncommitted changes": dirty or "unknown",
        "Python": environment.get("python", "unknown"),
        **(environment.get("packages") or {}),
    }


def table(rows: dict[str, Any]) -> str:
    """Return a Markdown table of two columns, every cell escaped."""
    lines = [f"| {text(key)} | {text(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def text(value: Any) -> str:
    """Escape a value for one cell or line of Markdown: no markup, no HTML, no line breaks."""
    joined = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"([\\`*\[\]<>|#!&~])", r"\\\1", plain(joined))


def plain(value: str) -> str:
    """Put a text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())
