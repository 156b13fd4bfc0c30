import contextlib
import inspect
from dataclasses import replace

import pytest
import torch

import revformers as rf
from revformers.models.attach import activations_set_to, add_update_predictors, attach, check, detach
from revformers.models.discovery import find_stack
from revformers.models.identity import Identity
from revformers.models.update_predictor import PredictorForm
from tests.test_reversible import llama


@pytest.fixture
def model():
    return llama()


def test_gradient_checkpointing_is_not_added_in_silence(model):
    model.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="activation policy decides"):
        rf.make_reversible(model, rf.Midpoint())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    with pytest.warns(UserWarning, match="activation policy decides"):
        model.gradient_checkpointing_enable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_detaching_gives_everything_back(model):
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    identity = Identity(
        dynamics=rf.Midpoint(), activations=rf.Store(), predictor_form=PredictorForm(("state", "previous_mlp"), rank=2)
    )
    assert attach(model, identity).number_of_layers == 4
    assert [layer._reversible_role.index for layer in model.model.layers] == [0, 1, 2, 3]
    assert inspect.signature(model.model.forward) == inspect.signature(type(model.model).forward.__get__(model.model))
    detach(find_stack(model))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_the_first_layer_has_no_layer_before_it_to_predict_from(model):
    attach(model, Identity(dynamics=rf.BlendedMidpoint("1/2"), activations=rf.Store()))
    predictors = add_update_predictors(model.to(torch.bfloat16), PredictorForm(("state", "previous_update")))
    assert [predictor.form.features for predictor in predictors] == [("state",), *[("state", "previous_update")] * 3]
    assert {parameter.dtype for predictor in predictors for parameter in predictor.parameters()} == {torch.bfloat16}


def test_a_model_that_steps_by_branch_gets_no_predictors(model):
    by_branch = Identity(dynamics=rf.Midpoint(granularity="branch"), activations=rf.Store())
    with pytest.raises(ValueError, match="Update predictors correct steps by block"):
        attach(model, replace(by_branch, predictor_form=PredictorForm()))
    assert not hasattr(model.model, "_reversible_stack"), "it stays what it was"
    attach(model, by_branch)
    with pytest.raises(ValueError, match="Midpoint steps by branch here"):
        add_update_predictors(model, PredictorForm())


@pytest.mark.parametrize("policy", [rf.Checkpoint(), "no policy"])
def test_a_policy_for_a_block_leaves_nothing_behind(model, policy):
    stack = attach(model, Identity(dynamics=rf.Midpoint(), activations=rf.Store()))
    report = object()
    stack.budget_report, stack.largest_magnitude = report, 3.0
    with contextlib.suppress(ValueError, KeyError), activations_set_to(model, policy):
        assert stack.activations == policy
        stack.largest_magnitude = 4.0
        raise KeyError
    assert (stack.activations, stack.budget_report, stack.largest_magnitude) == (rf.Store(), report, 3.0)


@pytest.mark.parametrize("attached", [False, True])
def test_a_forward_of_another_library_is_refused(model, attached):
    identity = Identity(dynamics=rf.Midpoint(), activations=rf.Store())
    if attached:
        attach(model, identity)
    model.model.layers[2].forward = lambda hidden, **_: hidden
    with pytest.raises(ValueError, match="was wrapped by another" if attached else "was replaced by another"):
        detach(find_stack(model)) if attached else attach(model, identity)
    assert hasattr(model.model, "_reversible_stack") == attached, "it stays what it was"


@pytest.mark.parametrize(
    ("dynamics", "policy", "message"),
    [
        (rf.Residual(), rf.Rebuild(), "no inverse"),
        (rf.BlendedMidpoint([0.5] * 3), rf.Store(), "3 blends for a model of 4 layers"),
    ],
)
def test_dynamics_must_go_with_the_policy_and_the_depth(model, dynamics, policy, message):
    with pytest.raises(ValueError, match=message):
        check(model, Identity(dynamics=dynamics, activations=policy))


def test_dynamics_must_not_have_the_name_of_others(model):
    own = type("Own", (rf.Leapfrog,), {"name": "midpoint"})
    with pytest.raises(ValueError, match="The name 'midpoint' belongs to Midpoint; give Own another one, and register"):
        check(model, Identity(dynamics=own(), activations=rf.Store()))
