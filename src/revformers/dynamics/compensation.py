"""Step sizes that compensate for blends: each state runs ahead of the ordinary one by a share of its last update."""

from collections.abc import Sequence
from fractions import Fraction

LARGEST_COMPENSATED_BLEND = Fraction(1, 2)
"""Larger blends are not compensated; for a = 1 the step sizes would not be bounded."""


def leads(blends: Sequence[Fraction], parts: Sequence[float] | None = None) -> list[float]:
    """Return for each state p[0], ..., p[L] the share s_l of its last update by which it leads the ordinary state.

    With v_l = p[l+1] - p[l], a blended step is v_l = h_l f_l - a_l v_{l-1}: it subtracts a_l of the last update, and
    without compensation these losses add up over the layers. Let the state lead the ordinary network's
    q[l+1] = q[l] + f_l by a share of the last update, p[l+1] = q[l+1] + s_{l+1} v_l. Substituting gives

        s_l = a_l (1 - s_{l+1})        h_l = 1 / (1 - s_{l+1})        s_L = 0

    from the last layer to the first. Every layer adds what the next one will subtract, so the errors do not add up, and
    the last state is the sum of all updates. Blends above 1/2 are not compensated.

    BDIA-transformers (Zhang, Lewis and Kleijn, https://arxiv.org/abs/2407.09093) have a weight of 1 + a in every layer,
    from an average of two integration steps; docs/science/prior-art.md says how that differs.

    Args:
        blends: a for every layer.
        parts: for every layer, the part of its share to lead by, from 0 to 1, if something else compensates for the
            rest; None stands for 1 everywhere.

    """
    shares = [0.0]
    for layer in reversed(range(len(blends))):
        part = 1.0 if parts is None else parts[layer]
        blend = blends[layer]
        shares.append(part * float(blend) * (1 - shares[-1]) if blend <= LARGEST_COMPENSATED_BLEND else 0.0)
    return shares[::-1]


def compensating_step_sizes(blends: Sequence[Fraction]) -> list[float]:
    """Return the step size h of every layer that produces these `leads`.

    It is 1 in the last layer, and before it tends to 1 + a where neighbouring layers have the same blend a.
    """
    return [1 / (1 - share) for share in leads(blends)[1:]]
