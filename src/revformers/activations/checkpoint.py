"""Activation checkpointing: the input of every step is stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revformers.activations.base import ActivationPolicy
from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field
from revformers.engine.forward_pass import BeginPass, ForwardPass
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape
from revformers.engine.ticket import InputSource, kept


@dataclass(frozen=True)
class Checkpoint(ActivationPolicy):
    """Keep p[l] of every step and evaluate f_l again.

    PyTorch's own checkpointing compares the shapes of what is evaluated again, and no values: a weight that changes
    between the forward and the backward pass gives another gradient without an error. This policy uses the tape, which
    compares every evaluation with that of the forward pass.
    """

    name = "checkpoint"
    keeps = "the input of every step"

    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return what begins a forward pass that keeps the inputs."""
        return lambda states, _: CheckpointedPass(states)


class CheckpointedPass(ForwardPass):
    """One forward pass that keeps the input of every step."""

    def __init__(self, states: StatePair) -> None:
        super().__init__(states)
        self._tape = Tape.without_states(states.current.device)

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]), of which p[l] alone is kept."""
        return self._tape.evaluate(name, coefficients, field, hidden, keep=self._keep)

    def _keep(self, hidden: Tensor) -> InputSource:
        return kept(hidden)


def checkpointed(name: str, field: Field, hidden: Tensor) -> Tensor:
    """Return `field(hidden)`, of which only `hidden` is kept, as the policy in force around it keeps saved tensors.

    Args:
        name: what messages call it.
        field: part of a layer.
        hidden: its input, any shape.

    """
    # Saved like any tensor of the layer, so that it is rebuilt with the layer, or stored with it.
    saved = _Save.apply(torch.empty(0, requires_grad=True), hidden).grad_fn
    return Tape.without_states(hidden.device, covers_pass=False).evaluate(
        name, None, field, hidden, keep=lambda _: lambda: saved.saved_tensors[0]
    )


class _Save(torch.autograd.Function):
    """A node that has one saved tensor and no part in any gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise AssertionError("nothing depends on this node")
