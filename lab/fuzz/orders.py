"""Orders of backward passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """One order of backward passes.

    Attributes:
        batches: number of forward passes in flight.
        run: receives their losses and the trained parameters, leaves gradients at the parameters, and returns the
            gradients that PyTorch returned.

    """

    batches: int
    run: Callable[[list[Tensor], Sequence[Tensor]], Sequence[Tensor | None]]


def _once(losses: list[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    losses[0].backward()
    return ()


def _twice(losses: list[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    losses[0].backward(retain_graph=True)
    losses[0].backward()
    return ()


def _a_part_then_all(losses: list[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    part = parameters[:: max(1, len(parameters) // 3)]
    gradients = torch.autograd.grad(losses[0], part, retain_graph=True, allow_unused=True)
    losses[0].backward()
    return gradients


def _both(losses: list[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    for loss in losses:
        loss.backward()
    return ()


def _last_first(losses: list[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return _both(losses[::-1], parameters)


def _with_a_graph(losses: list[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    losses[0].backward(create_graph=True)
    return ()


def _second_derivative(losses: list[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    first = torch.autograd.grad(losses[0], parameters, create_graph=True, allow_unused=True)
    torch.stack([gradient.square().sum() for gradient in first if gradient is not None]).sum().backward()
    return first


def _in_inference_mode(losses: list[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    with torch.inference_mode():
        losses[0].backward()
    return ()


ORDERS = {
    "once": Order(1, _once),
    "twice": Order(1, _twice),
    "a part, then all": Order(1, _a_part_then_all),
    "two batches": Order(2, _both),
    "two batches, last first": Order(2, _last_first),
    "with a graph": Order(1, _with_a_graph),
    "second derivative": Order(1, _second_derivative),
    "in inference mode": Order(1, _in_inference_mode),
}
"""The orders by name."""
