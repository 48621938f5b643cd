"""GLUE's metrics as an `evaluate` module, loaded from this file so that no network is asked.

Definitions: gluebenchmark.com; computed by scikit-learn and scipy. F1 is binary, positive class 1.
A correlation or coefficient that is undefined because one side is constant is reported as 0, as
scikit-learn does for Matthews.
"""

import datasets
import evaluate
import numpy
import scipy.stats
import sklearn.metrics


def _correlation(measure, references, predictions):
    if numpy.ptp(predictions) == 0 or numpy.ptp(references) == 0:
        return 0.0
    return measure(references, predictions).statistic


MEASURES = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda y, p: _correlation(scipy.stats.pearsonr, y, p),
    "spearman": lambda y, p: _correlation(scipy.stats.spearmanr, y, p),
}


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
