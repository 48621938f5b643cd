"""Add a task or a model: make one YAML entry, try it for real, and only then write it."""

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from loraudit.base.errors import Misuse, UserError, unknown
from loraudit.base.files import write_text
from loraudit.base.shipped import read_table, tables
from loraudit.base.yaml_file import read_yaml
from loraudit.studies import paths
from loraudit.studies.entries import FolderSource, ModelEntry, TaskEntry
from loraudit.studies.values import validated

ROWS = 32
"""Rows of each split on which the tokenizer is tried for a new task."""

STEP_GAP = 1e-3
"""How far our outputs and PEFT's may differ after a step, relative to the larger of 1 and them."""

NAME = r"[a-z0-9][a-z0-9._-]*"


class Tried(NamedTuple):
    """An entry that works.

    `text` is the whole text of the table in `path` with the entry in it, `seen` what the trial saw.
    """

    path: Path
    text: str
    entry: str
    seen: list[list[object]]

    def write(self) -> None:
        """Write the table, which now holds the entry."""
        write_text(self.path, self.text)


def source(wheel: str | None, folder: str | None, hub: str | None, **more: str | None) -> dict:
    """Return a source as its keys in YAML. Exactly one of wheel, folder and hub is to be given.

    Args:
        wheel: NAME==VERSION; needs `sha256` and `path` in `more`.
        folder: a local folder in the hub's layout.
        hub: OWNER/NAME; needs `revision` in `more`.
        more: sha256, path, revision and config, as far as they were given.

    Raises:
        Misuse: not exactly one of the three was given, or a key is missing or does not go with
            it.
    """
    given = {"wheel": wheel, "folder": folder, "hub": hub}
    chosen = {key: value for key, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise Misuse(f"source: give one of --wheel, --folder and --hub, got {len(chosen)}")
    kind = next(iter(chosen))
    needed = {"wheel": ("sha256", "path"), "folder": (), "hub": ("revision",)}[kind]
    for key in needed:
        if more.get(key) is None:
            raise Misuse(f"source: --{kind} needs --{key}")
    legal = {*needed, *(() if kind == "wheel" else ("config",))}
    for key, value in more.items():
        if value is not None and key not in legal:
            raise Misuse(f"source: --{key} does not go with --{kind}")
    return chosen | {key: value for key, value in more.items() if value is not None}


def rating(value: str) -> dict:
    """Return a rating rule from COLUMN,NEUTRAL_BELOW,VALIDATION_ROWS.

    Raises:
        Misuse: the value does not have that form.
    """
    parts = value.split(",")
    try:
        column, below, rows = parts
        return {"column": column, "neutral_below": float(below), "validation_rows": int(rows)}
    except ValueError:
        raise Misuse(f"rating: {value!r}: expected COLUMN,NEUTRAL_BELOW,VALIDATION_ROWS") from None


def insert(text: str, block: str | None, name: str, fields: dict) -> str:
    """Return a YAML table's text with one more entry, and change nothing else in it.

    The entry is put in as text, because writing the parsed table would lose its comments. The
    result is parsed again to see that it holds the old content and the entry.

    Args:
        text: the table, comments included.
        block: the top-level key whose mapping gets the entry; None for the top level itself.
        name: the entry's key.
        fields: its values.

    Raises:
        Misuse: the name is not fit for a path.
        UserError: the name is taken, or the file has no place for the entry.
    """
    if not re.fullmatch(NAME, name):
        raise Misuse(f"name: {name!r}: legal are small letters, digits and . _ -")
    try:
        before = yaml.safe_load(text) or {}
        table = before if block is None else before.get(block) or {}
        _check_free(name, table)
        made = _with_entry(text, block, dump(name, fields))
        whole = {**table, name: fields}
        fits = yaml.safe_load(made) == (whole if block is None else {**before, block: whole})
    except (yaml.YAMLError, AttributeError, TypeError):  # the latter where it is no mapping
        fits = False
    if not fits:
        raise UserError(f"the entry {name!r} can't be put into this file without changing the rest")
    return made


def _with_entry(text: str, block: str | None, entry: str) -> str:
    """Return a table's text with an entry after the last one of a block, which may be missing."""
    if block is None:
        return f"{text.rstrip()}\n{entry}".lstrip()
    text, place = _end(text, block)
    if place is None:
        return f"{text.rstrip()}\n{block}:\n{_indented(entry)}".lstrip()
    lines = text.splitlines(keepends=True)
    if place and not lines[place - 1].endswith("\n"):
        lines[place - 1] += "\n"
    return "".join([*lines[:place], _indented(entry), *lines[place:]])


def _check_free(name: str, table: dict) -> None:
    """Refuse a name that an entry has already; an own entry would hide a shipped one."""
    if name in table:
        raise UserError(f"name: {name!r} is taken; choose another")


def _own_text(path: Path) -> str:
    """Return the text of the user's own table, empty if there is none yet."""
    return path.read_text() if path.is_file() else ""


def dump(name: str, fields: dict) -> str:
    """Return an entry as YAML, each list on one line."""
    return yaml.safe_dump({name: fields}, sort_keys=False, width=96, default_flow_style=None)


def _indented(entry: str) -> str:
    return "".join(f"  {line}\n" for line in entry.splitlines())


def _end(text: str, block: str) -> tuple[str, int | None]:
    """Return a text and the index of the line after the last one of a top-level mapping in it.

    What stands for an empty mapping (null, braces or brackets) is left out of the text. There is no
    index where the mapping is missing.
    """
    root = yaml.compose(text)
    for key, value in root.value if root else ():
        if key.value == block and isinstance(value, yaml.MappingNode) and value.value:
            # A plain or {braced} value ends inside a line, a block value at the start of one.
            return text, value.value[-1][1].end_mark.line + (value.value[-1][1].end_mark.column > 0)
        if key.value == block:
            empty = text[: value.start_mark.index].rstrip(" ") + text[value.end_mark.index :]
            return empty, key.end_mark.line + 1
    return text, None


def try_task(name: str, fields: dict, model: Path | None = None) -> Tried:
    """Make a task's entry and try it: read all rows, check labels and metrics, and tokenise some.

    What is odd about the rows (data/remarks.py) is among what was seen, and hinders nothing. The
    entry says how many rows each split has.

    Args:
        name: the task's name.
        fields: the keys of its entry in tasks.yaml.
        model: folder of a fetched model whose tokenizer is tried; None skips that.

    Raises:
        UserError: the entry does not work, with the reason; nothing was written.
    """
    path = paths.CONFIG / "tasks.yaml"
    _check_free(name, read_table(path))
    insert(_own_text(path), None, name, fields)  # refuses a bad name before it reads
    entry: TaskEntry = validated(TaskEntry, {"name": name, **fields}, f"task {name!r}")
    from loraudit.data.fetch_task import read_task
    from loraudit.data.remarks import also_in_train, remarks, split_keys

    seen: list[list[object]] = []
    tables, _ = read_task(entry)
    for split, table in tables.items():
        kinds = table.label.nunique()
        first = str(table.text_1.iloc[0])
        short = first if len(first) < 60 else first[:57] + "..."
        seen.append([split, f"{len(table)} rows, {kinds} labels, first text {short!r}"])
        if model is not None:
            seen.append([split, _tokens(table[:ROWS], model)])
    repeated = also_in_train(tables, {split: split_keys(table) for split, table in tables.items()})
    seen += [["remark", said] for said in remarks(tables, entry, repeated)]
    fields = {"rows": {split: len(table) for split, table in tables.items()}, **fields}
    return Tried(path, insert(_own_text(path), None, name, fields), dump(name, fields), seen)


def _tokens(table, model: Path) -> str:
    from loraudit.data.tokenise import load_tokenizer, texts

    tokens = load_tokenizer(model)(*texts(table))
    lengths = sorted(len(ids) for ids in tokens["input_ids"])
    middle = lengths[len(lengths) // 2]
    return f"tokens with {model.name}: median {middle}, most {lengths[-1]}"


def fetched_models() -> list[Path]:
    """Return the folders of the models that are fetched here."""
    return sorted(path.parent for path in (paths.RESOURCES / "models").glob("*/manifest.json"))


def try_model(name: str, fields: dict) -> Tried:
    """Make a model's entry and try it: match its matrices, and train one step with LoRA on all.

    Args:
        name: the model's name.
        fields: the keys of its entry in models.yaml; without family and modules, the family is
            that of the model's type or, if there is none, modules and head are proposed by looking
            at the model.

    Raises:
        UserError: the entry does not work, with the reason; nothing was written.
    """
    path = paths.CONFIG / "models.yaml"
    families = _group(path, "families")
    _check_free(name, _group(path, "models"))
    insert(_own_text(path), "models", name, fields)  # refuses a bad name before it fetches
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        _fetch(name, fields["source"], out)
        found: list[list[object]] = []
        if not {"family", "modules"} & set(fields):
            proposed, found = _found(out, families)
            fields = {**proposed, **fields}
        if fields.get("family") not in (None, *families):
            raise unknown("family", fields["family"], families)
        whole = {**families.get(fields.get("family"), {}), **fields}
        if whole.get("pooler"):
            from loraudit.adapters.base_model import pooler_trained

            fields["pretrained_pooler"] = pooler_trained(out, whole["pooler"])
            whole |= fields
        whole.pop("family", None)
        entry: ModelEntry = validated(ModelEntry, {"name": name, **whole}, f"model {name!r}")
        seen, most = _run_model(entry, out)
        fields |= {"max_tokens": most} if most else {}
    text = insert(_own_text(path), "models", name, fields)
    return Tried(path, text, dump(name, fields), found + seen)


def _group(path: Path, key: str) -> dict:
    """Return the entries, shipped and own, below a key of a table; an empty value has none.

    Raises:
        UserError: the value, or an entry, has no keys and values.
    """
    entries: dict = {}
    for file in tables(path):
        found = read_yaml(file).get(key) or {}
        _require_mapping(f"{file}: {key}", found)
        for name, entry in found.items():
            _require_mapping(f"{file}: {key}.{name}", entry)
        entries |= found
    return entries


def _require_mapping(where: str, value: object) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {value!r}: expected keys and values")


def _fetch(name: str, origin: dict, out: Path) -> None:
    """Fetch a model before its modules are known; an entry needs some, so these are made up."""
    from loraudit.data.fetch_model import fetch_model

    known = {"name": name, "source": origin, "modules": {"q": "unknown.*"}, "head": ["unknown"]}
    fetch_model(validated(ModelEntry, known, f"model {name!r}"), out)


def _found(folder: Path, families: dict) -> tuple[dict, list[list[object]]]:
    """Return the family of a model's type or, where none is known, what its modules suggest.

    Returns:
        Keys of the entry, and what was seen.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    from loraudit.adapters.base_model import check_classifier
    from loraudit.tools.architecture import propose

    check_classifier(folder, str(folder))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, num_labels=2)
    if config.model_type in families:
        return {"family": config.model_type}, []
    files = sorted(folder.glob("*.safetensors"))
    keys = {key for file in files for key in safe_open(file, "pt").keys()}  # noqa: SIM118
    proposal = propose(config, frozenset(keys))
    made: dict = {
        "modules": proposal.modules,
        "head": list(proposal.head),
    }
    if proposal.output != proposal.head[-1]:
        made["output"] = proposal.output
    seen: list[list[object]] = [
        ["family", f"none is for {config.model_type!r}: the entry follows from the model's modules"]
    ]
    seen += [["left out", f"{name}: no matrix that has a name here"] for name in proposal.left_out]
    return made, seen


def _run_model(entry: ModelEntry, folder: Path) -> tuple[list[list[object]], int | None]:
    """Load a fetched model, match its matrices, and train a step on two sentences, as PEFT does.

    Returns:
        What was seen, and the most tokens that the model can read.
    """
    from loraudit.adapters.base_layers import matrix_sizes, targets_of
    from loraudit.adapters.base_model import load_base, most_tokens
    from loraudit.data.tokenise import load_tokenizer

    spec, tokenizer = _trial_spec(entry), load_tokenizer(folder)
    model = load_base(spec, folder, tokenizer.pad_token_id)
    most = most_tokens(model)
    seen: list[list[object]] = []
    for matrix in entry.modules:
        found = targets_of(model, entry, (matrix,))
        shapes = {"{1} x {0}".format(*matrix_sizes(model, target)) for target in found}
        seen.append([matrix, f"{len(found)} layers, {', '.join(sorted(shapes))}: {found[0].name}"])
    batch = tokenizer(["A first trial.", "Another, longer one."], padding=True, return_tensors="pt")
    seen.append(_one_step(model, spec, dict(batch)))
    seen.append(["max_length", f"up to {most}" if most else "no limit"])
    return seen, most


def _one_step(model: Any, spec: Any, batch: dict) -> list[object]:
    """Train one step by our code and by PEFT's, and return what was seen.

    Raises:
        UserError: outputs are not finite, or the two differ.
    """
    import copy

    import torch

    from loraudit.adapters import inject, peft_twin

    outputs = []
    for adapted in (peft_twin.apply(copy.deepcopy(model), spec), inject.apply(model, spec)):
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
        first = adapted.eval()(**batch).logits
        torch.nn.functional.cross_entropy(first, torch.tensor([0, 1])).backward()
        optimizer.step()
        with torch.no_grad():
            outputs.append(adapted(**batch).logits)
    theirs, ours = outputs
    if not torch.isfinite(torch.stack((first, theirs, ours))).all():
        raise UserError(f"model {spec.model.name!r}: its outputs are not finite")
    gap, size = (ours - theirs).abs().max().item(), ours.abs().max().item()
    if gap > STEP_GAP * max(1.0, size):
        raise UserError(
            f"model {spec.model.name!r}: after a step PEFT's outputs and ours differ by {gap:.2g}"
        )
    moved = (ours - first).abs().max().item()
    said = f"{batch['input_ids'].numel()} tokens -> logits {tuple(ours.shape)}"
    return ["one step", f"{said}, moved by {moved:.2g}; PEFT's differ by {gap:.1g}"]


def _trial_spec(entry: ModelEntry):
    """Return a run's spec on a task of two classes, with rank 1 on every matrix."""
    from loraudit.studies.expand import make_spec

    defaults = read_table(paths.CONFIG / "defaults.yaml")
    defaults.pop("per_method", None)
    task = TaskEntry(
        name="trial",
        source=FolderSource(folder="nowhere"),
        text=("text",),
        label="label",
        classes=("no", "yes"),
        metrics=("accuracy",),
        headline="accuracy",
    )
    own = {"task": task, "model": entry, "targets": tuple(entry.modules), "rank": 1}
    return make_spec({**defaults, **own, "max_length": 8}, "trial")
