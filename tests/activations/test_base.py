from dataclasses import dataclass

import pytest

import revformers as rf
from revformers.engine.forward_pass import ForwardPass


@dataclass(frozen=True)
class Plain(rf.ActivationPolicy):
    """What a policy is that says nothing about itself."""

    name = "plain"
    keeps = "everything"

    def bind(self, steps_per_layer):
        return lambda states, steps: ForwardPass(states)


@dataclass(frozen=True)
class Inverting(Plain):
    name = "inverting"
    needs_inverse = True


def test_a_policy_evaluates_again_and_needs_no_inverse_unless_it_says_so():
    assert Plain().evaluates_again
    assert not Plain().needs_inverse
    Plain().check(rf.Residual())


def test_a_policy_without_options_is_its_name():
    assert str(Plain()) == "plain"
    assert Plain.from_text("") == Plain()
    with pytest.raises(ValueError, match="The activation policy \"plain\" has no options, but was given '5'"):
        Plain.from_text("5")


def test_dynamics_need_an_inverse_where_the_policy_does():
    Inverting().check(rf.Midpoint())
    with pytest.raises(ValueError, match=r"^Residual has no inverse to rebuild activations with"):
        Inverting().check(rf.Residual())


def test_a_policy_says_how_a_pass_begins():
    with pytest.raises(TypeError, match="bind"):
        rf.ActivationPolicy()
