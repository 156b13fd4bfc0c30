"""Reversible training: the backward pass runs the recurrence backwards and rebuilds every layer's input."""

from dataclasses import dataclass

from revformers.activations.base import ActivationPolicy
from revformers.engine.forward_pass import BeginPass
from revformers.engine.tape import Tape


@dataclass(frozen=True)
class Rebuild(ActivationPolicy):
    """Keep two states, for any depth, and the side information of contracting dynamics; see `engine.tape`."""

    name = "rebuild"
    keeps = "two states"
    needs_inverse = True

    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return the function that begins a forward pass recorded on a tape."""
        return lambda states, _: Tape(states)
