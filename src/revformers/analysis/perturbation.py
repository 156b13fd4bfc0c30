"""The growth of an infinitesimal perturbation through a recurrence, forwards and through the inverse.

A perturbation d of the states follows the linearised recurrence

    d[l+1] = a d[l-1] + b d[l] + c J_l d[l],        d[l-1] = (d[l+1] - b d[l] - c J_l d[l]) / a,

with the Jacobians J_l at the states of the network. Derivatives are exact up to the rounding of the model's dtype, and
sums are in float64, so that no floor is set, as it would be for a difference of two runs. After every step d is scaled
back to its size at the start, because what grows a factor of 1e38 would leave the range of float32. Random directions
show typical growth. The direction of the worst growth is not searched.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from revformers.analysis.jacobian import Product, jacobian_product
from revformers.analysis.walk import NamedStep, require_inverses, state_before, step_back, step_forwards
from revformers.dynamics.base import Coefficients, Start

Pair = tuple[Tensor, Tensor]
"""Perturbations of two neighbouring states, float64 of the states' shape; the earlier state is first."""


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
    currents = [_random(states[0], generator) for generator in _generators(probes, seed)]
    moves = (
        partial(_advance, step.coefficients, jacobian_product(step.field, state.to(dtype)), dtype)
        for step, state in zip(steps, states[1:], strict=False)
    )
    return _growth([(state_before(current, start), current) for current in currents], moves)


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
    require_inverses(steps)
    pairs = [(_random(states[0], one), _random(states[0], one)) for one in _generators(probes, seed)]
    moves = (
        partial(_retreat, step.coefficients, jacobian_product(step.field, state.to(dtype)), dtype)
        for step, state in reversed(list(zip(steps, states[1:], strict=False)))
    )
    return _growth(pairs, moves)


def _advance(coefficients: Coefficients, product: Product, dtype: torch.dtype, pair: Pair) -> Pair:
    """Return (d[l], d[l+1]) from (d[l-1], d[l])."""
    return pair[1], step_forwards(*pair, product(pair[1].to(dtype)), coefficients)


def _retreat(coefficients: Coefficients, product: Product, dtype: torch.dtype, pair: Pair) -> Pair:
    """Return (d[l-1], d[l]) from (d[l], d[l+1])."""
    return step_back(*pair, product(pair[0].to(dtype)), coefficients), pair[0]


def _growth(pairs: Sequence[Pair], moves: Iterable[Callable[[Pair], Pair]]) -> list[float]:
    """Return the size of the pairs at the start and after every move, relative to the start."""
    pairs = [_scaled(pair)[0] for pair in pairs]
    logarithms = torch.zeros(len(pairs), dtype=torch.float64)
    sizes = [logarithms]
    for move in moves:
        pairs, factors = zip(*(_scaled(move(pair)) for pair in pairs), strict=True)
        logarithms = logarithms + torch.tensor(factors, dtype=torch.float64).log()
        sizes.append(logarithms)
    logarithm_of_mean_square = torch.stack(sizes).mul(2).logsumexp(1) - math.log(len(pairs))
    return logarithm_of_mean_square.div(2).exp().tolist()


def _scaled(pair: Pair) -> tuple[Pair, float]:
    """Return the pair with root mean square 1, and its former root mean square; zeros are returned unchanged."""
    size = ((pair[0].square().mean() + pair[1].square().mean()) / 2).sqrt()
    factor = size if size else torch.ones_like(size)
    return (pair[0] / factor, pair[1] / factor), size.item()


def _generators(probes: int, seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + number) for number in range(probes)]


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like.device)
