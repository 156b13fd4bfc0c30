"""The steps of a recurrence on a model's own layers, and a walk through them in float64 that keeps every state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from revformers.dynamics.base import Coefficients, Dynamics, Start
from revformers.engine.field import Field
from revformers.models.fields import LayerCall, LayerReturn, named_fields


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
        for name, field in named_fields(call, before, dynamics, _unread()):
            found.append(NamedStep(name, call.index, coefficients, field))
    return found


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Compute attention by matrix products in the block: fused kernels have no forward derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@torch.no_grad()
def walk(steps: Sequence[NamedStep], embedding: Tensor, start: Start) -> list[Tensor]:
    """Return p[-1], p[0], ..., p[n] of n steps in float64; the fields read them in the dtype of `embedding`."""
    current = embedding.double()
    states = [current.clone() if start == "repeat" else torch.zeros_like(current), current]
    for step in steps:
        a, b, c = weights(step.coefficients)
        states.append(a * states[-2] + b * states[-1] + c * step.field(states[-1].to(embedding.dtype)).double())
    return states


def weights(coefficients: Coefficients) -> tuple[float, float, float]:
    """Return a, b and c as floats."""
    return float(coefficients.previous), float(coefficients.current), coefficients.update


def _unread() -> LayerReturn:
    """Return a record that keeps none of the further values of a layer."""
    returned = LayerReturn()
    returned.finish()
    return returned
