"""The tape: runs a stack of reversible steps backwards while autograd asks for what the forward pass did not keep.

How it works:

1. In the forward pass every field runs under saved-tensor hooks. Autograd is handed a `SavedTensor` ticket in place
   of each tensor that it wants to keep, and the tensor is freed with the rest of the layer. Its `Evidence` stays, which
   holds numbers.
2. The tape holds one pair of fixed-point states: those of the last step when the forward pass ends.
3. In the backward pass, the gradient that reaches step l, or the first ticket of it that autograd redeems, makes the
   tape evaluate f_l once more, at the state p[l] that it still holds. The tensors that this evaluation saves are handed
   to the waiting tickets, and its result undoes the step: the pair moves from (p[l], p[l+1]) to (p[l-1], p[l]). One
   evaluation serves both.
4. Every evaluation proves itself. What it saves and what it returns is compared with the evidence of the forward pass
   by its bits and their places (`Evidence` says how); if they differ, `RebuildMismatchError` is raised and names the
   step. So the inverse is given what the step was given, and integers have exact inverses. That the arithmetic keeps
   this promise is checked once, at the first step that has gradients: the pair is compared with its checksum from the
   forward pass.

The tape can move both ways. A second backward pass through a retained graph, second derivatives, or gradients asked
for layer by layer with `torch.autograd.grad`, find it at the bottom and wind it forward again.

A step whose input is kept is computed again from that. The policies "checkpoint" and "offload" are such steps alone.
PyTorch's checkpointing ends an evaluation at the last tensor that is saved; this one runs to its end, as what a layer
undoes there would stay done, such as a weight that was rounded for its forward.

Lifetime: only tickets keep the tape alive, and autograd drops a step's tickets when it is done with the step. So the
states are freed with the last ticket, and nothing of a forward pass is kept on any module.
"""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from revformers.activations.base import ActivationPolicy
from revformers.activations.budget.attention_outputs import OtherKernelsError
from revformers.dynamics.base import Coefficients
from revformers.engine.field import Field
from revformers.engine.proof.checksum import checksum
from revformers.engine.proof.evidence import Evidence, LaterEvidence
from revformers.engine.proof.situation import Situation
from revformers.engine.proof.statistics import SecondCount, Statistic, statistics_of
from revformers.engine.proof.unwritten import written_parts
from revformers.engine.proof.verdicts import Verdicts, mismatch
from revformers.engine.replay import AutocastState, RandomState
from revformers.engine.states import StatePair
from revformers.engine.ticket import InputSource, Packed, SavedTensor
from revformers.errors import NotReversibleError, RebuildMismatchError
from revformers.private_api import version_of


@dataclasses.dataclass
class StepRecord:
    """What the tape keeps of one step: nothing whose size grows with the model's width, but for side information.

    Attributes:
        evidence: what the forward pass saved.
        result: the checksum of what the forward pass returned, where the step may be undone.
        statistics: what the forward pass may have counted in.

    """

    name: str
    coefficients: Coefficients | None
    field: Field
    dtype: torch.dtype
    requires_grad: bool
    autocast: AutocastState
    situation: Situation
    evidence: Evidence
    random_state: RandomState | None = None
    tickets: list[weakref.ref[SavedTensor]] = dataclasses.field(default_factory=list)
    side_information: Tensor | None = None
    result: Tensor | None = None
    statistics: list[Statistic] = dataclasses.field(default_factory=list)

    def mismatch(self, what: str, *, says_why: bool = False, before_all: bool = False) -> RebuildMismatchError:
        """Return the error for the step whose second evaluation is not the first; see `verdicts.mismatch`."""
        return mismatch(what, self.situation, says_why=says_why, before_all=before_all)

    def other_values(self, *, late: bool) -> RebuildMismatchError:
        """Return the error for a step whose second evaluation has other bits, at once or at the end of the pass."""
        return mismatch(
            f"{self.name} was evaluated again to other values than those of the forward pass, or at another input",
            self.situation,
            late=late,
        )

    def counts_twice(self, second_count: SecondCount, equal: Tensor) -> NotReversibleError:
        """Return the error for a step whose second evaluation went on counting."""
        statistic = second_count.first_of(equal)
        what = f"{self.situation.path(statistic.module)}{statistic.name}"
        return _writes_twice(self.name, what, " By now it has, and there are gradients: clear them (zero_grad).")

    def gone_tickets(self) -> set[int]:
        """Return the numbers of the tickets that autograd let go of."""
        return {number for number, reference in enumerate(self.tickets) if reference() is None}

    def living_tickets(self) -> Iterator[SavedTensor]:
        """Yield the tickets that autograd still holds."""
        return (ticket for reference in self.tickets if (ticket := reference()) is not None)


SavedAgain = tuple[Tensor, int]
"""A tensor that a later evaluation saved, and its version at that time: a layer must not write to it afterwards."""


def _rebuild_first(reference: "weakref.ref[Tape]", step: int, gradient: Tensor) -> None:
    """Rebuild a step before anything of it goes backwards, while all of its weights are those of the forward pass.

    An optimizer that steps in the backward pass changes a weight as soon as its gradient is complete. That of a bias
    that is added last is complete before the first ticket is redeemed.
    """
    tape = reference()
    if tape is not None:
        tape.prepare(step)


class Tape(ActivationPolicy):
    """The reversible trajectory of one forward pass; see the module's text.

    Attributes:
        states: the pair (X[position-1], X[position]).
        position: how many steps the pair has been advanced.
        lock: held by the thread that rebuilds a step.

    """

    def __init__(self, states: StatePair) -> None:
        super().__init__(states)
        self.position = 0
        self.lock: AbstractContextManager[Any] = threading.RLock()
        self._records: list[StepRecord] = []
        self._first_step: int | None = None
        self._checksum: Tensor | None = None
        self._verdicts = Verdicts(at_once=states.current.device.type == "cpu")
        self._has_begun = False
        self._handed_out: StepRecord | None = None

    @classmethod
    def without_states(cls, device: torch.device) -> "Tape":
        """Return a tape for steps whose inputs are kept, on `device`."""
        return cls(StatePair.empty(device))

    def evaluate(
        self,
        name: str,
        coefficients: Coefficients | None,
        field: Field,
        hidden: Tensor,
        *,
        hold: bool = False,
        undone: bool = True,
        on_save: Callable[[Tensor], object] | None = None,
    ) -> Tensor:
        """Return f_l(p[l]), of which autograd keeps tickets instead of tensors.

        Args:
            name: what messages call the step.
            coefficients: a, b and c of the step that will follow; None where none will.
            field: f_l.
            hidden: p[l].
            hold: whether the tickets hold their tensors for now, until `store` or `drop` is called.
            undone: whether the step may be undone, so that what it returns is held to the forward pass as well.
            on_save: called with every tensor that autograd wants to keep.

        Raises:
            NotReversibleError: for a field that writes to its buffers, which would be written to twice.

        """
        situation = Situation(field, settings=False)
        record = StepRecord(
            name,
            coefficients,
            field,
            hidden.dtype,
            hidden.requires_grad,
            AutocastState.of(hidden.device),
            situation,
            Evidence(hidden, situation),
        )
        step = len(self._records)
        # The hooks hold the tape only as long as the block runs; afterwards only tickets do.
        tape = self

        def pack(tensor: Tensor) -> SavedTensor:
            ticket = SavedTensor(tape, step, record.evidence.evaluation, len(record.tickets), tensor)
            if hold:
                ticket.hold(tensor)
            record.evidence.add(tensor, held=hold)
            if on_save is not None:
                on_save(tensor)
            record.tickets.append(weakref.ref(ticket))
            return ticket

        before = RandomState.of(hidden.device)
        with saved_tensors_hooks(pack, SavedTensor.redeem):
            update = field(hidden)
        if not before.equals(RandomState.of(hidden.device)):
            record.random_state = before
        record.evidence.finish(written_parts(update, hidden, record.evidence.evaluation), record.gone_tickets)
        record.situation = situation.now()
        if update.requires_grad and self._first_step is None:
            self._first_step = step
            self._checksum = self.states.checksum()
        if self._first_step is not None:
            _refuse_statistics(name, situation)
            record.statistics = statistics_of(situation)
            if undone:
                record.result = checksum(update)
        if update.requires_grad:
            update.register_hook(partial(_rebuild_first, weakref.ref(self), step))
        self._records.append(record)
        return update

    def advance(self, coefficients: Coefficients, update: Tensor) -> None:
        """Advance the states by the step that was evaluated last; `update` is what it returned."""
        self._records[self.position].side_information = self.states.advance(
            coefficients, update, keep_side_information=self._first_step is not None
        )
        self.position += 1

    def prepare(self, step: int) -> None:
        """Have the tensors that step number `step` saved at hand, and the step undone where it has to be."""
        ticket = next(self._records[step].living_tickets(), None)
        if ticket is not None:
            ticket.redeem()
            return
        with self.lock:
            if step < self.position:  # a step that saves nothing
                self.rebuild(step)

    def store(self, step: int) -> None:
        """Leave what autograd saved of a step that was evaluated with `hold` where it is; it needs no tape."""
        for ticket in self._records[step].living_tickets():
            ticket.tape = None

    def drop(self, step: int, source: InputSource | None = None) -> None:
        """Let go of what autograd saved of a step that was evaluated with `hold`; it is computed again when needed.

        Args:
            step: the number of the step.
            source: returns p[l], which it keeps as long as autograd may ask; without it the tape rebuilds it.

        """
        record = self._records[step]
        tickets = {number: ticket for number, reference in enumerate(record.tickets) if (ticket := reference())}
        record.evidence.read_held({n: ticket.tensor for n, ticket in tickets.items() if ticket.tensor is not None})
        for ticket in tickets.values():
            ticket.let_go()
            ticket.source = source

    def keep_copy_of_states(self) -> None:
        """Go on with a copy of the pair, where the forward pass advances the pair itself without this tape."""
        self.states = StatePair(self.states.previous.clone(), self.states.current.clone())

    def let_go_of_states(self) -> None:
        """Keep no pair, where no step has to be rebuilt."""
        self.states = StatePair.empty(self.states.current.device)
        for record in self._records:
            record.side_information = None
        self._checksum = None

    def rebuild(self, step: int, source: InputSource | None = None) -> None:
        """Rebuild the tensors that step number `step` saved, and hand them to its tickets.

        Args:
            step: the number of the step.
            source: returns p[l], where it was kept.

        Raises:
            NotReversibleError: for a step that is still being evaluated.
            RebuildMismatchError: where the rebuilt tensors or states, or the weights, differ from the forward pass.

        """
        if step >= len(self._records):
            raise NotReversibleError(
                "A layer takes gradients while it is evaluated (torch.autograd.grad in its forward), of what is not "
                'kept; train with revformers.set_activations(model, "store").'
            )
        try:
            self._rebuild(step, source)
        except Exception:
            # Where results are looked at later, an earlier step may be the cause.
            self._verdicts.look()
            raise

    def _rebuild(self, step: int, source: InputSource | None) -> None:
        # Inside inference mode nothing could be saved for a gradient.
        with torch.inference_mode(False):
            self._refuse_changes_before_a_step_in_backward()
            self._take_back()
            record = self._records[step]
            if source is not None:
                hidden = source()
                if hidden is None:
                    raise record.mismatch(
                        f"The input of {record.name}, which is kept, was written to after the forward pass",
                        says_why=True,
                    )
                self._hand_out(record, self._evaluate_at(hidden, record)[0])
                return
            while self.position > step + 1:
                self._retreat(self._evaluate_again(self.position - 1)[1])
            while self.position < step:
                self._wind_forward()
            saved, update = self._evaluate_again(step)
            self._hand_out(record, saved)
            if self.position == step + 1:
                self._retreat(update)

    def _refuse_changes_before_a_step_in_backward(self) -> None:
        """Look at all steps before the first gradient, where weights are stepped as soon as theirs is there."""
        if self._has_begun:
            return
        self._has_begun = True
        to_evaluate = [
            record for record in self._records if any(ticket.tensor is None for ticket in record.living_tickets())
        ]
        if any(record.situation.trains_in_backward() for record in to_evaluate):
            for record in to_evaluate:
                if record.situation.tensor_changes():
                    raise record.mismatch(
                        f"{record.name} is no longer what it was in the forward pass", before_all=True
                    )

    def _evaluate_again(self, step: int) -> tuple[list[SavedAgain], Tensor]:
        """Evaluate f at p[step], which the pair must hold; return what autograd would save, and the result."""
        record = self._records[step]
        read = self.states.read_current if self.position == step else self.states.read_previous
        return self._evaluate_at(read(record.dtype), record)

    def _evaluate_at(self, hidden: Tensor, record: StepRecord) -> tuple[list[SavedAgain], Tensor]:
        """Evaluate f at `hidden` and hold it to the evidence; return what autograd would save, and the result."""
        for leaf in record.evidence.leaves():
            if not leaf.is_unchanged():
                raise record.mismatch(f"A weight of {record.name} was changed before the backward pass")
        hidden = hidden.detach().requires_grad_(record.requires_grad)
        saved, evidence = list[SavedAgain](), record.evidence.again(hidden)

        def pack(tensor: Tensor) -> Packed:
            # detach: the rebuilt graph is discarded, only its values are wanted.
            saved.append((tensor.detach(), version_of(tensor)))
            return evidence.add(tensor)

        def unpack(_: Packed) -> Tensor:
            raise NotReversibleError(
                f"Something kept what {record.name} computed when the backward pass evaluated it again, such as a hook "
                f"that collects outputs, and a later loss uses it; collect them in the forward pass only, or train "
                f'with revformers.set_activations(model, "store").'
            )

        replay = record.random_state.restored() if record.random_state else contextlib.nullcontext()
        second_count = SecondCount(record.statistics)
        # Gradients stay enabled even where nothing is caught: kernels may choose another algorithm without them.
        try:
            with torch.enable_grad(), record.autocast.restored(), replay, saved_tensors_hooks(pack, unpack):
                update = record.field(hidden)
        except (torch.OutOfMemoryError, NotReversibleError, RebuildMismatchError):
            raise
        except OtherKernelsError as error:
            raise record.mismatch(f"{record.name} {error}") from None
        except Exception as error:
            if record.situation.setting_changes() or record.situation.tensor_changes():
                raise record.mismatch(
                    f"{record.name} cannot be evaluated again ({type(error).__name__}: {error})"
                ) from error
            error.add_note(f"This was raised when {record.name} was evaluated again in the backward pass.")
            raise
        finally:
            evidence.finish()
        self._require_same(record, saved, evidence, update)
        counts = second_count.verdicts()
        if counts is not None:
            self._verdicts.add(counts.all(), partial(record.counts_twice, second_count, counts))
        return saved, update.detach()

    def _require_same(
        self, record: StepRecord, saved: list[SavedAgain], evidence: LaterEvidence, update: Tensor
    ) -> None:
        """Raise RebuildMismatchError where an evaluation is not that of the forward pass."""
        if len(saved) != len(record.tickets):
            raise record.mismatch(
                f"Rebuilding {record.name} saved {len(saved)} tensors where the forward pass saved "
                f"{len(record.tickets)}"
            )
        if evidence.other_leaf is not None:
            raise record.mismatch(
                f"{record.name} was evaluated again with a tensor {list(evidence.other_leaf.shape)} that is not the "
                f"weight, or not in the form, that it was evaluated with in the forward pass"
            )
        if evidence.is_made_otherwise:
            raise record.mismatch(f"{record.name} was evaluated again by other operations")
        results = [evidence.equal()]
        if record.result is not None:
            results.append(checksum(update) == record.result)
        for equal in results:
            if equal is not None:
                self._verdicts.add(equal, self._other_values(record))

    def _other_values(self, record: StepRecord) -> Callable[[], RebuildMismatchError]:
        return partial(record.other_values, late=not self._verdicts.at_once)

    def _take_back(self) -> None:
        """Drop the tensors of tickets that a retained graph still holds; they are rebuilt when they are asked for."""
        if self._handed_out is not None:
            for ticket in self._handed_out.living_tickets():
                ticket.let_go()
            self._handed_out = None

    def _hand_out(self, record: StepRecord, saved: list[SavedAgain]) -> None:
        for reference, (tensor, version) in zip(record.tickets, saved, strict=True):
            ticket = reference()
            if ticket is None:
                continue
            if (ticket.shape, ticket.dtype) != (tensor.shape, tensor.dtype):
                raise record.mismatch(
                    f"Rebuilding {record.name} saved a tensor {list(tensor.shape)} of {tensor.dtype} where the forward "
                    f"pass saved {list(ticket.shape)} of {ticket.dtype}"
                )
            ticket.tensor = tensor
            ticket.version = version
        self._handed_out = record

    def _retreat(self, update: Tensor) -> None:
        record = self._records[self.position - 1]
        assert record.coefficients is not None
        possible = self.states.retreat(record.coefficients, update, record.side_information)
        if possible is not None:
            self._verdicts.add(possible, self._other_values(record))
        record.side_information = None
        self.position -= 1
        if self.position == self._first_step and self._checksum is not None:
            equal = (self.states.checksum() == self._checksum).all()
            self._verdicts.add(equal, self._other_values(record))

    def _wind_forward(self) -> None:
        update = self._evaluate_again(self.position)[1]
        record = self._records[self.position]
        assert record.coefficients is not None
        record.side_information = self.states.advance(record.coefficients, update, keep_side_information=True)
        self.position += 1


def _refuse_statistics(name: str, before: Situation) -> None:
    """Refuse a field that counts what it sees in its buffers: it would count everything twice."""
    buffer = before.written_buffer()
    if buffer is not None:
        raise _writes_twice(name, f"buffer {buffer}")


def _writes_twice(name: str, what: str, damage: str = "") -> NotReversibleError:
    return NotReversibleError(
        f"{name[0].upper()}{name[1:]} writes to its {what} when it is evaluated, as batch normalisation does in "
        f"training, and would do so again in the backward pass; switch that module to eval(), or train with "
        f'revformers.set_activations(model, "store").{damage}'
    )
