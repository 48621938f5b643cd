"""What a run that started warm has forgotten: earlier tasks, scored before and after it.

A chain of runs passes one adapter, or one set of weights, through several tasks by `warm_start`.
For each earlier run of the chain, its own head stands on its own task's validation rows twice:

    before   base + what the earlier run saved
    after    base + what the later run saved, under the earlier run's head

Both are computed here, by one code on one CPU, so that they are equal where the later run has
changed nothing. What was saved are the weights of the epoch that a run's spec chooses first.
Nothing is trained, and nothing that scripts/train.py imports imports this module.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from loraudit.adapters import inject, peft_folder
from loraudit.adapters.base_layers import in_head
from loraudit.adapters.base_model import load_base
from loraudit.base.errors import UserError
from loraudit.data.batches import load_examples, pad_id
from loraudit.studies.record import read_record
from loraudit.studies.scores import sign
from loraudit.studies.spec import RunSpec
from loraudit.training import metrics
from loraudit.training.device import same_bits
from loraudit.training.loop import outputs
from loraudit.training.state import State


class Saved(NamedTuple):
    """A finished run: its name, its spec, and its folder, with adapter/ inside."""

    run: str
    spec: RunSpec
    folder: Path


def chain_of(run: str, runs: Path) -> list[Saved]:
    """Return a run and the runs before it in its chain, itself first.

    Args:
        run: its name, as a study has it.
        runs: the folder below which the runs are.

    Raises:
        UserError: a run of the chain has no complete record.
    """
    spec = read_record(runs / run / "record.json").spec
    found = [Saved(run, spec, runs / run)]
    while start := found[-1].spec.warm_start:
        spec = read_record(runs / start.run / "record.json").spec
        found.append(Saved(start.run, spec, runs / start.run))
    return found


def forgetting_rows(run: str, runs: Path, tokens: Mapping[str, Path], model: Path) -> list[dict]:
    """Score the earlier tasks of a run's chain before and after it.

    Args:
        run, runs: as in `chain_of`.
        tokens: folder of the tokens that each earlier run reads, by the run's name.
        model: folder of the fetched model.

    Returns:
        A row per earlier run and metric: run, earlier (the run's name), earlier_task, distance (how
        many runs of the chain ago it was), metric, headline (whether it is the task's), before,
        after, and forgotten, which is how much worse the score has become: above 0 for a loss.

    Raises:
        UserError: a run is incomplete, or its files do not fit the model.
    """
    later, *earlier = chain_of(run, runs)
    rows = []
    for distance, one in enumerate(earlier, 1):
        folder = tokens[one.run]
        scored = loaded(one, model, pad_id(folder))
        before = scores(scored, one.spec, folder)
        put_on(scored, later, one.spec.model.head)
        after = scores(scored, one.spec, folder)
        for metric in one.spec.task.metrics:
            gap = sign(metric) * (before[metric] - after[metric])
            about: dict = {"run": run, "earlier": one.run, "earlier_task": one.spec.task.name}
            found = {"before": before[metric], "after": after[metric], "forgotten": gap}
            about |= {"distance": distance, "metric": metric}
            rows.append({**about, "headline": metric == one.spec.task.headline, **found})
    return rows


def loaded(saved: Saved, model: Path, pad: int) -> nn.Module:
    """Load the base model of a run with what the run saved on it: adapter or weights, and head."""
    base = load_base(saved.spec, model, pad)
    if saved.spec.adapter is None:
        return put_on(base, saved)
    if saved.spec.adapter.init == "loftq":  # its steps quantise the base again
        base = inject.remove(inject.apply(base, saved.spec))
    return inject.load(base, saved.folder / "adapter")


@torch.no_grad()
def put_on(model: nn.Module, saved: Saved, head: tuple[str, ...] = ()) -> nn.Module:
    """Copy what a run saved into a model that has its like, but for the head; return the model.

    Raises:
        UserError: the model lacks a tensor of the run, or has it in another shape.
    """
    folder = saved.folder / "adapter"
    if saved.spec.adapter is None:
        state = load_file(folder / f"{saved.spec.method}.safetensors")
    else:
        config, state = peft_folder.read_folder(folder)
        head = head or tuple(config.modules_to_save or ())
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in state.items():
        if in_head(name, head):
            continue
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f"{folder}: {name!r} {tuple(tensor.shape)} does not fit the model")
        own[name].copy_(tensor)
    return model


def scores(model: nn.Module, spec: RunSpec, tokens: Path) -> dict[str, float]:
    """Return a model's scores on the validation rows of a run, by the names of its metrics."""
    AcceleratorState._reset_state()  # the run before may have had another precision
    bf16 = "bf16" if spec.precision == "bf16" else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=bf16)
    model.requires_grad_(False)
    on_device = accelerator.prepare(model)
    examples = load_examples(spec, tokens, "validation")
    state = State(spec, accelerator, model, on_device, None, None, pad_id(tokens))
    with same_bits("fp32", accelerator.device):
        logits = outputs(state, examples, f"score {spec.task.name}")
    found = metrics.compute(logits, examples.labels, spec.task)
    return {metric: float(value) for metric, value in found.items()}
