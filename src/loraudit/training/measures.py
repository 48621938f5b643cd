"""GLUE's measures as plain functions measure(labels, predictions), each a fraction; and text's.

Definitions: gluebenchmark.com; computed by scikit-learn and scipy, but for accuracy: a bootstrap
asks for it thousands of times, and scikit-learn's takes a hundred times as long. F1 is binary,
positive class 1. An undefined score is NaN: F1 where no row is of class 1 and none is predicted so,
a correlation where one side is constant, Matthews where all labels are equal. Matthews of constant
predictions is 0, its limit (Chicco & Jurman 2020, BMC Genomics 21:6) and what scikit-learn and so
GLUE report.

Of text that is predicted, a row's label is its number of tokens that carry loss and its prediction
is the sum of their losses, in nats. The log loss is the mean over all tokens of all rows, so that a
long row counts more than a short one, and the perplexity is its exponential.
"""

import numpy
import scipy.stats
import sklearn.metrics


def _f1(references, predictions):
    return sklearn.metrics.f1_score(references, predictions, zero_division=numpy.nan)


def _matthews(references, predictions):
    if numpy.ptp(references) == 0:
        return numpy.nan
    return sklearn.metrics.matthews_corrcoef(references, predictions)


def _correlation(measure, references, predictions):
    if numpy.ptp(predictions) == 0 or numpy.ptp(references) == 0:
        return numpy.nan
    return measure(references, predictions).statistic


def _log_loss(tokens, losses):
    return numpy.sum(losses) / numpy.sum(tokens)


MEASURES = {
    "accuracy": lambda y, p: numpy.mean(y == p),
    "f1": _f1,
    "matthews": _matthews,
    "pearson": lambda y, p: _correlation(scipy.stats.pearsonr, y, p),
    "spearman": lambda y, p: _correlation(scipy.stats.spearmanr, y, p),
    "log_loss": _log_loss,
    "perplexity": lambda y, p: numpy.exp(_log_loss(y, p)),
}
