"""A policy that is defined here works wherever the library's own do."""

from dataclasses import dataclass, replace

import pytest
import torch

import revformers as rf
from revformers import activations
from revformers.engine.forward_pass import ForwardPass
from revformers.engine.tape import Tape
from revformers.engine.ticket import kept
from tests.tiny_models import batch, tiny


@dataclass(frozen=True)
class EverySecond(rf.ActivationPolicy):
    """Store every second step, and checkpoint the others."""

    first: int = 0

    name = "every second"
    keeps = "every second layer"

    def bind(self, steps_per_layer):
        def begin(states, steps):
            return EverySecondPass(states, self.first)

        return begin

    @classmethod
    def from_text(cls, options):
        return cls(int(options or 0))

    def __str__(self):
        return f"{self.name}:{self.first}"


class EverySecondPass(ForwardPass):
    def __init__(self, states, number):
        super().__init__(states)
        self.number = number
        self.tape = Tape.without_states(states.current.device)

    def evaluate(self, name, coefficients, field, hidden):
        self.number += 1
        if self.number % 2:
            return field(hidden)
        return self.tape.evaluate(name, coefficients, field, hidden, keep=kept)


@dataclass(frozen=True)
class OwnRebuild(rf.Rebuild):
    """Rebuild by another name."""

    name = "own rebuild"


def own(**changes):
    """A policy that says less, or something else, than it has to."""
    members = {"name": "own", "keeps": "all", "bind": rf.Store.bind, "__annotations__": {"bytes": int}, "bytes": 1}
    return dataclass(frozen=True)(type("Own", (rf.ActivationPolicy,), members | changes))()


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def registered(monkeypatch):
    for policy in (EverySecond, OwnRebuild):
        monkeypatch.setitem(activations.ACTIVATIONS, policy.name, policy)


@pytest.mark.parametrize("policy", [EverySecond(), EverySecond(1), OwnRebuild()], ids=str)
def test_a_policy_of_ones_own_trains_to_the_same_gradients(policy):
    model = tiny("llama")
    inputs = batch(model)
    rf.make_reversible(model, rf.Midpoint(), activations=rf.Store())
    stored = gradients(model, inputs)
    rf.set_activations(model, policy)
    assert equal(gradients(model, inputs), stored)
    assert str(rf.describe(model)).count(policy.keeps) == 1
    evaluations = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: evaluations.append(None))
    gradients(model, inputs)
    handle.remove()
    assert len(evaluations) == (1 if policy == EverySecond(1) else 2), "the policy decides what is evaluated again"


def test_a_name_is_registered_for_one_policy_alone(monkeypatch):
    monkeypatch.delitem(activations.ACTIVATIONS, EverySecond.name, raising=False)
    with pytest.raises(ValueError, match="There is no activation policy 'every second'"):
        activations.parse_policy("every second:1")
    for _ in range(2):
        assert activations.register(EverySecond) is EverySecond
    assert activations.parse_policy("every second:1") == EverySecond(1)
    other = type("Other", (EverySecond,), {})
    with pytest.raises(ValueError, match="The name 'every second' belongs to EverySecond; give Other another one"):
        activations.register(other)
    del activations.ACTIVATIONS[EverySecond.name]


def test_an_option_that_its_text_leaves_out_is_refused_and_not_lost():
    rf.make_reversible(tiny("llama"), rf.Midpoint(), own())
    with pytest.raises(ValueError, match="Own is saved as the text 'own', which does not give an equal policy again"):
        activations.parse_policy(replace(own(), bytes=2))


def test_it_is_saved_by_its_text_and_loaded_where_it_is_registered(registered, tmp_path, monkeypatch):
    rf.make_reversible(tiny("llama"), rf.Midpoint(), "every second:1").save_pretrained(tmp_path)
    assert rf.describe(rf.from_pretrained(tmp_path)).activations == "every second:1"
    monkeypatch.delitem(activations.ACTIVATIONS, EverySecond.name)
    with pytest.raises(OSError, match="There is no activation policy 'every second'"):
        rf.from_pretrained(tmp_path)


@pytest.mark.parametrize("policy", [OwnRebuild(), rf.Rebuild(), rf.Budget("1GiB"), "rebuild", "budget:1GiB"], ids=str)
def test_a_policy_that_needs_an_inverse_is_refused_at_the_call(policy):
    with pytest.raises(ValueError, match="Residual has no inverse"):
        rf.make_reversible(tiny("llama"), rf.Residual(), activations=policy)
    model = rf.make_reversible(tiny("llama"), rf.Residual(), activations=EverySecond())
    with pytest.raises(ValueError, match="Residual has no inverse"):
        rf.set_activations(model, policy)
    assert rf.describe(model).activations == "every second:0"


def test_every_policy_is_written_as_text_and_read_back():
    for policy in (rf.Store(), rf.Checkpoint(), rf.Offload(), rf.Rebuild(), rf.Budget(0.5, "checkpoint")):
        assert activations.parse_policy(str(policy)) == policy
        assert activations.parse_policy(policy) is policy


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        ("rebuilt", ValueError, "There is no activation policy 'rebuilt'; choose one of store, .*budget"),
        ("rebuild:1", ValueError, 'The activation policy "rebuild" has no options'),
        (None, TypeError, "such as revformers.Rebuild"),
        (rf.Rebuild, TypeError, "such as revformers.Rebuild"),
        (own(name="store"), ValueError, "The name 'store' belongs to Store; give Own another one, and register it"),
        (own(name=None), TypeError, "Own needs a name"),
        (own(keeps=None), TypeError, "Own does not say what a forward pass keeps; set it in"),
        (own(__str__=lambda self: "nonsense"), ValueError, "Own is saved as the text 'nonsense', which does not give"),
        (own(from_text=classmethod(lambda cls, text: cls(bytes=5))), ValueError, "write its options in __str__"),
        (own(from_text=classmethod(lambda cls, text: cls(int(text)))), ValueError, "read them in from_text"),
    ],
)
def test_anything_else_is_refused(policy, error, message):
    with pytest.raises(error, match=message):
        rf.make_reversible(tiny("llama"), rf.Midpoint(), activations=policy)
