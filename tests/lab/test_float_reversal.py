"""The floating-point inverse, against ordinary autograd in float64 and against the network that the library makes."""

import copy

import pytest
import torch
from torch import nn

import revformers as rf
from lab.float_reversal import FloatStack, FloatStep, put_in_place
from lab.fuzz.reference import Recurrence
from tests.tiny_models import batch, tiny

DYNAMICS = [
    rf.Midpoint(),
    rf.Leapfrog(0.5),
    rf.BlendedMidpoint("1/2"),
    rf.BlendedMidpoint("-3/2", 0.5),
    rf.Hamiltonian(),
]


@pytest.fixture
def model():
    """A tiny Llama in float64 whose norms compute in float64; those of transformers compute in float32."""
    model = tiny("llama").double()
    for layer in [*model.model.layers, model.model]:
        for name, norm in list(layer.named_children()):
            if "norm" in name:
                own = nn.RMSNorm(norm.weight.shape[0], norm.variance_epsilon, dtype=torch.float64)
                own.load_state_dict(norm.state_dict())
                setattr(layer, name, own)
    return model


def gradients(model, dynamics, states, dtype=torch.float64):
    """The stack, the loss and the gradients of a copy of a model that runs a stack in float."""
    model = copy.deepcopy(model)
    stack = FloatStack(model.model.layers, dynamics, dtype, states)
    put_in_place(model, stack)
    loss = model(**batch(model), use_cache=False).loss
    loss.backward()
    return stack, loss.item(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("dynamics", DYNAMICS, ids=lambda dynamics: dynamics.recurrence)
def test_in_float64_the_inverse_gives_the_gradient_of_autograd(model, dynamics):
    _, loss, expected = gradients(model, dynamics, "autograd")
    for states, most in (("kept", 1e-15), ("inverse", 1e-10)):
        stack, same, found = gradients(model, dynamics, states)
        assert same == loss
        assert (found - expected).norm() < 1e-10 * expected.norm()
        assert max(stack.errors.values()) < most
        assert len(stack.errors) == len(dynamics.steps(len(model.model.layers)))


@pytest.mark.parametrize("dynamics", DYNAMICS, ids=lambda dynamics: dynamics.recurrence)
def test_a_wrong_inverse_is_seen(model, dynamics, monkeypatch):
    """The control of the test above: an inverse that is off by a millionth."""
    _, _, expected = gradients(model, dynamics, "autograd")
    retreat = FloatStep.retreat
    monkeypatch.setattr(FloatStep, "retreat", lambda *operands: retreat(*operands) * (1 + 1e-6))
    stack, _, found = gradients(model, dynamics, "inverse")
    assert max(stack.errors.values()) > 1e-7
    assert (found - expected).norm() > 1e-8 * expected.norm()


def test_in_float32_the_inverse_is_off(model):
    """A sixteenth of a state is added to a larger number, which forgets four bits of it, in every layer."""
    dynamics = rf.BlendedMidpoint("1/16")
    _, _, expected = gradients(model, dynamics, "autograd", torch.float32)
    kept, _, found_kept = gradients(model, dynamics, "kept", torch.float32)
    rebuilt, _, found = gradients(model, dynamics, "inverse", torch.float32)
    assert max(kept.errors.values()) == 0
    assert rebuilt.errors[0] > 1e-5
    assert (found - expected).norm() > 10 * (found_kept - expected).norm()


@pytest.mark.parametrize("dynamics", DYNAMICS, ids=lambda dynamics: dynamics.recurrence)
def test_it_is_the_network_of_the_library(model, dynamics):
    _, loss, found = gradients(model, dynamics, "inverse")
    rf.make_reversible(model, dynamics, rf.Store(), states="int64")
    with torch.enable_grad():
        own = model(**batch(model)).loss
    own.backward()
    expected = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    assert loss == pytest.approx(own.item(), rel=1e-7)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_it_is_the_recurrence_written_as_hooks(model):
    dynamics = rf.Leapfrog(0.5)
    _, loss, _ = gradients(model, dynamics, "autograd")
    with Recurrence(dynamics).on(model.model.layers):
        assert loss == pytest.approx(model(**batch(model)).loss.item(), rel=1e-12)
