"""GLUE's measures as plain functions measure(labels, predictions), each a fraction.

Definitions: gluebenchmark.com; computed by scikit-learn and scipy, but for accuracy: a bootstrap
asks for it thousands of times, and scikit-learn's takes a hundred times as long. F1 is binary,
positive class 1. A correlation or coefficient that is undefined because one side is constant is
reported as 0, as scikit-learn does for Matthews.
"""

import numpy
import scipy.stats
import sklearn.metrics


def _correlation(measure, references, predictions):
    if numpy.ptp(predictions) == 0 or numpy.ptp(references) == 0:
        return 0.0
    return measure(references, predictions).statistic


MEASURES = {
    "accuracy": lambda y, p: numpy.mean(y == p),
    "f1": sklearn.metrics.f1_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda y, p: _correlation(scipy.stats.pearsonr, y, p),
    "spearman": lambda y, p: _correlation(scipy.stats.spearmanr, y, p),
}
