"""What differs between the losses and gradients of two passes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from revformers.models.processes import gathered

Gradients = dict[str, Tensor]
"""Gradients by the names of their parameters; of those that are spread over processes, the part of this one."""


@dataclass(frozen=True)
class Pass:
    """The loss of one forward and backward pass, and its gradients."""

    loss: float
    gradients: Gradients


@dataclass(frozen=True)
class Difference:
    """What differs between two passes, in any of the processes that share the model.

    Attributes:
        same_loss: whether the losses are equal.
        errors: the largest difference of every gradient that differs, by its parameter's name, largest first.
        scale: the largest magnitude of the second pass's gradients.

    """

    same_loss: bool
    errors: Mapping[str, float]
    scale: float

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.same_loss and not self.errors

    @property
    def in_gradients_alone(self) -> bool:
        """Whether gradients differ and losses do not."""
        return self.same_loss and bool(self.errors)

    @property
    def relative_error(self) -> float:
        """The largest difference, relative to the largest magnitude; infinite if that is 0."""
        largest = _maximum(self.errors.values())
        return 0.0 if not largest else largest / self.scale if self.scale else math.inf


def difference_of(one: Pass, other: Pass, model: nn.Module) -> Difference:
    """Return what differs between two passes; all processes that share the model get the same."""
    scale = _maximum(map(_largest, other.gradients.values()))
    everywhere = gathered(Difference(one.loss == other.loss, _errors(one.gradients, other.gradients), scale), model)
    names = dict.fromkeys(name for found in everywhere for name in found.errors)
    errors = {name: _maximum(found.errors.get(name, 0.0) for found in everywhere) for name in names}
    return Difference(
        same_loss=all(found.same_loss for found in everywhere),
        errors=dict(sorted(errors.items(), key=lambda item: -item[1])),
        scale=_maximum(found.scale for found in everywhere),
    )


def _errors(values: Gradients, stored: Gradients) -> dict[str, float]:
    """Return the largest difference of every gradient that differs, by its parameter's name.

    A gradient that only one of the two has differs, and counts as zero in the other.
    """
    zero = torch.zeros(())
    return {
        name: _largest(values.get(name, zero).double() - stored.get(name, zero).double())
        for name in stored | values
        if name not in values or name not in stored or not _same(values[name], stored[name])
    }


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two gradients are equal; torch.equal calls a NaN different from itself."""
    if torch.equal(one, other):
        return True
    unknown = one.isnan()
    return torch.equal(unknown, other.isnan()) and torch.equal(one[~unknown], other[~unknown])


def _largest(values: Tensor) -> float:
    """Return the largest magnitude; NaN if any value is NaN, and 0 for no values, as of a part of a small parameter."""
    return torch.linalg.vector_norm(values, float("inf")).item() if values.numel() else 0.0


def _maximum(values: Iterable[float]) -> float:
    """Return the largest value, or 0 if there is none; NaN if any is NaN."""
    return torch.tensor([0.0, *values], dtype=torch.float64).max().item()
