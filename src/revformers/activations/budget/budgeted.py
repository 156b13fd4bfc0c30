"""A forward pass within a budget, which stores the steps that fit and recomputes the others.

How it works:

1. The first forward pass of a batch shape is observed. Its backward pass recomputes every step. For every step the pass
   counts the memory that storing it, or its attention outputs, would take, and the operations that this would save.
2. From that the budget is allocated for the whole stack. Each step of a later pass is stored, or computed from its kept
   input, or rebuilt. A batch that is no larger in any dimension than an observed one uses the costs of that one.
3. If modules have changed since they were observed, for example because weights were unfrozen, the steps that were to
   be stored keep their inputs, and the next pass is observed.

The stored steps are the last ones. So the pair of fixed-point states from before these is all that the tape needs to
rebuild the others, and no stored step is ever undone.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from revformers.activations.budget.allocation import Allocation, StepCost, allocate
from revformers.activations.budget.attention_outputs import AttentionKeeper
from revformers.activations.budget.observation import Observations, ObservedStep, PassKind, switches
from revformers.activations.budget.report import BudgetReport
from revformers.activations.budget.saved_bytes import CountingTape, SavedBytes
from revformers.byte_size import size_in_words
from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field
from revformers.engine.forward_pass import ForwardPass
from revformers.engine.packing import packed_size
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape
from revformers.engine.ticket import kept
from revformers.errors import UserError


def smallest_budget(
    elements: int, item_size: int, state_size: int, steps: Sequence[Coefficients], *, may_rebuild: bool
) -> int:
    """Return the bytes that a pass keeps if it stores no step, the minimum of a `Budget`.

    Args:
        elements: elements of a state, batch x tokens x width.
        item_size: bytes per element in the compute dtype.
        state_size: bytes per element of a state.
        steps: a, b and c of every step.
        may_rebuild: whether steps may be rebuilt.

    """
    inputs = len(steps) * elements * item_size
    return min(inputs, _rebuilding_bytes(elements, state_size, steps)) if may_rebuild else inputs


def _rebuilding_bytes(elements: int, state_size: int, steps: Sequence[Coefficients]) -> int:
    return _pair_bytes(elements, state_size) + sum(packed_size(elements, step.side_information_bits) for step in steps)


def _pair_bytes(elements: int, state_size: int) -> int:
    return 2 * state_size * elements


class BudgetedPass(ForwardPass):
    """One forward pass within a budget; see the module docstring.

    Args:
        states: the pair of fixed-point states.
        room: bytes that may be kept.
        may_rebuild: whether steps may be rebuilt.
        steps: a, b and c of every step that the pass will take.
        steps_per_layer: 1, or 2 if layers step by branch.
        observations: the observed passes of the stack.

    """

    def __init__(
        self,
        states: StatePair,
        *,
        room: int,
        may_rebuild: bool,
        steps: Sequence[Coefficients],
        steps_per_layer: int,
        observations: Observations,
    ) -> None:
        super().__init__(states)
        self._state_size = states.current.element_size()
        self._room = room
        self._may_rebuild = may_rebuild
        self._steps = steps
        self._steps_per_layer = steps_per_layer
        self._observations = observations
        self._observed: tuple[ObservedStep, ...] | None = None
        self._observing: list[ObservedStep] = []
        self._kind: PassKind
        self._saved = SavedBytes()
        self._allocation = Allocation(may_rebuild, len(steps), len(steps))
        self._rebuilt: Tape | None = None
        self._computed_from_inputs: Tape
        self._step = 0
        self._kept = 0
        self._stored_steps = self._attention_steps = self._input_steps = 0

    @property
    def report(self) -> BudgetReport:
        """The choices made so far."""
        observed = self._observed if self._observed is not None else self._observing
        return BudgetReport(
            budget=self._room,
            kept=self._kept,
            layers=len(self._steps) // self._steps_per_layer,
            stored=self._stored_steps / self._steps_per_layer,
            inputs_kept=self._input_steps / self._steps_per_layer,
            attention_kept=self._attention_steps,
            attention_found=any(step.cost.outputs for step in observed),
            observed=self._observed is None,
        )

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]); autograd keeps as much of it as fits the budget.

        Raises:
            UserError: if the budget is too small for a pass that stores no step.

        """
        if self._step == 0:
            self._begin(field, hidden)
        if self._observed is None:
            return self._observe(name, coefficients, field, hidden)
        observed = self._observed[self._step]
        unchanged = switches(field) == observed.switches
        if not unchanged:
            self._observations.forget()
        if self._allocation.stores(self._step) and unchanged:
            self._kept += observed.cost.stored
            self._stored_steps += 1
            return field(hidden)
        if not (self._allocation.keeps_attention(self._step) and observed.cost.outputs and unchanged):
            return self._compute_again(name, coefficients, field, hidden)
        keeper = AttentionKeeper(field, name)
        update = self._compute_again(name, coefficients, keeper, hidden)
        self._kept += keeper.kept_bytes
        self._attention_steps += bool(keeper.kept_bytes)
        return update

    def advance(self, coefficients: Coefficients, update: Tensor) -> None:
        """Advance the states; the tape does so for the steps that it will undo."""
        if self._rebuilt is not None and self._is_rebuilt():
            self._rebuilt.advance(coefficients, update)
        else:
            if self._rebuilt is not None and self._step == self._allocation.first_stored:
                self._rebuilt.keep_states()
            super().advance(coefficients, update)
        self._step += 1

    def _begin(self, field: Field, hidden: Tensor) -> None:
        """Choose the allocation of the pass.

        Raises:
            UserError: if the budget is too small.

        """
        elements, inputs = hidden.numel(), len(self._steps) * hidden.nbytes
        self._require_enough(hidden)
        self._kind = PassKind.of(hidden, switches(field))
        self._observed = self._observations.find(self._kind)
        if self._observed is None:
            rebuilds = self._may_rebuild and _rebuilding_bytes(elements, self._state_size, self._steps) < inputs
            self._allocation = Allocation(rebuilds, len(self._steps), len(self._steps))
        else:
            costs = self._costs_of_batch(self._observed, hidden)
            pair = _pair_bytes(elements, self._state_size)
            self._allocation = allocate(costs, pair, self._room, may_rebuild=self._may_rebuild)
        self._computed_from_inputs = self._tape(StatePair.empty(hidden.device))
        if self._allocation.rebuilds:
            self._rebuilt = self._tape(self.states)
            self._kept = _pair_bytes(elements, self._state_size)

    def _tape(self, states: StatePair) -> Tape:
        return Tape(states, covers_pass=False) if self._observed is not None else CountingTape(states, self._saved)

    def _costs_of_batch(self, observed: Sequence[ObservedStep], hidden: Tensor) -> list[StepCost]:
        """Return the costs of the steps for this batch, which may be smaller than the observed one, and its blends."""
        return [
            replace(
                step.cost,
                input=min(step.cost.input, hidden.nbytes),
                side_information=self._side_information_bytes(hidden, number) if step.cost.input else 0,
            )
            for number, step in enumerate(observed)
        ]

    def _require_enough(self, hidden: Tensor) -> None:
        sizes = hidden.numel(), hidden.element_size(), self._state_size
        smallest = smallest_budget(*sizes, self._steps, may_rebuild=self._may_rebuild)
        if self._room < smallest:
            how = "rebuilding or checkpointing" if self._may_rebuild else "checkpointing"
            raise UserError(
                f"A budget of {self._room:,} bytes is too small for a batch of {list(hidden.shape[:2])} "
                f"tokens: {how} alone keeps {smallest:,} bytes ({size_in_words(smallest)}); raise the budget, or take "
                f"a smaller batch."
            )

    def _is_rebuilt(self) -> bool:
        return self._allocation.rebuilds and self._step < self._allocation.first_stored

    def _observe(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Evaluate a step that is computed again, and count the memory that storing it would need."""
        keeper = AttentionKeeper(field, name)
        self._saved.count = 0
        update = self._compute_again(name, coefficients, keeper, hidden)
        keeper.forget()
        cost = StepCost()
        if update.requires_grad:
            cost = StepCost(
                stored=self._saved.count,
                input=hidden.nbytes,
                outputs=keeper.kept_bytes,
                operations=keeper.operations,
                attention_operations=keeper.attention_operations,
            )
        self._observing.append(ObservedStep(cost, switches(field)))
        if len(self._observing) == len(self._steps):
            self._observations.add(self._kind, tuple(self._observing))
        return update

    def _compute_again(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Evaluate a step that the backward pass rebuilds, or computes from its kept input."""
        if self._rebuilt is not None and self._is_rebuilt():
            update = self._rebuilt.evaluate(name, coefficients, field, hidden)
            if update.requires_grad:
                self._kept += self._side_information_bytes(hidden, self._step)
            return update
        update = self._computed_from_inputs.evaluate(name, coefficients, field, hidden, keep=kept)
        if update.requires_grad:
            self._kept += hidden.nbytes
            self._input_steps += 1
        return update

    def _side_information_bytes(self, hidden: Tensor, step: int) -> int:
        return packed_size(hidden.numel(), self._steps[step].side_information_bits) if self._may_rebuild else 0
