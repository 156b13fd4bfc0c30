"""Activation checkpointing: the input of every step is stored."""

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from revformers.activations.base import ActivationPolicy
from revformers.dynamics.base import Coefficients
from revformers.field import Field


class Checkpoint(ActivationPolicy):
    """Keep p[l] of every step and evaluate f_l again: PyTorch's non-reentrant checkpointing.

    PyTorch compares the shapes of what is evaluated again, and no values: a weight that changes between the forward and
    the backward pass gives another gradient without an error. `Budget(..., recompute="checkpoint")` raises.
    """

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]), of which only p[l] is kept."""
        return checkpoint(field, hidden, use_reentrant=False)
