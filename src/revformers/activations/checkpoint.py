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

    PyTorch's own checkpointing compares the shapes of the recomputed tensors, but not their values: if a weight changes
    between the forward and the backward pass, the gradient is wrong and no error is raised. This policy uses the tape,
    which compares every evaluation with that of the forward pass.
    """

    name = "checkpoint"
    keeps = "the input of every step"

    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return a function that begins a forward pass that keeps the inputs."""
        return lambda states, _: CheckpointedPass(states)


class CheckpointedPass(ForwardPass):
    """One forward pass that keeps the input of every step."""

    def __init__(self, states: StatePair) -> None:
        super().__init__(states)
        self._tape = Tape.without_states(states.current.device)

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]), and keep only p[l]."""
        return self._tape.evaluate(name, coefficients, field, hidden, keep=self._keep)

    def _keep(self, hidden: Tensor) -> InputSource:
        return kept(hidden)


def checkpointed(name: str, field: Field, hidden: Tensor) -> Tensor:
    """Return `field(hidden)`, and keep only `hidden`, in the way the surrounding policy keeps saved tensors.

    Args:
        name: its name in messages.
        field: part of a layer.
        hidden: its input, any shape.

    """
    # Saved like any tensor of the layer, so that it is rebuilt with the layer, or stored with it.
    # The tensor is held and not its node, because PyTorch 2.11 empties a node when its tensor is gone.
    anchor = _Save.apply(torch.empty(0, requires_grad=True), hidden)
    return Tape.without_states(hidden.device, covers_pass=False).evaluate(
        name, None, field, hidden, keep=lambda _: lambda: anchor.grad_fn.saved_tensors[0]
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
