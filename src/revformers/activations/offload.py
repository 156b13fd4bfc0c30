"""Activation checkpointing whose stored inputs lie in host memory."""

from torch import Tensor
from torch.autograd.graph import save_on_cpu

from revformers.activations.checkpoint import Checkpoint
from revformers.dynamics.base import Coefficients
from revformers.field import Field


class Offload(Checkpoint):
    """Keep p[l] of every step in host memory; on a CPU this is `Checkpoint`, as there is nowhere else to go."""

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]), of which only p[l] is kept, on the host."""
        # The checkpoint saves its input under the hooks outside it, and everything else under its own.
        with save_on_cpu(pin_memory=hidden.is_cuda):
            return super().evaluate(name, coefficients, field, hidden)
