"""Computes values of a task from the terms of its documents, and their standard errors by the jackknife.

Every aggregation here is a function g of one ratio. Document i contributes a term (x_i, w_i), and

    value = g(sum_i x_i / sum_i w_i)

For an accuracy, x_i is 0 or 1, w_i = 1 and g(r) = r. For a word perplexity, x_i is a log-likelihood in nats, w_i a
number of words and g(r) = exp(-r). With value_(i) the value without document i, and n documents,

    standard error = sqrt((n - 1) / n * sum_i (value_(i) - mean_j value_(j))^2)

For a mean this is the sample standard deviation divided by sqrt(n), as in the harness. The paired difference of two
models uses the difference of their values without document i as value_(i), so common difficulty cancels.
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
"""g for each aggregation, by its name in the harness."""


def value(terms: np.ndarray, aggregation: str) -> float:
    """Return the value of `terms`, float64[documents, 2], columns x and w, under an aggregation of `TRANSFORMS`."""
    total, weight = terms.sum(axis=0)
    return float(TRANSFORMS[aggregation](total / weight))


def values_without_each(terms: np.ndarray, aggregation: str) -> np.ndarray:
    """Return float64[documents]: the value without each document in turn. There must be at least two documents."""
    total, weight = (terms.sum(axis=0) - terms).T
    return TRANSFORMS[aggregation](total / weight)


def standard_error(without_each: np.ndarray) -> float:
    """Return the jackknife's standard error from the values without each document, float64[documents]."""
    documents = len(without_each)
    return math.sqrt((documents - 1) * np.var(without_each))
