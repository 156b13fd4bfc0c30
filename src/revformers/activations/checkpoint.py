"""Activation checkpointing: the input of every step is stored."""

from typing import Any

import torch
from torch import Tensor

from revformers.activations.base import ActivationPolicy
from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape
from revformers.engine.ticket import InputSource, kept


class Checkpoint(ActivationPolicy):
    """Keep p[l] of every step and evaluate f_l again, up to the last tensor that it saves.

    PyTorch's own checkpointing compares the shapes of what is evaluated again, and no values: a weight that changes
    between the forward and the backward pass gives another gradient without an error. This one is the tape's, which
    holds every evaluation to the forward pass.
    """

    def __init__(self, states: StatePair) -> None:
        super().__init__(states)
        self._tape = Tape.without_states(states.current.device)
        self._steps = 0

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]), of which only p[l] is kept."""
        update = self._tape.evaluate(name, coefficients, field, hidden, undone=False)
        if update.requires_grad:
            self._tape.drop(self._steps, self._keep(hidden.detach()))
        self._steps += 1
        return update

    def _keep(self, hidden: Tensor) -> InputSource:
        return kept(hidden)


def checkpointed(name: str, field: Field, hidden: Tensor) -> Tensor:
    """Return `field(hidden)`, of which only `hidden` is kept, as the policy in force around it keeps what is saved.

    Args:
        name: what messages call it.
        field: part of a layer.
        hidden: its input, any shape.

    """
    tape = Tape.without_states(hidden.device)
    # Saved like any tensor of the layer, so that it is rebuilt with the layer, or stored with it.
    saved = _Save.apply(torch.empty(0, requires_grad=True), hidden).grad_fn
    output = tape.evaluate(name, None, field, hidden, undone=False)
    tape.drop(0, lambda: saved.saved_tensors[0])
    return output


class _Save(torch.autograd.Function):
    """A node that has one saved tensor and no part in any gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise AssertionError("nothing depends on this node")
