"""The growth of an infinitesimal perturbation through a recurrence, forwards and through the inverse.

A perturbation d of the states follows the linearised recurrence

    d[l+1] = a d[l-1] + b d[l] + c J_l d[l],        d[l-1] = (d[l+1] - b d[l] - c J_l d[l]) / a,

with the Jacobians J_l at the states of the network. Derivatives are exact up to the rounding of the model's dtype, and
sums are in float64, so that no floor is set, as it would be for a difference of two runs. Random directions show
typical growth. The direction of the worst growth is not searched.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from revformers.analysis.jacobian import jacobian_product
from revformers.analysis.walk import NamedStep, weights
from revformers.dynamics.base import Start


def growth_forwards(
    steps: Sequence[NamedStep],
    states: Sequence[Tensor],
    start: Start,
    dtype: torch.dtype,
    *,
    probes: int = 2,
    seed: int = 0,
) -> list[float]:
    """Return the size of a perturbation of the embedding after every step, relative to its size at the start.

    The size of a pair is the root of the sum of both squared norms; of the probes the root of the mean of squares.

    Args:
        steps: n steps.
        states: p[-1], p[0], ..., p[n], as `walk.walk` returns them.
        start: of the dynamics: "repeat" perturbs p[-1] as well.
        dtype: what the fields compute in.
        probes: number of random directions.
        seed: of the directions.

    Returns:
        n + 1 numbers, of which the first is 1.

    """
    current = [_random(states[0], generator) for generator in _generators(probes, seed)]
    previous = [one.clone() if start == "repeat" else torch.zeros_like(one) for one in current]
    sizes = [_sizes(previous, current)]
    for step, state in zip(steps, states[1:], strict=False):
        product = jacobian_product(step.field, state.to(dtype))
        a, b, c = weights(step.coefficients)
        following = [
            a * before + b * now + c * product(now.to(dtype)).double()
            for before, now in zip(previous, current, strict=True)
        ]
        previous, current = current, following
        sizes.append(_sizes(previous, current))
    return _relative(sizes)


def growth_backwards(
    steps: Sequence[NamedStep],
    states: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    probes: int = 2,
    seed: int = 0,
) -> list[float]:
    """Return the size of a perturbation of the last two states after every step of the inverse, relative to its start.

    Both states are perturbed in random directions of the same size. Arguments as for `growth_forwards`.

    Returns:
        n + 1 numbers in the order of the inverse: the first is 1, the last belongs to the pair p[-1], p[0].

    Raises:
        ValueError: if a step has no inverse.

    """
    if not all(step.coefficients.previous for step in steps):
        raise ValueError("The ordinary residual network has no inverse through which a perturbation could grow.")
    pairs = [(_random(states[0], one), _random(states[0], one)) for one in _generators(probes, seed)]
    sizes = [_sizes(*zip(*pairs, strict=True))]
    for step, state in reversed(list(zip(steps, states[1:], strict=False))):
        product = jacobian_product(step.field, state.to(dtype))
        a, b, c = weights(step.coefficients)
        pairs = [((following - b * now - c * product(now.to(dtype)).double()) / a, now) for now, following in pairs]
        sizes.append(_sizes(*zip(*pairs, strict=True)))
    return _relative(sizes)


def _generators(probes: int, seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + number) for number in range(probes)]


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like.device)


def _sizes(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the squared size of the pair of every probe, float64[probes]."""
    return torch.stack([(a.square().sum() + b.square().sum()).cpu() for a, b in zip(first, second, strict=True)])


def _relative(sizes: Sequence[Tensor]) -> list[float]:
    squares = torch.stack(list(sizes))
    return (squares / squares[0]).mean(1).sqrt().tolist()
