"""Which of several treatments differ from a control, when all share the same blocks: Dunnett's test.

`scipy.stats.dunnett` has no blocks: it would count what blocks differ by as error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import chi, norm


@dataclass(frozen=True)
class Comparison:
    """Mean differences from a control, and how large one must be to be told from zero.

    Attributes:
        differences: The mean difference of every treatment from the control.
        deviation: Standard deviation of a difference in one block, over and above the mean one.
        standard_error: Standard error of a mean difference.
        threshold: Standard errors beyond which a difference is told from zero.

    """

    differences: dict[str, float]
    deviation: float
    standard_error: float
    threshold: float

    @property
    def least_difference(self) -> float:
        """The smallest mean difference that is told from zero."""
        return self.threshold * self.standard_error

    def sign(self, treatment: str) -> int:
        """Return 1 or -1 if the treatment is told to lie above or below the control, else 0."""
        difference = self.differences[treatment]
        return 0 if abs(difference) <= self.least_difference else 1 if difference > 0 else -1


def compare_with_control(
    values: Mapping[str, Sequence[float]], control: str, error_rate: float = 0.05
) -> Comparison | None:
    """Compare every treatment with the control.

    The error is what a two-way analysis of variance without interaction leaves: values less the means of their
    treatment and of their block. It is taken to be normal and equally large for all treatments.

    Args:
        values: The values of every treatment, one for each block, in the same order.
        control: The treatment that the others are compared with.
        error_rate: Probability that at least one difference is told from zero although none exists.

    Returns:
        The comparison; None with one treatment or one block, which leave nothing to tell the error from.

    """
    if control not in values or len(values) < 2 or len(values[control]) < 2:
        return None
    table = np.array(list(values.values()))
    treatments, blocks = table.shape
    left = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    degrees = (treatments - 1) * (blocks - 1)
    deviation = float(np.sqrt(2 * (left**2).sum() / degrees))
    means = {name: float(np.mean(found)) for name, found in values.items()}
    return Comparison(
        {name: found - means[control] for name, found in means.items() if name != control},
        deviation,
        deviation / blocks**0.5,
        critical_value(treatments - 1, degrees, error_rate),
    )


@cache
def critical_value(comparisons: int, degrees: int, error_rate: float) -> float:
    """Return the two-sided critical value of Dunnett's test (Dunnett 1955, equal numbers of values).

    Args:
        comparisons: Treatments other than the control.
        degrees: Degrees of freedom of the estimated error.
        error_rate: Probability of at least one false finding among the comparisons.

    """
    # The control's own error is half of the variance of every difference. Where it is known, the differences are
    # independent, so that the probability is an integral over it and over the estimated size of the error.
    controls, weights = hermegauss(100)
    weights = weights / weights.sum()
    root = degrees**0.5

    def all_within(limit: float) -> float:
        one = norm.cdf(controls + 2**0.5 * limit) - norm.cdf(controls - 2**0.5 * limit)
        return float(weights @ one**comparisons)

    def excess(value: float) -> float:
        inside, _ = quad(lambda size: all_within(value * size) * chi.pdf(size * root, degrees) * root, 0, np.inf)
        return float(inside - (1 - error_rate))

    return float(brentq(excess, 0.1, 50.0, xtol=1e-6))
