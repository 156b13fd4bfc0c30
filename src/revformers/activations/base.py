"""What an activation policy does for one forward pass."""

from abc import ABC, abstractmethod

from torch import Tensor

from revformers.activations.budget.budget import BudgetReport
from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field
from revformers.engine.states import StatePair


class ActivationPolicy(ABC):
    """Evaluates the fields of one forward pass and decides what is kept of them for the backward pass.

    One object lives for one forward pass. All policies compute the same numbers: the network does not depend on them.

    Attributes:
        states: the pair of fixed-point states, which the policy advances.

    """

    def __init__(self, states: StatePair) -> None:
        self.states = states

    @abstractmethod
    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]) in the autograd graph.

        Args:
            name: what messages call the step, e.g. "layer 3".
            coefficients: a, b and c of the step that will follow.
            field: f_l.
            hidden: p[l], (batch, tokens, width) in the compute dtype, in the autograd graph.

        """

    def advance(self, coefficients: Coefficients, update: Tensor) -> None:
        """Advance the states by the step whose field was evaluated last; `update` is what it returned."""
        self.states.advance(coefficients, update, keep_side_information=False)

    @property
    def report(self) -> BudgetReport | None:
        """What was chosen so far, of a policy that has a choice."""
        return None
