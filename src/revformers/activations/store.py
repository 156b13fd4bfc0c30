"""Ordinary autograd: every activation is stored."""

from dataclasses import dataclass

from revformers.activations.base import ActivationPolicy
from revformers.engine.forward_pass import BeginPass, ForwardPass


@dataclass(frozen=True)
class Store(ActivationPolicy):
    """Keep every activation: the most memory and the least time."""

    name = "store"
    keeps = "every activation"
    evaluates_again = False

    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return a function that begins a forward pass of ordinary autograd."""
        return lambda states, _: ForwardPass(states)
