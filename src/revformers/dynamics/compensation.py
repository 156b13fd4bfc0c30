"""Compensation of blends: states that are ahead of the ordinary network's by a share of their last update."""

from collections.abc import Sequence
from fractions import Fraction

LARGEST_COMPENSATED_BLEND = Fraction(1, 2)
"""For a = 1 the step sizes would not stay bounded."""


def leads(blends: Sequence[Fraction], parts: Sequence[float] | None = None) -> list[float]:
    """Return the share s_l of its last update that each state p[0], ..., p[L] is to be ahead of the ordinary network's.

    With v_l = p[l+1] - p[l], a blended step is v_l = h_l f_l - a_l v_{l-1}: it takes a_l of the last update back, and
    without compensation these losses add up over the layers. Let the state be ahead of the ordinary network's
    q[l+1] = q[l] + f_l by a share of the last update, p[l+1] = q[l+1] + s_{l+1} v_l. Substituting gives

        s_l = a_l (1 - s_{l+1})        h_l = 1 / (1 - s_{l+1})        s_L = 0

    from the last layer to the first: every layer adds what the next one will take away, the errors do not add up, and
    the last state is the sum of all updates. What blends above 1/2 take away is not compensated.

    Args:
        blends: a of every layer.
        parts: for every layer the part of its share to be ahead by, from 0 to 1, where something else makes up for the
            rest; left out, all of it.

    """
    shares = [0.0]
    for layer in reversed(range(len(blends))):
        part = 1.0 if parts is None else parts[layer]
        blend = blends[layer]
        shares.append(part * float(blend) * (1 - shares[-1]) if blend <= LARGEST_COMPENSATED_BLEND else 0.0)
    return shares[::-1]


def compensating_step_sizes(blends: Sequence[Fraction]) -> list[float]:
    """Return the step size h of every layer that brings about these `leads`: 1 + a amid layers of one blend."""
    return [1 / (1 - share) for share in leads(blends)[1:]]
