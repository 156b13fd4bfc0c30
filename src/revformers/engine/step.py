"""One step of a stack: a field that is evaluated in the forward pass, and again in the backward pass.

Autograd gets a `SavedTensor` ticket for each tensor that it saves. A later evaluation saves the same tensors again; it
is compared with the first one before its tensors are given to the tickets.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field, OtherEvaluationError
from revformers.engine.proof.checksum import checksum
from revformers.engine.proof.evidence import Evidence, LaterEvidence
from revformers.engine.proof.mismatch import mismatch
from revformers.engine.proof.situation import Situation
from revformers.engine.proof.statistics import SecondCount, Statistic, statistics_of
from revformers.engine.proof.unwritten import written_parts
from revformers.engine.proof.verdicts import Verdicts
from revformers.engine.replay import AutocastState, Draws, RandomState
from revformers.engine.ticket import Packed, SavedTensor
from revformers.errors import NotReversibleError, RebuildMismatchError, reason_with_type
from revformers.private_api import outside_every_kernel, version_of

SavedAgain = tuple[Tensor, int]
"""A tensor that a later evaluation saved, and its version then: a layer must not write to it afterwards."""


class Step:
    """A field and the record of its first evaluation; only its side information grows with the width.

    Args:
        name: the name of the step in messages.
        coefficients: a, b and c of the step; None if no step follows the evaluation.
        field: f_l.
        hidden: p[l], (batch, tokens, width).

    Attributes:
        side_information: what the inverse of the step needs in addition to the update; None if nothing.
        situation: the record of the field's modules before the first evaluation, and after `finish` that after it.

    """

    def __init__(self, name: str, coefficients: Coefficients | None, field: Field, hidden: Tensor) -> None:
        self.name = name
        self.coefficients = coefficients
        self.side_information: Tensor | None = None
        self._field = field
        self.dtype = hidden.dtype
        self._requires_grad = hidden.requires_grad
        self._autocast = AutocastState.of(hidden.device)
        self._draws: Draws | None = None
        self.situation = Situation(field, settings=False)
        self._evidence = Evidence(hidden, self.situation)
        self._tickets: list[weakref.ref[SavedTensor]] = []
        self._result: Tensor | None = None
        self._statistics: list[Statistic] = []

    def evaluate(
        self,
        hidden: Tensor,
        new_ticket: Callable[[object, int, Tensor], SavedTensor],
    ) -> Tensor:
        """Return f_l(p[l]), for which autograd saves tickets instead of tensors.

        Args:
            hidden: p[l].
            new_ticket: makes a ticket from the evaluation, the number of the tensor among those saved, and the tensor.

        """
        evidence, tickets = self._evidence, self._tickets

        def pack(tensor: Tensor) -> SavedTensor:
            # A field may run in a mode that calls Python for every kernel, and the comparison has more than a layer.
            with outside_every_kernel():
                ticket = new_ticket(evidence.evaluation, len(tickets), tensor)
                evidence.add(tensor)
            tickets.append(weakref.ref(ticket))
            return ticket

        before = RandomState.of(hidden.device)
        with saved_tensors_hooks(pack, SavedTensor.redeem):
            update = self._field(hidden)
        after = RandomState.of(hidden.device)
        if not before.equals(after):
            self._draws = Draws(before, after)
        evidence.finish(written_parts(update, hidden, evidence.evaluation), self._gone_tickets)
        return update

    def keep_evidence(self, update: Tensor | None) -> None:
        """Record, after the first evaluation, the further evidence that a later one is compared with.

        Args:
            update: the output of the field if the step may be undone, otherwise None.

        Raises:
            NotReversibleError: if the field wrote to one of its buffers, which a later evaluation would do again.

        """
        buffer = self.situation.written_buffer()
        if buffer is not None:
            raise _writes_twice(self.name, f"buffer {buffer}")
        self._statistics = statistics_of(self.situation)
        if update is not None:
            self._result = checksum(update)

    def finish(self) -> None:
        """Record the modules after the first evaluation."""
        self.situation = self.situation.now()

    def evaluate_again(self, hidden: Tensor, verdicts: Verdicts) -> tuple[list[SavedAgain], Tensor]:
        """Evaluate f_l at `hidden` and compare it with the first evaluation.

        Returns:
            The tensors that autograd would save, and the update.

        Raises:
            RebuildMismatchError: if the evaluation differs from that of the forward pass.
            NotReversibleError: if the field accumulates statistics.

        """
        for leaf in self._evidence.leaves():
            if not leaf.is_unchanged():
                raise self.mismatch(f"A weight of {self.name} was changed before the backward pass")
        hidden = hidden.detach().requires_grad_(self._requires_grad)
        saved, evidence = list[SavedAgain](), self._evidence.again(hidden)

        def pack(tensor: Tensor) -> Packed:
            with outside_every_kernel():
                # detach, because only the values of the rebuilt graph are needed
                saved.append((tensor.detach(), version_of(tensor)))
                return evidence.add(tensor)

        replay = self._draws.replayed(hidden.device) if self._draws else contextlib.nullcontext()
        second_count = SecondCount(self._statistics)
        # Gradients stay enabled in all cases, because without them kernels may choose another algorithm.
        try:
            with torch.enable_grad(), self._autocast.restored(), replay, saved_tensors_hooks(pack, self._refuse_unpack):
                update = self._field(hidden)
        except (torch.OutOfMemoryError, NotReversibleError, RebuildMismatchError):
            raise
        except OtherEvaluationError as error:
            raise self.mismatch(f"{self.name} {error}") from None
        except Exception as error:
            if self.situation.setting_changes() or self.situation.tensor_changes():
                raise self.mismatch(f"{self.name} cannot be evaluated again ({reason_with_type(error)})") from error
            error.add_note(f"This was raised when {self.name} was evaluated again in the backward pass.")
            raise
        finally:
            evidence.finish()
        self._compare(len(saved), evidence, update, verdicts)
        counts = second_count.verdicts()
        if counts is not None:
            verdicts.add(counts.all(), partial(self._counts_twice, second_count, counts))
        return saved, update.detach()

    def hand_out(self, saved: list[SavedAgain]) -> None:
        """Store the tensors of a later evaluation in the tickets that autograd still holds."""
        for reference, (tensor, version) in zip(self._tickets, saved, strict=True):
            ticket = reference()
            if ticket is None:
                continue
            if (ticket.shape, ticket.dtype) != (tensor.shape, tensor.dtype):
                raise self.mismatch(
                    f"Evaluating {self.name} again saved a tensor {list(tensor.shape)} of {tensor.dtype} where the "
                    f"forward pass saved {list(ticket.shape)} of {ticket.dtype}"
                )
            ticket.tensor = tensor
            ticket.version = version

    def tickets(self) -> Iterator[SavedTensor]:
        """Yield the tickets that autograd still holds."""
        return (ticket for reference in self._tickets if (ticket := reference()) is not None)

    def mismatch(self, what: str, *, says_why: bool = False, before_all: bool = False) -> RebuildMismatchError:
        """Return the error for a second evaluation that differs from the first; see `proof.mismatch`."""
        if self._drew_otherwise():
            what = f"{what}, and it drew other random numbers"
        return mismatch(
            what, self.situation, says_why=says_why, before_all=before_all, drew_otherwise=self._drew_otherwise()
        )

    def other_values(self, verdicts: Verdicts) -> Callable[[], RebuildMismatchError]:
        """Return a function that creates the error for a second evaluation whose results have other bits."""
        what = f"{self.name} was evaluated again to other values than those of the forward pass, or at another input"
        late, drew_otherwise = not verdicts.at_once, self._drew_otherwise()
        if drew_otherwise:
            what = f"{self.name} drew other random numbers when it was evaluated again than in the forward pass"
        return partial(mismatch, what, self.situation, late=late, drew_otherwise=drew_otherwise)

    def _drew_otherwise(self) -> bool:
        return self._draws is not None and not self._draws.were_repeated()

    def _compare(self, saved: int, evidence: LaterEvidence, update: Tensor, verdicts: Verdicts) -> None:
        """Raise RebuildMismatchError if an evaluation, which saved `saved` tensors, differs from the first."""
        if saved != len(self._tickets):
            raise self.mismatch(
                f"Evaluating {self.name} again saved {saved} tensors where the forward pass saved {len(self._tickets)}"
            )
        if evidence.other_leaf is not None:
            raise self.mismatch(
                f"{self.name} was evaluated again with a tensor {list(evidence.other_leaf.shape)} that is not the "
                f"weight, or not in the form, that it was evaluated with in the forward pass"
            )
        if evidence.is_made_otherwise:
            raise self.mismatch(f"{self.name} was evaluated again by other operations")
        equal_results = None if self._result is None else checksum(update) == self._result
        for equal in (evidence.equal(), equal_results):
            if equal is not None:
                verdicts.add(equal, self.other_values(verdicts))

    def _refuse_unpack(self, _: Packed) -> Tensor:
        raise NotReversibleError(
            f"Something kept what {self.name} computed when the backward pass evaluated it again, such as a hook that "
            f"collects outputs, and a later loss uses it; collect them in the forward pass only, or train with "
            f"revformers.set_activations(model, revformers.Store())."
        )

    def _counts_twice(self, second_count: SecondCount, equal: Tensor) -> NotReversibleError:
        """Return the error for a second evaluation that changed a statistic."""
        statistic = second_count.first_of(equal)
        what = f"{self.situation.path(statistic.module)}{statistic.name}"
        return _writes_twice(self.name, what, " By now it has, and there are gradients: clear them (zero_grad).")

    def _gone_tickets(self) -> set[int]:
        """Return the numbers of the tickets that autograd has released."""
        return {number for number, reference in enumerate(self._tickets) if reference() is None}


def _writes_twice(name: str, what: str, damage: str = "") -> NotReversibleError:
    return NotReversibleError(
        f"{name[0].upper()}{name[1:]} writes to its {what} when it is evaluated, as batch normalisation does in "
        f"training, and would do so again in the backward pass; switch that module to eval(), or train with "
        f"revformers.set_activations(model, revformers.Store()).{damage}"
    )
