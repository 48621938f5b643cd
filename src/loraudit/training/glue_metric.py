"""GLUE's measures as an `evaluate` module, loaded from this file so that no network is asked.

It stands apart from measures.py because `evaluate` imports torch and transformers.
"""

import datasets
import evaluate
import numpy

from loraudit.training.measures import MEASURES


class GlueMetric(evaluate.Metric):
    """All of GLUE's measures; `names` says which of them to compute."""

    def _info(self):
        features = {
            "predictions": datasets.Value("float64"),
            "references": datasets.Value("float64"),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Wang et al. 2019, GLUE, ICLR",
            inputs_description="predictions and references: class numbers, or values",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, names=("accuracy",)):
        references, predictions = numpy.asarray(references), numpy.asarray(predictions)
        return {name: float(MEASURES[name](references, predictions)) for name in names}
