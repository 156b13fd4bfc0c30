"""The growth of an infinitesimal perturbation through a recurrence, forwards and through the inverse.

A perturbation d of the states follows the linearised recurrence

    d[l+1] = a d[l-1] + b d[l] + c J_l d[l],        d[l-1] = (d[l+1] - b d[l] - c J_l d[l]) / a,

with the Jacobians J_l at the states of the network. It is computed in float64 from exact derivatives, so that rounding
does not set a floor, as it would for a difference of two runs. Random directions show typical growth. The direction of
the worst growth is not searched.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from revformers.analysis.jacobian import Product
from revformers.analysis.walk import NamedStep, weights
from revformers.dynamics.base import Start


def growth_forwards(
    steps: Sequence[NamedStep],
    products: Sequence[Product],
    like: Tensor,
    start: Start,
    *,
    probes: int = 2,
    seed: int = 0,
) -> list[float]:
    """Return the size of a perturbation of the embedding after every step, relative to its size at the start.

    The size of a pair is the root of the sum of both squared norms; of the probes the root of the mean of squares.

    Args:
        steps: n steps.
        products: v -> J v of every step at the state that it reads.
        like: a state, for shape and compute dtype.
        start: of the dynamics: "repeat" perturbs p[-1] as well.
        probes: number of random directions.
        seed: of the directions.

    Returns:
        n + 1 numbers, of which the first is 1.

    """

    def one(generator: torch.Generator) -> list[Tensor]:
        current = _random(like, generator)
        previous = current.clone() if start == "repeat" else torch.zeros_like(current)
        sizes = [_size(previous, current)]
        for step, product in zip(steps, products, strict=True):
            a, b, c = weights(step.coefficients)
            following = a * previous + b * current + c * product(current.to(like.dtype)).double()
            previous, current = current, following
            sizes.append(_size(previous, current))
        return sizes

    return _relative(one, probes, seed)


def growth_backwards(
    steps: Sequence[NamedStep], products: Sequence[Product], like: Tensor, *, probes: int = 2, seed: int = 0
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

    def one(generator: torch.Generator) -> list[Tensor]:
        current, following = _random(like, generator), _random(like, generator)
        sizes = [_size(current, following)]
        for step, product in zip(reversed(steps), reversed(products), strict=True):
            a, b, c = weights(step.coefficients)
            previous = (following - b * current - c * product(current.to(like.dtype)).double()) / a
            current, following = previous, current
            sizes.append(_size(current, following))
        return sizes

    return _relative(one, probes, seed)


def _relative(one: object, probes: int, seed: int) -> list[float]:
    assert callable(one)
    squares = torch.stack([torch.stack(one(torch.Generator().manual_seed(seed + n))) ** 2 for n in range(probes)])
    return (squares / squares[:, :1]).mean(0).sqrt().tolist()


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like.device)


def _size(first: Tensor, second: Tensor) -> Tensor:
    return (first.square().sum() + second.square().sum()).sqrt().cpu()
