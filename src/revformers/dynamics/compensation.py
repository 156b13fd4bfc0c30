"""Step sizes that make up for what blends take away."""

from collections.abc import Sequence
from fractions import Fraction

LARGEST_COMPENSATED_BLEND = Fraction(1, 2)
"""For a = 1 the step sizes would not stay bounded."""


def compensating_step_sizes(blends: Sequence[Fraction]) -> list[float]:
    """Return the step size of every layer with which the blends take nothing from the sum of all updates.

    With v_l = p[l+1] - p[l], a blended step is v_l = h_l f_l - a_l v_{l-1}: it takes a_l of the last update back, and
    without compensation these losses add up over the layers. Let the state be ahead of the ordinary network's
    q[l+1] = q[l] + f_l by a share of the last update, p[l+1] = q[l+1] + s_{l+1} v_l. Substituting gives

        s_l = a_l (1 - s_{l+1})        h_l = 1 / (1 - s_{l+1})        s_L = 0

    from the last layer to the first: every layer adds what the next one will take away, the errors do not add up, and
    the last state is the sum of all updates, h = 1 + a in the middle of a stack of one blend. Blends above 1/2 are
    not compensated.

    Args:
        blends: a of every layer.

    """
    steps = []
    ahead = 0.0
    for blend in reversed(blends):
        steps.append(1 / (1 - ahead))
        ahead = float(blend) * (1 - ahead) if abs(blend) <= LARGEST_COMPENSATED_BLEND else 0.0
    return steps[::-1]
