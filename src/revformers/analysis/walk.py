"""The steps of a recurrence on a model's own layers, and a walk through them that keeps every state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from revformers.dynamics.base import Coefficients, Dynamics, Start
from revformers.engine.field import Field
from revformers.models.fields import LayerCall, named_fields, unread


@dataclass(frozen=True)
class NamedStep:
    """One step p[l+1] = a p[l-1] + b p[l] + c f_l(p[l]).

    Attributes:
        name: its name, such as "layer 3" or "layer 3 (mlp)".
        layer: the number of its layer.
        coefficients: a, b and c.
        field: f_l, which reads and returns the compute dtype of the model.

    """

    name: str
    layer: int
    coefficients: Coefficients
    field: Field


def steps_of(calls: Sequence[LayerCall], dynamics: Dynamics) -> list[NamedStep]:
    """Return the steps that layers take under `dynamics`, update predictors included.

    Raises:
        NotReversibleError: if the dynamics step by branch and the branches are not known.

    """
    found = []
    for call, before in zip(calls, [None, *calls], strict=False):
        coefficients = dynamics.coefficients(call.index)
        for name, field in named_fields(call, before, dynamics, unread()):
            found.append(NamedStep(name, call.index, coefficients, field))
    return found


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Compute attention by matrix products in the block: fused kernels have no forward derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@torch.no_grad()
def walk(
    steps: Sequence[NamedStep], embedding: Tensor, start: Start, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return p[-1], p[0], ..., p[n] of n steps in `dtype`; the fields read them in the dtype of `embedding`."""
    current = embedding.to(dtype)
    states = [state_before(current, start), current]
    for step in steps:
        update = step.field(states[-1].to(embedding.dtype))
        states.append(step_forwards(states[-2], states[-1], update, step.coefficients))
    return states


def state_before(embedding: Tensor, start: Start) -> Tensor:
    """Return p[-1], a tensor of its own."""
    return embedding.clone() if start == "repeat" else torch.zeros_like(embedding)


def step_forwards(previous: Tensor, current: Tensor, update: Tensor, coefficients: Coefficients) -> Tensor:
    """Return a p[l-1] + b p[l] + c f(p[l]), every operation rounded to the dtype of the states."""
    a, b, c = _weights(coefficients)
    return a * previous + b * current + c * update.to(current.dtype)


def step_back(current: Tensor, following: Tensor, update: Tensor, coefficients: Coefficients) -> Tensor:
    """Return p[l-1] = (p[l+1] - b p[l] - c f(p[l])) / a, every operation rounded to the dtype of the states."""
    a, b, c = _weights(coefficients)
    return (following - b * current - c * update.to(current.dtype)) / a


def require_inverses(steps: Sequence[NamedStep]) -> None:
    """Raise ValueError if a step has no inverse."""
    if not all(step.coefficients.previous for step in steps):
        raise ValueError("The ordinary residual network has no inverse: its steps forget the previous state.")


def _weights(coefficients: Coefficients) -> tuple[float, float, float]:
    return float(coefficients.previous), float(coefficients.current), coefficients.update
