"""Metrics from logits, through `evaluate` and this package's own metric script."""

import functools
from pathlib import Path

import numpy as np

from loraudit.studies.entries import TaskEntry

METRIC_SCRIPT = "glue_metric.py"


@functools.cache
def _metric():
    import evaluate

    return evaluate.load(str(Path(__file__).with_name(METRIC_SCRIPT)), keep_in_memory=True)


def predictions(logits: np.ndarray, task: TaskEntry) -> np.ndarray:
    """Turn logits (n, classes) into class numbers (n,), or regression outputs (n, 1) into (n,).

    Where text is predicted, the outputs are the rows' losses.
    """
    return logits.argmax(axis=1) if task.classes else logits[:, 0]


def compute(logits: np.ndarray, labels: np.ndarray, task: TaskEntry) -> dict[str, float]:
    """Compute the task's metrics, each as a fraction (0.9, not 90); an undefined one is NaN.

    Those of text are the log loss in nats per token and the perplexity.
    """
    return _metric().compute(
        predictions=predictions(logits, task), references=labels, names=list(task.metrics)
    )
