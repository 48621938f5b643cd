"""Read an adapter that loralib (microsoft/LoRA) saved as a `.bin`, safely; write a PEFT folder.

A loralib file is a state dict saved by torch.save, a zip with a pickle inside:

    roberta.encoder.layer.0.attention.self.query.lora_A   (r, d_in)     loralib.Linear, r > 0
    roberta.encoder.layer.0.attention.self.query.lora_B   (d_out, r)
    classifier.dense.weight, classifier.dense.bias, ...                 the head, if it was saved

The shapes are ours and PEFT's. Those of loralib's MergedLinear, which adapts parts of a fused
layer, are cut by merged_linear.py and written as parts.py says. The file does not hold alpha, which
the user must give, nor the number of layers and their widths, which come from the base model's
config.json.
"""

import math
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from torch import nn

from loraudit.adapters import peft_folder
from loraudit.adapters.base_layers import in_head, target_modules, targets_of
from loraudit.adapters.merged_linear import cut_merged
from loraudit.adapters.parts import Layout, fold
from loraudit.base.errors import Misuse, UserError
from loraudit.base.files import folder_atomic, stand_in
from loraudit.studies.entries import HubSource, Matrix, ModelEntry, layer_pattern

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LoralibAdapter:
    """What a loralib file holds; tensors in `state` have the base model's names.

    `targets` are the adapted matrices (q k v o gate up down), `ranks` is {adapter's full name:
    rank}, `layouts` are those of fused layers with adapters on parts, and `bytes` is the file's
    size.
    """

    state: Tensors
    targets: tuple[str, ...]
    ranks: dict[str, int]
    layouts: dict[str, Layout]
    bytes: int

    @property
    def rank(self) -> int:
        """The rank of most layers."""
        ranks = list(self.ranks.values())
        return max(sorted(set(ranks)), key=ranks.count)

    @property
    def layers(self) -> int:
        """The number of layers that have adapters, by their numbers in the names."""
        return len({re.sub(r"\D+", " ", name) for name in self.ranks})

    @property
    def head(self) -> list[str]:
        """Names of the head's tensors."""
        return [name for name in self.state if not name.endswith((".lora_A", ".lora_B"))]

    def rows(self) -> list[tuple[str, str]]:
        """Return the adapter's sizes as rows of a table with two columns, name and value."""
        count = {name: tensor.numel() for name, tensor in self.state.items()}
        head = sum(count[name] for name in self.head)
        return [
            ("layers", str(self.layers)),
            ("adapted matrices", str(len(self.ranks))),
            ("targets", "+".join(self.targets)),
            ("rank", ", ".join(str(rank) for rank in sorted(set(self.ranks.values())))),
            ("adapter parameters", f"{sum(count.values()) - head:,}"),
            ("head parameters", f"{head:,}" if head else "0 (no head in this file)"),
            ("file bytes", f"{self.bytes:,}"),
        ]


def import_file(
    file: Path,
    alpha: float | None,
    entry: ModelEntry,
    base: Path,
    out: Path,
    fused: tuple[Matrix, ...] = (),
) -> LoralibAdapter:
    """Turn a loralib file into a PEFT folder; nothing is written unless every check passes.

    Args:
        file: the `.bin`.
        alpha: numerator of the scaling alpha / r with which the adapter was trained.
        entry: the base model's entry, for the names of its matrices and head.
        base: folder with the base model's config.json; nothing else in it is read.
        out: the PEFT folder to write, which must not exist.
        fused: the matrices with adapters in fused layers, if the shapes do not say which.

    Raises:
        UserError: alpha or `fused` is missing, or the file can't be read safely or does not fit the
            model.
    """
    if alpha is None:
        raise Misuse(
            "alpha: the file does not store it; give --alpha, the number that it was trained "
            "with (on the published MNLI adapter 8 gives 66.55 %, 16 gives 87.5 %)"
        )
    if not (math.isfinite(alpha) and alpha > 0):
        raise Misuse(f"alpha: {alpha!r} (legal: a number above 0)")
    if out.exists():
        raise UserError(f"out: {out} exists already; name a new folder")
    state = unwrapped(read_bin(file))
    output = state.get(f"{entry.output_layer}.weight")
    classes = len(output) if output is not None and output.ndim and len(output) else 2
    model = skeleton(base, classes)
    adapter = recognise(state, entry, model, file, fused)
    with folder_atomic(out) as folder:
        whole = fold(adapter.state, adapter.layouts)
        config = _config(adapter, whole, alpha, entry)
        peft_folder.write_folder(peft_folder.to_peft(whole), config, folder, adapter.layouts)
    return adapter


def read_bin(file: Path) -> Tensors:
    """Read a state dict of plain tensors without running code in the file.

    torch.load(weights_only=True) builds tensors and plain containers only and refuses all else.

    Raises:
        UserError: the file is missing, is not a whole state dict of plain tensors, or its tensors
            claim more bytes than it has.
    """
    if not file.is_file():
        raise UserError(f"no file {file}")
    size = file.stat().st_size
    if not size:
        raise UserError(f"{file}: the file is empty")
    if instead := stand_in(file):
        raise UserError(f"{file}: {instead}")
    _check_zip(file, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise _refusal(file, error) from None
    if not isinstance(state, dict) or not state:
        raise UserError(f"{file}: holds a {type(state).__name__}, not a state dict of tensors")
    return _plain_tensors(state, file, size)


def _plain_tensors(state: dict, file: Path, size: int) -> Tensors:
    """Return copies of a file's tensors.

    Raises:
        UserError: something else is in the file, or the tensors claim more bytes than it has.
    """
    claimed = 0
    for name, tensor in state.items():
        quoted = " ".join(repr(name).split())[:80]
        if not isinstance(name, str) or type(tensor) not in (torch.Tensor, nn.Parameter):
            kind = type(tensor).__name__
            raise UserError(f"{file}: {quoted} is a {kind} (legal: names with tensors)")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{file}: {quoted} is not a plain tensor ({tensor.layout})")
        claimed += tensor.numel() * tensor.element_size()
    if claimed > size:
        raise UserError(f"{file}: claims {claimed:,} bytes of tensors in a file of {size:,}")
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _check_zip(file: Path, size: int) -> None:
    """Refuse a zip whose contents are larger than the file or whose checksums differ.

    torch.save compresses nothing, so larger contents are an attack; torch.load does not check the
    checksums. A file by torch before 1.6 is no zip and has no checksums, so a flipped bit in its
    numbers goes unseen.
    """
    with file.open("rb") as start:
        if start.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            damaged = None if unpacked > size else archive.testzip()
    except Exception as error:  # a damaged zip can fail anywhere in the reader
        raise UserError(f"{file}: truncated or damaged: {_one_line(error)}") from None
    if unpacked > size:
        raise UserError(f"{file}: claims {unpacked:,} bytes of contents in a file of {size:,}")
    if damaged:
        raise UserError(
            f"{file}: damaged: the checksum of {_one_line(ValueError(damaged))} differs"
        )


def _refusal(file: Path, error: Exception) -> UserError:
    """Make the error for a file that torch.load refused; say so if the file asks to run code."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return UserError(f"{file}: refused, nothing was run: it asks for code ({code.group(1)!r})")
    return UserError(f"{file}: not a whole file of torch.save: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    """Return an error's message as one short line, for a file's contents may stand in it."""
    reason = str(error).rpartition("WeightsUnpickler error:")[2]  # torch puts advice before it
    text = " ".join(reason.split()) or type(error).__name__
    return text[:120].encode("unicode_escape").decode()


def unwrapped(state: Tensors) -> Tensors:
    """Remove the `module.` that DataParallel puts before every name."""
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def skeleton(base: Path, classes: int) -> nn.Module:
    """Make the base model's sequence classifier without weights, from its config.json.

    Raises:
        UserError: the folder has no config.json of a sequence classifier.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if not (base / "config.json").is_file():
        raise UserError(
            f"base: no config.json in {base}; give the base model's folder (nothing else of it is "
            "read), it says how many layers there are and how wide"
        )
    try:
        config = AutoConfig.from_pretrained(base, num_labels=classes, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    except Exception as error:  # transformers names no common class for a config that is wrong
        raise UserError(f"base: {base}/config.json: {_one_line(error)}") from None


def recognise(
    state: Tensors,
    entry: ModelEntry,
    model: nn.Module,
    file: Path,
    fused: tuple[Matrix, ...] = (),
) -> LoralibAdapter:
    """Find the model's layers behind a file's names, and check that no tensor is missing.

    All names may have the same prefix before the layer, such as `roberta.`.

    Args:
        state: {name in the file: tensor}.
        entry: the model's entry.
        model: the base model without adapters, which may be on the meta device.
        file: the file, to be named in errors.
        fused: the matrices with adapters in fused layers, if the shapes do not say which.

    Raises:
        UserError: a name is neither an adapter's nor the head's, a layer or head tensor is missing,
            a shape is wrong, or `peft_folder.check_tensors` refuses a tensor.
    """
    places = _places(entry, model)
    whole = _named(state, entry, places, file)
    named, layouts = cut_merged(whole, entry, model, fused, file)
    _refuse_fused(named, file)
    peft_folder.check_tensors(named, file)
    peft_folder.check_fits(model, fold(named, layouts), file)
    ranks = peft_folder.ranks_of(named)
    adapters = {
        matrix: [t.name if t.name in ranks else t.layer for t in found]
        for matrix in entry.modules
        if (found := targets_of(model, entry, (matrix,)))
    }
    # an adapter of a whole fused layer stands for all matrices in it
    targets = tuple(m for m, names in adapters.items() if set(names) & set(ranks))
    wanted = list(dict.fromkeys(f"{n}.lora_A" for m in targets for n in adapters[m]))
    if any(in_head(name, entry.head) for name in named):
        wanted += [name for name in model.state_dict() if in_head(name, entry.head)]
    missing = [name.removesuffix(".lora_A") for name in wanted if name not in named]
    if missing:
        raise UserError(f"{file}: nothing for {_some(missing)}, which this model has")
    return LoralibAdapter(named, targets, ranks, layouts, file.stat().st_size)


def _refuse_fused(state: Tensors, file: Path) -> None:
    """Refuse loralib's MergedLinear where the model has no fused layer.

    Without this check the error would only say that the shapes are wrong.
    """
    for name, a in state.items():
        b = state.get(name.removesuffix("_A") + "_B") if name.endswith(".lora_A") else None
        if b is None or a.ndim != 2 or b.ndim != 2 or 0 in (*a.shape, *b.shape):
            continue
        fused, rest = divmod(a.shape[0], b.shape[1])
        if fused > 1 and not rest and b.shape[0] % fused == 0:
            raise UserError(
                f"{file}: {name!r} {tuple(a.shape)} with lora_B {tuple(b.shape)} looks like "
                f"loralib's MergedLinear ({fused} fused matrices), but this layer of the model "
                "holds one (legal: loralib.Linear, lora_A (r, d_in) and lora_B (d_out, r))"
            )


def _places(entry: ModelEntry, model: nn.Module) -> dict[str, str]:
    """Return {`_relative` name: full name} of every layer that could have an adapter."""
    names = target_modules(model, entry, tuple(entry.modules))
    return {relative: name for name in names if (relative := _relative(name, entry))}


def _relative(name: str, entry: ModelEntry) -> str | None:
    """Return the end of a layer's name that a pattern of the entry matches, None if none does."""
    for pattern in map(layer_pattern, entry.modules.values()):
        regex = pattern.replace(".", r"\.").replace("*", r"\d+")
        hit = re.search(rf"(?:^|\.)({regex})$", name)
        if hit:
            return hit.group(1)
    return None


def _named(state: Tensors, entry: ModelEntry, places: dict[str, str], file: Path) -> Tensors:
    """Return the tensors under the base model's names."""
    named, unknown, beyond, prefixes = {}, [], [], set()
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        adapter = part in ("lora_A", "lora_B")
        relative = _relative(layer, entry) if adapter else None
        if relative in places:
            prefixes.add(layer.removesuffix(relative))
            named[f"{places[relative]}.{part}"] = tensor
        elif not adapter and any(name.startswith(f"{head}.") for head in entry.head):
            named[name] = tensor
        elif relative:
            beyond.append(name)
        else:
            unknown.append(name)
    if beyond:
        count = len({re.sub(r"\D", "", place) for place in places})
        raise UserError(f"{file}: {_some(beyond)}: this model has {count} layers")
    if unknown:
        layers = dict.fromkeys(map(layer_pattern, entry.modules.values()))
        raise UserError(
            f"{file}: {_some(unknown)}: not known (legal: lora_A and lora_B of "
            f"{', '.join(layers)}; the head {', '.join(entry.head)})"
        )
    if len(prefixes) > 1:
        raise UserError(f"{file}: layers of several models: {_some(sorted(prefixes))}")
    return named


def _some(names: list[str], most: int = 3) -> str:
    """List the first names, and count those that are left out."""
    listed = ", ".join(repr(name[:80]) for name in names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def _config(
    adapter: LoralibAdapter, whole: Tensors, alpha: float, entry: ModelEntry
) -> peft.LoraConfig:
    """Return PEFT's configuration of the adapter; rank_pattern names layers of another rank.

    A fused layer with adapters on m parts has m times their rank and alpha. Without a head there is
    no task type: with SEQ_CLS, PEFT would look for a classifier.
    """
    source, ranks = entry.source, peft_folder.ranks_of(whole)
    counts = {n: len(adapter.layouts[n].parts) if n in adapter.layouts else 1 for n in ranks}
    alphas = {name: alpha * count for name, count in counts.items() if count > 1}
    return peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS if adapter.head else None,
        base_model_name_or_path=source.hub if isinstance(source, HubSource) else entry.name,
        r=adapter.rank,
        rank_pattern={name: rank for name, rank in ranks.items() if rank != adapter.rank},
        lora_alpha=alpha,
        alpha_pattern=alphas,
        target_modules=list(ranks),
        modules_to_save=list(entry.head) if adapter.head else None,
        bias="none",
        inference_mode=True,
    )
