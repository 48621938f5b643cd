"""The learning-rate schedule of a run."""

import math

import torch
from transformers import get_scheduler

from loraudit.spec import RunSpec


def make_schedule(
    spec: RunSpec, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Make the run's schedule over `steps` optimizer steps, warm-up included."""
    return get_scheduler(
        {"constant": "constant_with_warmup"}.get(spec.schedule, spec.schedule),
        optimizer,
        num_warmup_steps=math.ceil(spec.warmup_ratio * steps),
        num_training_steps=steps,
    )
