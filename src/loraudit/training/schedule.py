"""The learning rates of a run: each parameter's highest rate, and the schedule."""

import math

import torch
from transformers import get_scheduler

from loraudit.studies.spec import RunSpec


def learning_rate(spec: RunSpec, parameter: str) -> float:
    """Return a parameter's highest rate; with LoRA+, B's is `lora_plus` times that of all others.

    Hayou, Ghosh and Yu 2024 (LoRA+). Their code and PEFT's give the higher rate to every other
    one-dimensional parameter too (the head's biases); here only B has it.
    """
    ratio = spec.adapter.lora_plus if spec.adapter and "lora_B" in parameter else None
    return spec.learning_rate * (ratio or 1)


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
