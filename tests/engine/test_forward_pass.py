from fractions import Fraction

import torch

from revformers.dynamics.base import Coefficients
from revformers.engine.fixed_point import INT64
from revformers.engine.forward_pass import ForwardPass
from revformers.engine.states import StatePair


def test_a_field_is_evaluated_once_in_ordinary_autograd_and_the_states_advance():
    hidden, calls = torch.tensor([[[0.5, -2.0]]], requires_grad=True), []

    def field(hidden):
        calls.append(hidden)
        return hidden**2

    forward_pass = ForwardPass(StatePair(*(INT64.quantise(hidden.detach()) for _ in range(2)), INT64))
    coefficients = Coefficients(Fraction(1), Fraction(0), 2.0)
    update = forward_pass.evaluate("layer 0", coefficients, field, hidden)
    forward_pass.advance(coefficients, update.detach())
    assert forward_pass.states.read_current(torch.float32).tolist() == [[[1.0, 6.0]]]
    update.sum().backward()
    assert hidden.grad.tolist() == [[[1.0, -4.0]]]
    assert len(calls) == 1
    assert forward_pass.report is None
