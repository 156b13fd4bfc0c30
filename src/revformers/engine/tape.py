"""The tape: runs a stack of reversible steps backwards while autograd asks for what the forward pass did not keep.

How it works:

1. In the forward pass every field runs under saved-tensor hooks. Autograd is handed a `SavedTensor` ticket for each
   tensor that it wants to keep, and the tensor is freed with the rest of the layer. The `Step` keeps only numbers.
2. The tape holds one pair of fixed-point states: those of the last step when the forward pass ends.
3. In the backward pass, the gradient that reaches step l, or the first ticket of it that autograd redeems, makes the
   tape evaluate f_l once more, at the state p[l] that it still holds. The tensors that this evaluation saves are handed
   to the waiting tickets, and its result undoes the step: the pair moves from (p[l], p[l+1]) to (p[l-1], p[l]). One
   evaluation serves both.
4. Every evaluation is verified. The bits that it saves and returns, and their places, are compared with the evidence of
   the forward pass (see `Evidence`). If they differ, `RebuildMismatchError` is raised and names the step. The inverse
   therefore gets the same input as the step did, and integer arithmetic inverts it exactly. The arithmetic itself is
   checked once, at the first step that has gradients: the pair is compared with its checksum from the forward pass.

The tape can move in both directions. A backward pass ends at the first step. A second pass through a retained graph,
second derivatives, or layer-by-layer calls of `torch.autograd.grad` wind the tape forward again.

A step whose input is kept is computed again from that input and is never undone.

Every evaluation runs to the end of the field. PyTorch's checkpointing stops at the last saved tensor; a change that a
layer reverts after that, such as a weight that it rounded for its forward pass, would never be reverted.

Lifetime: only tickets keep the tape alive, and autograd drops a step's tickets when it is done with the step. So the
states are freed with the last ticket, and no module keeps anything of a forward pass.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field
from revformers.engine.forward_pass import ForwardPass
from revformers.engine.proof.verdicts import Verdicts
from revformers.engine.states import StatePair
from revformers.engine.step import SavedAgain, Step
from revformers.engine.ticket import InputSource, SavedTensor
from revformers.errors import NotReversibleError


class Tape(ForwardPass):
    """The reversible trajectory of one forward pass; see the module docstring.

    Attributes:
        states: the pair (X[position-1], X[position]).
        position: how many steps the pair has been advanced.
        lock: held by the thread that rebuilds a step.
        covers_pass: whether all layers of the forward pass are on this tape, so that none has a gradient before one is
            evaluated again.

    """

    def __init__(self, states: StatePair, *, covers_pass: bool = True) -> None:
        super().__init__(states)
        self.position = 0
        self.covers_pass = covers_pass
        self.lock: AbstractContextManager[Any] = threading.RLock()
        self._steps: list[Step] = []
        self._first_with_gradient: int | None = None
        self._checksum: Tensor | None = None
        self._verdicts = Verdicts(at_once=states.current.device.type == "cpu")
        self._has_begun = False
        self._handed_out: Step | None = None

    @classmethod
    def without_states(cls, device: torch.device, *, covers_pass: bool = True) -> "Tape":
        """Return a tape for steps whose inputs are kept, on `device`."""
        return cls(StatePair.empty(device), covers_pass=covers_pass)

    def evaluate(
        self,
        name: str,
        coefficients: Coefficients | None,
        field: Field,
        hidden: Tensor,
        *,
        keep: Callable[[Tensor], InputSource] | None = None,
    ) -> Tensor:
        """Return f_l(p[l]), of which autograd keeps tickets instead of tensors.

        Args:
            name: the name of the step in messages.
            coefficients: a, b and c of the step that follows; None if no step follows.
            field: f_l.
            hidden: p[l], (batch, tokens, width).
            keep: stores p[l] and returns a function that returns it later; if None, the tape rebuilds p[l].

        Raises:
            NotReversibleError: if the field writes to its buffers, as the second evaluation would do again.
            TypeError: if `keep` does not return a function.
            ValueError: if there is no `keep` and the tape has no states.

        """
        if keep is None and self.states.current.shape != hidden.shape:
            raise ValueError(
                f"This tape has no states to rebuild the input of {name} from; give evaluate a function keep, or make "
                f"the tape with the states of the pass, Tape(states)."
            )
        number, step = len(self._steps), Step(name, coefficients, field, hidden)
        # The hooks hold the tape only while the field runs; afterwards only tickets do.
        update = step.evaluate(hidden, partial(self.new_ticket, number))
        if update.requires_grad and self._first_with_gradient is None:
            self._first_with_gradient = number
            self._checksum = self.states.checksum()
        if self._first_with_gradient is not None:
            step.keep_evidence(update if keep is None else None)
        step.finish()
        if update.requires_grad:
            if keep is not None:
                source = keep(hidden.detach())
                if not callable(source):
                    raise TypeError(
                        f"keep returns a {type(source).__name__} for {name}; it must return a function that returns "
                        f"the input of the step."
                    )
                for ticket in step.tickets():
                    ticket.source = source
            update.register_hook(partial(_rebuild_first, weakref.ref(self), number))
        self._steps.append(step)
        return update

    def new_ticket(self, step: int, evaluation: object, number: int, tensor: Tensor) -> SavedTensor:
        """Return what autograd saves instead of `tensor`, the one with this number that step number `step` saves."""
        return SavedTensor(self, step, evaluation, number, tensor)

    def keep_states(self) -> None:
        """Keep a copy of the states as they are, because the forward pass advances them by steps that are not here."""
        self.states = self.states.copy()

    def advance(self, coefficients: Coefficients, update: Tensor) -> None:
        """Advance the states by the step that was evaluated last; `update` is the result of that evaluation."""
        self._steps[self.position].side_information = self.states.advance(
            coefficients, update, keep_side_information=self._first_with_gradient is not None
        )
        self.position += 1

    def prepare(self, number: int) -> None:
        """Rebuild the tensors that step `number` saved, and undo the step, unless this has been done."""
        ticket = next(self._steps[number].tickets(), None)
        if ticket is not None:
            ticket.redeem()
            return
        with self.lock:
            if number < self.position:  # a step that saves nothing
                self.rebuild(number)

    def rebuild(self, number: int, source: InputSource | None = None) -> None:
        """Compute the tensors that step `number` saved again, and store them in its tickets.

        Args:
            number: the number of the step.
            source: returns p[l] if it was kept; None if it was not.

        Raises:
            NotReversibleError: if the step is still being evaluated.
            RebuildMismatchError: if the rebuilt tensors or states, or the weights, differ from the forward pass.

        """
        if number >= len(self._steps):
            raise NotReversibleError(
                "A layer takes gradients while it is evaluated (torch.autograd.grad in its forward), of what is not "
                "kept; train with revformers.set_activations(model, revformers.Store())."
            )
        try:
            # In inference mode autograd saves no tensors.
            with torch.inference_mode(False):
                self._refuse_changes_before_a_step_in_backward()
                self._take_back()
                if source is None:
                    self._rebuild(number)
                else:
                    self._compute_from(source, self._steps[number])
        except Exception:
            # If results are checked later, an earlier step may be the cause.
            self._verdicts.look()
            raise

    def _rebuild(self, number: int) -> None:
        while self.position > number + 1:
            self._retreat(self._evaluate_again(self.position - 1)[1])
        while self.position < number:
            self._wind_forward()
        saved, update = self._evaluate_again(number)
        self._hand_out(self._steps[number], saved)
        if self.position == number + 1:
            self._retreat(update)

    def _compute_from(self, source: InputSource, step: Step) -> None:
        hidden = source()
        if hidden is None:
            raise step.mismatch(
                f"The input of {step.name}, which is kept, was written to after the forward pass", says_why=True
            )
        self._hand_out(step, step.evaluate_again(hidden, self._verdicts)[0])

    def _refuse_changes_before_a_step_in_backward(self) -> None:
        """Check all steps before the first gradient, if weights are stepped in the backward pass."""
        if self._has_begun:
            return
        self._has_begun = True
        to_evaluate = [step for step in self._steps if any(ticket.tensor is None for ticket in step.tickets())]
        if any(step.situation.trains_in_backward() for step in to_evaluate):
            for step in to_evaluate:
                if step.situation.tensor_changes():
                    raise step.mismatch(
                        f"{step.name} is no longer what it was in the forward pass", before_all=self.covers_pass
                    )

    def _evaluate_again(self, number: int) -> tuple[list[SavedAgain], Tensor]:
        """Evaluate f at p[number], which the pair must hold; return what autograd would save, and the update."""
        step = self._steps[number]
        read = self.states.read_current if self.position == number else self.states.read_previous
        return step.evaluate_again(read(step.dtype), self._verdicts)

    def _hand_out(self, step: Step, saved: list[SavedAgain]) -> None:
        step.hand_out(saved)
        self._handed_out = step

    def _take_back(self) -> None:
        """Release the tensors of tickets that a retained graph still holds; they are rebuilt when they are needed."""
        if self._handed_out is not None:
            for ticket in self._handed_out.tickets():
                ticket.let_go()
            self._handed_out = None

    def _retreat(self, update: Tensor) -> None:
        step = self._steps[self.position - 1]
        assert step.coefficients is not None
        possible = self.states.retreat(step.coefficients, update, step.side_information)
        if possible is not None:
            self._verdicts.add(possible, step.other_values(self._verdicts))
        step.side_information = None
        self.position -= 1
        if self.position == self._first_with_gradient and self._checksum is not None:
            equal = (self.states.checksum() == self._checksum).all()
            self._verdicts.add(equal, step.other_values(self._verdicts))

    def _wind_forward(self) -> None:
        update = self._evaluate_again(self.position)[1]
        step = self._steps[self.position]
        assert step.coefficients is not None
        step.side_information = self.states.advance(step.coefficients, update, keep_side_information=True)
        self.position += 1


def _rebuild_first(reference: "weakref.ref[Tape]", number: int, gradient: Tensor) -> None:
    """Rebuild a step before its backward pass begins, while all of its weights are those of the forward pass.

    An optimizer that steps in the backward pass changes a weight as soon as its gradient is complete. The gradient of a
    bias that is added last is complete before the first ticket is redeemed.
    """
    tape = reference()
    if tape is not None:
        tape.prepare(number)
