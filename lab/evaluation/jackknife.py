"""Values of a task from the terms of its documents, and their standard errors by the jackknife.

Every aggregation here is a function g of one ratio. Document i contributes a term (x_i, w_i), and

    value = g(sum_i x_i / sum_i w_i)

where an accuracy has x_i = 0 or 1, w_i = 1 and g(r) = r, and a word perplexity a log-likelihood of x_i nats, w_i words
and g(r) = exp(-r). With value_(i) for the value without document i, and n documents,

    standard error = sqrt((n - 1) / n * sum_i (value_(i) - mean_j value_(j))^2)

which for a mean is the sample standard deviation over sqrt(n), the harness's own. The paired difference of two models
takes the difference of their values without document i for value_(i): what both find hard cancels.
"""

import math
from collections.abc import Callable

import numpy as np

TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda ratio: ratio,
    "perplexity": lambda ratio: np.exp(-ratio),
    "weighted_perplexity": lambda ratio: np.exp(-ratio),
    "bits_per_byte": lambda ratio: -ratio / math.log(2),
}
"""g for each aggregation, by the harness's name of it."""


def value(terms: np.ndarray, aggregation: str) -> float:
    """Return the value of `terms`, float64[documents, 2], columns x and w, under an aggregation of `TRANSFORMS`."""
    total, weight = terms.sum(axis=0)
    return float(TRANSFORMS[aggregation](total / weight))


def values_without_each(terms: np.ndarray, aggregation: str) -> np.ndarray:
    """Return float64[documents]: the value without each document in turn. There must be two documents or more."""
    total, weight = (terms.sum(axis=0) - terms).T
    return TRANSFORMS[aggregation](total / weight)


def standard_error(without_each: np.ndarray) -> float:
    """Return the jackknife's standard error from the values without each document, float64[documents]."""
    documents = len(without_each)
    return math.sqrt((documents - 1) * np.var(without_each))
