"""Ordinary autograd: every activation is stored."""

from torch import Tensor

from revformers.activations.base import ActivationPolicy
from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field


class Store(ActivationPolicy):
    """Keep everything: the most memory, the least time."""

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]) as ordinary autograd records it."""
        return field(hidden)
