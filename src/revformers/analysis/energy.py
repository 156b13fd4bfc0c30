"""Energy along depth: the mean square of every state and update, and the quantity that a linear step conserves.

For a step with |a| = 1 it is

    E[l] = <p[l], p[l]> + a <p[l-1], p[l+1]>,

the mean over elements (our derivation; a test confirms it). For p[l+1] = a p[l-1] + t p[l] with a number t on the
stable segment (`linear`) it does not change with l: with a = -1 and p[l] = cos(l x) it is sin(x)^2. For vectors it is
conserved if the matrices of the field are the same in all layers, and symmetric for a = -1 (leapfrog) or antisymmetric
for a = 1 (midpoint).

With two branches in turn and a = 1, b = 0 (Hamiltonian), a layer takes the pair (q, p) to (q', p'), and it is

    E[l] = <q, p'> - <p, q'>,

the symplectic form of a pair and the next one, which is conserved if both branches are linear, symmetric, and the same
in all layers.

The layers of a transformer are none of this: the change of E shows how far they are from it.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from revformers.analysis.walk import NamedStep
from revformers.dynamics.base import Granularity


def mean_squares(states: Sequence[Tensor]) -> list[float]:
    """Return the mean of squares of every state."""
    return [state.double().square().mean().item() for state in states]


def update_mean_squares(steps: Sequence[NamedStep], states: Sequence[Tensor], dtype: torch.dtype) -> list[float]:
    """Return the mean of squares of every f_l(p[l]).

    Args:
        steps: n steps.
        states: p[-1], p[0], ..., p[n], as `walk.walk` returns them.
        dtype: what the fields compute in.

    """
    with torch.no_grad():
        return mean_squares([step.field(state.to(dtype)) for step, state in zip(steps, states[1:], strict=False)])


def invariants(
    steps: Sequence[NamedStep], states: Sequence[Tensor], granularity: Granularity = "block"
) -> list[float] | None:
    """Return E of every layer, or None where none is known.

    None is known for |a| other than 1, for an a or b that differs between layers, and for steps by branch unless a = 1
    and b = 0.

    Args:
        steps: n steps.
        states: p[-1], p[0], ..., p[n], as `walk.walk` returns them.
        granularity: of the dynamics.

    """
    recurrences = {(step.coefficients.previous, step.coefficients.current) for step in steps}
    if granularity == "branch":
        if recurrences != {(1, 0)}:
            return None
        pairs = list(zip(states[::2], states[1::2], strict=True))
        return [(q * next_p - p * next_q).mean().item() for (q, p), (next_q, next_p) in pairwise(pairs)]
    if len(recurrences) > 1 or any(abs(previous) != 1 for previous, _ in recurrences):
        return None
    return [
        (states[place + 1].square() + float(step.coefficients.previous) * states[place] * states[place + 2])
        .mean()
        .item()
        for place, step in enumerate(steps)
    ]
