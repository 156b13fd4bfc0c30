import math

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, mean, mean_stderr, perplexity, weighted_perplexity

from lab.evaluation import jackknife

CHANCE = np.random.default_rng(0)
LIKELIHOODS = -CHANCE.gamma(4, 10, size=17)
WEIGHTS = CHANCE.integers(1, 60, size=17)
ACCURACIES = CHANCE.integers(0, 2, size=17).astype(float)


def terms(items):
    return np.array([item if isinstance(item, tuple) else (item, 1) for item in items], dtype=np.float64)


@pytest.mark.parametrize(
    ("harness", "items"),
    [
        (mean, list(ACCURACIES)),
        (perplexity, list(LIKELIHOODS / 50)),
        (weighted_perplexity, list(zip(LIKELIHOODS, WEIGHTS, strict=True))),
        (bits_per_byte, list(zip(LIKELIHOODS, WEIGHTS, strict=True))),
    ],
)
def test_values_are_those_of_the_harness_and_its_own_functions_give_the_same_error(harness, items):
    name = harness.__name__
    assert jackknife.value(terms(items), name) == pytest.approx(harness(items), rel=1e-12)
    replicates = [harness(items[:left] + items[left + 1 :]) for left in range(len(items))]
    centre = sum(replicates) / len(items)
    expected = math.sqrt(sum((value - centre) ** 2 for value in replicates) * (len(items) - 1) / len(items))
    without_each = jackknife.values_without_each(terms(items), name)
    assert jackknife.standard_error(without_each) == pytest.approx(expected, rel=1e-9)


def test_the_error_of_a_mean_is_the_harness_s_own():
    without_each = jackknife.values_without_each(terms(list(ACCURACIES)), "mean")
    assert jackknife.standard_error(without_each) == pytest.approx(mean_stderr(list(ACCURACIES)), rel=1e-12)


def test_the_error_of_a_perplexity_covers_what_other_documents_would_have_given():
    """Against the truth: the spread of the value over many samples of documents from one population."""
    samples = [
        terms(list(zip(-CHANCE.gamma(4, 10, size=200), CHANCE.integers(20, 60, size=200), strict=True)))
        for _ in range(300)
    ]
    spread = np.std([jackknife.value(sample, "weighted_perplexity") for sample in samples], ddof=1)
    errors = [
        jackknife.standard_error(jackknife.values_without_each(sample, "weighted_perplexity")) for sample in samples
    ]
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
