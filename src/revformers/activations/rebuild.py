"""The tape: runs a stack of reversible steps backwards while autograd asks for what the forward pass did not keep.

How it works:

1. In the forward pass every field runs under saved-tensor hooks. Autograd is handed a `SavedTensor` ticket in place
   of each tensor that it wants to keep, and the tensor is freed with the rest of the layer.
2. The tape holds one pair of fixed-point states: those of the last step when the forward pass ends.
3. In the backward pass, the gradient that reaches step l, or the first ticket of it that autograd redeems, makes the
   tape evaluate f_l once more, at the state p[l] that it still holds. The tensors that this evaluation saves are handed
   to the waiting tickets, and its result undoes the step: the pair moves from (p[l], p[l+1]) to (p[l-1], p[l]). One
   evaluation serves both.
4. At the first step that has gradients, the pair is compared with a checksum from the forward pass. Integers have
   exact inverses, so the two differ only if some f_l did not repeat itself; then `RebuildMismatchError` is raised.
   Nothing hides on the way: different pairs have different predecessors, or (|a| > 1) one of them has none, which the
   step says. Steps that are computed again from a kept input are compared by their `Fingerprint`.
5. Whatever the result, every evaluation is held to the weights that the forward pass used; see `UsedLeaves`.

The tape can move both ways. A second backward pass through a retained graph, or gradients asked for layer by layer
with `torch.autograd.grad`, find it at the bottom and wind it forward again.

Lifetime: only tickets keep the tape alive, and autograd drops a step's tickets when it is done with the step. So the
states are freed with the last ticket, and nothing of a forward pass is kept on any module.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from revformers.activations.base import ActivationPolicy
from revformers.activations.fingerprint import Fingerprint
from revformers.activations.used_leaves import LeafCollector, UsedLeaves
from revformers.dynamics.base import Coefficients
from revformers.errors import RebuildMismatchError
from revformers.exact.state_pair import StatePair
from revformers.field import Field
from revformers.replay import AutocastState, RandomState

REMEDY = (
    "The layers must compute the same result twice: call backward before weights, buffers or adapters change (an "
    "optimizer step, set_adapter, merging, freezing, entering or leaving disable_adapter(), eval()), keep global "
    "settings such as sdpa_kernel, and make kernels deterministic (torch.use_deterministic_algorithms(True)); or train "
    'with revformers.set_activations(model, "store").'
)


class SavedTensor:
    """The ticket that autograd holds in place of a tensor: which step saved it, and its shape and dtype."""

    __slots__ = ("__weakref__", "dtype", "hidden", "shape", "step", "tape", "tensor", "version")

    def __init__(self, tape: "Tape", step: int, tensor: Tensor) -> None:
        self.tape: Tape | None = tape
        self.step = step
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.tensor: Tensor | None = None
        self.version: int | None = None
        self.hidden: Tensor | None = None

    def hold(self, tensor: Tensor) -> None:
        """Keep the tensor itself, as ordinary autograd does."""
        # detach: a ticket that held its own step's result would keep its own graph alive.
        self.tensor = tensor.detach()
        self.version = tensor._version

    def redeem(self) -> Tensor:
        """Return the tensor, rebuilt if it is not there."""
        if self.tensor is None:
            assert self.tape is not None
            self.tape.rebuild(self.step, self.hidden)
        assert self.tensor is not None
        if self.version is not None and self.tensor._version != self.version:
            raise RuntimeError(
                f"A tensor {list(self.shape)} that is needed for the gradient was modified in place after it had been "
                f"stored or rebuilt; leave weights and activations unchanged between forward and backward."
            )
        return self.tensor


@dataclasses.dataclass
class StepRecord:
    """What the tape keeps of one step: nothing whose size grows with the model's width, but for side information."""

    name: str
    coefficients: Coefficients
    field: Field
    dtype: torch.dtype
    requires_grad: bool
    autocast: AutocastState
    random_state: RandomState | None = None
    tickets: list[weakref.ref[SavedTensor]] = dataclasses.field(default_factory=list)
    side_information: Tensor | None = None
    fingerprint: Tensor | None = None
    used: UsedLeaves | None = None

    def living_tickets(self) -> Iterator[SavedTensor]:
        """Yield the tickets that autograd still holds."""
        return (ticket for reference in self.tickets if (ticket := reference()) is not None)


class _AllSaved(Exception):
    """Ends an evaluation whose result is not wanted, as checkpointing in PyTorch does."""


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
        repeated: names of steps, with bool[], whether what was computed again is what the forward pass had. They stay
            on the device until the backward pass reaches the first step.

    """

    def __init__(self, states: StatePair) -> None:
        super().__init__(states)
        self.position = 0
        self._records: list[StepRecord] = []
        self._first_step: int | None = None
        self._checksum: Tensor | None = None
        self.repeated: list[tuple[str, Tensor]] = []
        self._handed_out: StepRecord | None = None

    def evaluate(
        self,
        name: str,
        coefficients: Coefficients,
        field: Field,
        hidden: Tensor,
        *,
        hold: bool = False,
        fingerprint: bool = False,
        on_save: Callable[[Tensor], object] | None = None,
    ) -> Tensor:
        """Return f_l(p[l]), of which autograd keeps tickets instead of tensors.

        Args:
            name: what messages call the step.
            coefficients: a, b and c of the step that will follow.
            field: f_l.
            hidden: p[l].
            hold: whether the tickets hold their tensors for now, until `store` or `drop` is called.
            fingerprint: whether the step may be dropped with its input kept.
            on_save: called with every tensor that autograd wants to keep.

        """
        record = StepRecord(
            name, coefficients, field, hidden.dtype, hidden.requires_grad, AutocastState.of(hidden.device)
        )
        step = len(self._records)
        # The hooks hold the tape only as long as the block runs; afterwards only tickets do.
        tape = self
        first = Fingerprint(hidden.numel()) if fingerprint else None
        leaves = LeafCollector(hidden)

        def pack(tensor: Tensor) -> SavedTensor:
            ticket = SavedTensor(tape, step, tensor)
            if hold:
                ticket.hold(tensor)
            if first is not None:
                first.add(tensor)
            leaves.add(tensor)
            if on_save is not None:
                on_save(tensor)
            record.tickets.append(weakref.ref(ticket))
            return ticket

        before = RandomState.of(hidden.device)
        with saved_tensors_hooks(pack, SavedTensor.redeem):
            update = field(hidden)
        if first is not None:
            record.fingerprint = first.sum()
        if not before.equals(RandomState.of(hidden.device)):
            record.random_state = before
        if update.requires_grad:
            record.used = UsedLeaves(leaves, update, hidden)
            if self._first_step is None:
                self._first_step = step
                self._checksum = self.states.checksum()
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
        elif step < self.position:  # a step that saves nothing
            self.rebuild(step)

    def store(self, step: int) -> None:
        """Leave what autograd saved of a step that was evaluated with `hold` where it is; it needs no tape."""
        for ticket in self._records[step].living_tickets():
            ticket.tape = None

    def drop(self, step: int, hidden: Tensor | None = None) -> None:
        """Let go of what autograd saved of a step that was evaluated with `hold`; it is computed again when needed.

        Args:
            step: the number of the step.
            hidden: p[l], to keep it for that as long as autograd may ask; without it the tape rebuilds it.

        """
        for ticket in self._records[step].living_tickets():
            ticket.tensor = ticket.version = None
            ticket.hidden = hidden

    def keep_copy_of_states(self) -> None:
        """Go on with a copy of the pair, where the forward pass advances the pair itself without this tape."""
        self.states = StatePair(self.states.previous.clone(), self.states.current.clone())

    def let_go_of_states(self) -> None:
        """Keep no pair, where no step has to be rebuilt."""
        nothing = self.states.current.new_empty(0)
        self.states = StatePair(nothing, nothing)
        for record in self._records:
            record.side_information = None
        self._checksum = None

    def rebuild(self, step: int, hidden: Tensor | None = None) -> None:
        """Rebuild the tensors that step number `step` saved, and hand them to its tickets.

        Args:
            step: the number of the step.
            hidden: p[l], where it was kept.

        Raises:
            RebuildMismatchError: where the rebuilt tensors or states, or the weights, differ from the forward pass.
            RuntimeError: under create_graph=True; a rebuilt graph has no second derivative.

        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Rebuilt activations have no second derivative: backward was called with create_graph=True. "
                'Use revformers.set_activations(model, "store") for double backward.'
            )
        self._take_back()
        record, saved = self._records[step], list[Tensor]()
        if hidden is not None:
            again = Fingerprint(hidden.numel())
            self._evaluate_at(hidden, record, saved, again)
            self._hand_out(record, saved)
            bits = again.sum()
            if bits is not None and record.fingerprint is not None:
                self.repeated.append((record.name, bits == record.fingerprint))
            if step == self._first_step:
                self._check()
            return
        while self.position > step + 1:
            self._retreat(self._evaluate_again(self.position - 1, []))
        while self.position < step:
            self._wind_forward()
        update = self._evaluate_again(step, saved)
        self._hand_out(record, saved)
        if self.position == step + 1:
            self._retreat(update)

    def _evaluate_again(self, step: int, saved: list[Tensor]) -> Tensor:
        """Evaluate f at p[step], which the pair must hold; append what autograd would save to `saved`."""
        record = self._records[step]
        read = self.states.read_current if self.position == step else self.states.read_previous
        return self._evaluate_at(read(record.dtype), record, saved)

    @staticmethod
    def _evaluate_at(
        hidden: Tensor, record: StepRecord, saved: list[Tensor], fingerprint: Fingerprint | None = None
    ) -> Tensor:
        """Evaluate f at `hidden`; with a `fingerprint` only until everything is saved, and then return `hidden`."""
        hidden = hidden.detach().requires_grad_(record.requires_grad)
        leaves, graph = LeafCollector(hidden), list[Any]()
        looks_at_graph = record.used is not None and record.used.looks_at_graph
        if record.used is not None:
            record.used.require_unchanged(record.name, record.field)

        def pack(tensor: Tensor) -> None:
            leaves.add(tensor)
            # detach: the rebuilt graph is discarded, only its values are wanted.
            saved.append(tensor.detach())
            if fingerprint is not None:
                fingerprint.add(tensor)
                if looks_at_graph:
                    graph.append(tensor.grad_fn)
                if len(saved) == len(record.tickets):
                    raise _AllSaved

        def unpack(_: None) -> Tensor:
            raise AssertionError("the rebuilt graph is never run backwards")

        replay = record.random_state.restored() if record.random_state else contextlib.nullcontext()
        update = None
        # Gradients stay enabled even where nothing is caught: kernels may choose another algorithm without them.
        with (
            torch.enable_grad(),
            record.autocast.restored(),
            replay,
            contextlib.suppress(_AllSaved),
            saved_tensors_hooks(pack, unpack),
        ):
            try:
                update = record.field(hidden)
            finally:
                # The nodes of the graph keep the hooks, so that the hooks must not keep the nodes.
                nodes = [update.grad_fn] if update is not None else graph.copy()
                graph.clear()
        if record.used is not None:
            record.used.require_same(leaves, nodes, hidden, record.name, record.field, complete=update is not None)
        return hidden if update is None else update.detach()

    def _take_back(self) -> None:
        """Drop the tensors of tickets that a retained graph still holds; they are rebuilt when they are asked for."""
        if self._handed_out is not None:
            for ticket in self._handed_out.living_tickets():
                ticket.tensor = None
            self._handed_out = None

    def _hand_out(self, record: StepRecord, saved: list[Tensor]) -> None:
        if len(saved) != len(record.tickets):
            raise RebuildMismatchError(
                f"Rebuilding {record.name} saved {len(saved)} tensors where the forward pass saved "
                f"{len(record.tickets)}. {REMEDY}"
            )
        for reference, tensor in zip(record.tickets, saved, strict=True):
            ticket = reference()
            if ticket is None:
                continue
            if (ticket.shape, ticket.dtype) != (tensor.shape, tensor.dtype):
                raise RebuildMismatchError(
                    f"Rebuilding {record.name} saved a tensor {list(tensor.shape)} of {tensor.dtype} where the forward "
                    f"pass saved {list(ticket.shape)} of {ticket.dtype}. {REMEDY}"
                )
            ticket.tensor = tensor
            ticket.version = tensor._version
        self._handed_out = record

    def _retreat(self, update: Tensor) -> None:
        record = self._records[self.position - 1]
        possible = self.states.retreat(record.coefficients, update, record.side_information)
        if possible is not None:
            self.repeated.append((record.name, possible))
        record.side_information = None
        self.position -= 1
        if self.position == self._first_step:
            self._check()

    def _wind_forward(self) -> None:
        update = self._evaluate_again(self.position, [])
        record = self._records[self.position]
        record.side_information = self.states.advance(record.coefficients, update, keep_side_information=True)
        self.position += 1

    def _check(self) -> None:
        if self._checksum is not None:
            name = self._records[self.position].name
            self.repeated.insert(0, (name, (self.states.checksum() == self._checksum).all()))
        if not self.repeated:
            return
        names = [name for name, _ in self.repeated]
        repeated = torch.stack([equal.to(self.repeated[0][1].device) for _, equal in self.repeated])
        self.repeated.clear()
        # The device is waited for once.
        if not torch.equal(repeated, torch.ones_like(repeated)):
            name = names[repeated.tolist().index(False)]
            raise RebuildMismatchError(
                f"The backward pass rebuilt another input of {name} than the forward pass had, or evaluated it to "
                f"another result, so its gradients are wrong. {REMEDY}"
            )
