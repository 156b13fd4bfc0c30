"""The base class of forward passes: what an activation policy does while a stack runs."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field
from revformers.engine.states import StatePair


class ForwardPass:
    """Evaluates the fields of one forward pass, and decides what to keep for the backward pass.

    This class stores every activation, like ordinary autograd. Subclasses keep less. All compute the same numbers.

    Attributes:
        states: the pair of fixed-point states, which the pass advances.

    """

    def __init__(self, states: StatePair) -> None:
        self.states = states

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]) in the autograd graph, (batch, tokens, width).

        Args:
            name: the name of the step in messages, e.g. "layer 3".
            coefficients: a, b and c of the step that will follow.
            field: f_l.
            hidden: p[l], (batch, tokens, width) in the compute dtype, in the autograd graph.

        """
        return field(hidden)

    def advance(self, coefficients: Coefficients, update: Tensor) -> None:
        """Advance the states by the step whose field was evaluated last; `update` is the result of that evaluation."""
        self.states.advance(coefficients, update, keep_side_information=False)

    @property
    def report(self) -> Any:
        """A report of the policy's choices; None if the policy makes no choices."""
        return None


BeginPass = Callable[[StatePair, Sequence[Coefficients]], ForwardPass]
"""Begins a forward pass with its pair of fixed-point states, and a, b and c of every step that it will take."""
