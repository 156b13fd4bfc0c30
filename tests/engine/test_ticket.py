import contextlib

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from revformers.engine.ticket import Packed, SavedTensor, kept, packed_by


class Rebuilder:
    """Stands for a tape: hands the ticket what it is given."""

    def __init__(self, tensor):
        self.lock, self.tensor, self.calls = contextlib.nullcontext(), tensor, []

    def rebuild(self, step, source=None):
        self.calls.append((step, source))
        self.ticket.tensor, self.ticket.version = self.tensor, self.tensor._version


def ticket_for(tensor):
    tape = Rebuilder(tensor)
    tape.ticket = SavedTensor(tape, 3, object(), 0, tensor)
    return tape, tape.ticket


def test_a_ticket_holds_a_shape_and_has_its_tensor_rebuilt_when_it_is_asked_for():
    tape, ticket = ticket_for(torch.ones(2, 3, dtype=torch.bfloat16))
    assert (ticket.shape, ticket.dtype, ticket.tensor) == ((2, 3), torch.bfloat16, None)
    assert ticket.redeem() is tape.tensor
    assert ticket.redeem() is tape.tensor
    assert tape.calls == [(3, None)], "once"
    ticket.let_go()
    ticket.source = kept(tape.tensor)
    assert ticket.redeem() is tape.tensor
    assert tape.calls[1:] == [(3, ticket.source)]


def test_a_tensor_that_was_written_to_after_it_was_rebuilt_is_refused():
    _, ticket = ticket_for(torch.ones(2, 3))
    ticket.redeem().add_(1)
    with pytest.raises(RuntimeError, match=r"A tensor \[2, 3\] .* modified in place after it had been rebuilt"):
        ticket.redeem()


def test_a_kept_input_is_returned_until_it_or_a_view_of_it_is_written_to():
    hidden = torch.ones(2, 3)
    source = kept(hidden)
    assert source() is hidden
    hidden[0].add_(1)
    assert source() is None


def test_what_a_node_holds_is_known_where_this_library_packed_it():
    packed = Packed(object(), 0)
    with saved_tensors_hooks(lambda _: packed, lambda _: None):
        ours = torch.ones(2, requires_grad=True).sin()
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        others = torch.ones(2, requires_grad=True).sin()
    assert packed_by(ours.grad_fn, "self") is packed
    assert packed_by(ours.grad_fn, "other") is None
    assert packed_by(others.grad_fn, "self") is None
    assert packed_by(torch.ones(2, requires_grad=True).sin().grad_fn, "self") is None
