"""Spending a budget: one forward pass that stores what there is room for and recomputes the rest.

How it works:

1. The fields of the first two layers are observed: what autograd saves of them, and what every kernel computes. That
   tells what a layer takes when it is stored, what its attention outputs take, and which operations each spares. A kept
   input spares none, but where the inputs of all layers take less than the pair of states, they leave room for more.
2. From that the budget is allocated for the whole stack, further layers taken to be like the last one observed.
3. As the pass runs on, what is really kept is counted. A layer that takes more than was expected is not stored, if
   there is no room for it: its input is kept, and it is computed again from that.

The stored layers are the last ones, and below them are those whose inputs are kept. So the pair of fixed-point states
from before these is all that the tape needs to rebuild the others, and no other layer is ever undone.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from revformers.activations.base import ActivationPolicy
from revformers.activations.budget.allocation import Allocation, StepCost, allocate
from revformers.activations.budget.attention_outputs import AttentionKeeper
from revformers.activations.budget.budget import Budget, BudgetReport
from revformers.byte_size import size_in_words
from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field
from revformers.engine.packing import packed_size
from revformers.engine.saved_bytes import SavedBytes
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape
from revformers.engine.ticket import kept

OBSERVED_LAYERS = 2
"""The first layer may be unlike the others: its input may need no gradient, or it alone may have no experts."""


def smallest_budget(elements: int, item_size: int, steps: Sequence[Coefficients], budget: Budget) -> int:
    """Return the bytes that a pass keeps which stores nothing: what a `Budget` must have at least.

    Args:
        elements: of a state, batch x tokens x width.
        item_size: bytes of an element in the compute dtype.
        steps: a, b and c of every step.
        budget: says how layers are recomputed; its size does not matter.

    """
    inputs = len(steps) * elements * item_size
    if not budget.rebuilds:
        return inputs
    return min(inputs, _pair_bytes(elements) + sum(packed_size(elements, step.side_information_bits) for step in steps))


def _pair_bytes(elements: int) -> int:
    return 2 * torch.int64.itemsize * elements


@dataclass(frozen=True)
class _Evaluated:
    """A step whose field was evaluated: its number, p[l], what it takes, and who keeps its attention outputs."""

    step: int
    requires_grad: bool
    hidden: Tensor
    cost: StepCost
    keeper: AttentionKeeper | None


class Budgeted(ActivationPolicy):
    """One forward pass within a budget; see the module's text.

    Args:
        states: the pair of fixed-point states.
        budget: what may be kept.
        steps: a, b and c of every step that the pass will take.
        steps_per_layer: 1, or 2 where a layer steps by branch.

    """

    def __init__(self, states: StatePair, budget: Budget, steps: Sequence[Coefficients], steps_per_layer: int) -> None:
        super().__init__(states)
        self._description = budget
        self._budget = budget.bytes_on(states.current.device)
        self._steps = steps
        self._steps_per_layer = steps_per_layer
        self._rebuilds = budget.rebuilds
        self._tape = Tape(states)
        if not self._rebuilds:
            self._tape.let_go_of_states()
        self._step = 0
        self._evaluated: list[_Evaluated] = []
        self._may_store_all = True
        self._allocation: Allocation | None = None
        self._reserved: list[int] = []
        self._saved = SavedBytes()
        self._kept = 0
        self._stored_steps = self._attention_steps = self._input_steps = 0
        self._attention_found = False

    @property
    def report(self) -> BudgetReport:
        """What was chosen so far."""
        return BudgetReport(
            budget=self._budget,
            kept=self._kept,
            layers=len(self._steps) // self._steps_per_layer,
            stored=self._stored_steps / self._steps_per_layer,
            inputs_kept=self._input_steps / self._steps_per_layer,
            attention_kept=self._attention_steps,
            attention_found=self._attention_found,
        )

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]), of which autograd keeps what the budget has room for.

        Raises:
            ValueError: where the budget is below what a pass keeps that stores nothing.

        """
        if self._step == 0:
            self._require_enough(hidden)
        allocation = self._allocation
        stored = allocation is not None and allocation.stores(self._step)
        if allocation is not None and allocation.first_with_input == self._step:
            self._tape.keep_copy_of_states()
        keeper = None
        if allocation is None or allocation.keeps_attention(self._step):
            keeper = AttentionKeeper(field, name)
        self._saved.count = 0
        update = self._tape.evaluate(
            name,
            coefficients,
            keeper or field,
            hidden,
            hold=stored or (allocation is None and self._may_store_all),
            undone=allocation is None or allocation.rebuilds(self._step),
            # The counter alone: what held the tape would be held by it.
            on_save=self._saved.add if allocation is None or stored else None,
        )
        cost = self._cost(hidden, keeper) if update.requires_grad else StepCost()
        evaluated = _Evaluated(self._step, update.requires_grad, hidden.detach(), cost, keeper)
        if self._allocation is None:
            self._observe(evaluated)
        else:
            self._settle(evaluated)
        return update

    def advance(self, coefficients: Coefficients, update: Tensor) -> None:
        """Advance the states; the tape notes the steps that it will undo."""
        if self._rebuilds and (self._allocation is None or self._allocation.rebuilds(self._step)):
            self._tape.advance(coefficients, update)
        else:
            super().advance(coefficients, update)
        self._step += 1

    def _require_enough(self, hidden: Tensor) -> None:
        smallest = smallest_budget(hidden.numel(), hidden.element_size(), self._steps, self._description)
        if self._budget < smallest:
            how = "rebuilding or checkpointing" if self._rebuilds else "checkpointing"
            raise ValueError(
                f"A budget of {size_in_words(self._budget)} is too small for a batch of {list(hidden.shape[:2])} "
                f"tokens: {how} alone keeps {smallest:,} bytes ({size_in_words(smallest)}); raise the budget, or take "
                f"a smaller batch."
            )

    def _cost(self, hidden: Tensor, keeper: AttentionKeeper | None) -> StepCost:
        return StepCost(
            stored=self._saved.count,
            input=hidden.nbytes,
            side_information=self._side_information_bytes(self._step, hidden),
            outputs=keeper.kept_bytes if keeper else 0,
            operations=keeper.operations if keeper else 0,
            attention_operations=keeper.attention_operations if keeper else 0,
        )

    def _side_information_bytes(self, step: int, hidden: Tensor) -> int:
        return packed_size(hidden.numel(), self._steps[step].side_information_bits) if self._rebuilds else 0

    def _observe(self, evaluated: _Evaluated) -> None:
        """Put the steps of the first layers aside until enough is known to allocate the budget."""
        self._evaluated.append(evaluated)
        steps = len(self._evaluated)
        if (
            self._may_store_all
            and sum(other.cost.stored for other in self._evaluated) * len(self._steps) > self._budget * steps
        ):
            # Stored steps are the last ones: if not all fit, the first are none of them, and need not be held.
            self._may_store_all = False
            for other in self._evaluated:
                self._tape.drop(other.step)
        with_gradient = sum(other.requires_grad for other in self._evaluated)
        if with_gradient < OBSERVED_LAYERS * self._steps_per_layer and self._step + 1 < len(self._steps):
            return
        self._allocate(evaluated.hidden)
        for other in self._evaluated:
            self._settle(other)
        self._evaluated.clear()

    def _allocate(self, hidden: Tensor) -> None:
        costs = [other.cost for other in self._evaluated]
        observed, steps = len(costs), len(self._steps)
        for step in range(observed, steps):
            like = costs[step - self._steps_per_layer]
            stored, side_information = max(like.stored, hidden.nbytes), self._side_information_bytes(step, hidden)
            costs.append(dataclasses.replace(like, stored=stored, side_information=side_information))
        pair = _pair_bytes(hidden.numel())
        # The states are behind the first steps already, so these are all rebuilt or none of them is. Their activations
        # are all held, or none of them are.
        firsts = range(steps, observed - 1, -1)
        first_stored = (*firsts, 0) if self._may_store_all else tuple(firsts)
        first_with_input = (*firsts, 0) if self._rebuilds else (0,)
        self._allocation = allocation = allocate(tuple(costs), pair, self._budget, first_stored, first_with_input)
        if allocation.first_with_input:
            self._kept = pair
        else:
            self._tape.let_go_of_states()
        least = [_least_bytes(cost, step, allocation) for step, cost in enumerate(costs)]
        self._reserved = list(accumulate(reversed(least), initial=0))[::-1]
        self._attention_found = any(cost.outputs for cost in costs)

    def _settle(self, evaluated: _Evaluated) -> None:
        """Store or rebuild a step that was evaluated, or keep its input, and decide on its attention outputs."""
        assert self._allocation is not None
        step, cost = evaluated.step, evaluated.cost
        # The steps above are kept at least as inputs, should they turn out to take more than was expected.
        least_above = (len(self._steps) - step - 1) * evaluated.hidden.nbytes
        fits = self._kept + cost.stored + least_above <= self._budget
        if not evaluated.requires_grad or (self._allocation.stores(step) and fits):
            self._tape.store(step)
            self._kept += cost.stored
            self._stored_steps += 1
        elif self._allocation.rebuilds(step):
            self._tape.drop(step)
            self._kept += cost.side_information
        else:
            self._tape.drop(step, kept(evaluated.hidden))
            self._kept += evaluated.hidden.nbytes
            self._input_steps += 1
        if evaluated.keeper is None:
            return
        wanted = self._allocation.keeps_attention(step)
        if wanted and cost.outputs and self._kept + cost.outputs + self._reserved[step + 1] <= self._budget:
            self._kept += cost.outputs
            self._attention_steps += 1
        else:
            evaluated.keeper.forget()


def _least_bytes(cost: StepCost, step: int, allocation: Allocation) -> int:
    """Return what a step keeps without its attention outputs."""
    if allocation.rebuilds(step):
        return cost.side_information
    return cost.stored if allocation.stores(step) else cost.input
