import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import revformers as rf
from revformers.models import hint
from tests.conversion.test_convert import TEXT, smooth_llama


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    smooth_llama().save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def not_yet_given(monkeypatch):
    monkeypatch.setattr(hint, "_given", False)


@pytest.fixture
def silent():
    """Any hint is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", rf.errors.ConversionHint)
        yield


def load(path):
    return AutoModelForCausalLM.from_pretrained(path)


FAR = [
    rf.Midpoint(),
    rf.Leapfrog(),
    rf.Hamiltonian(),
    rf.BlendedMidpoint(1 / 4),
    rf.BlendedMidpoint(-1 / 4),
    rf.BlendedMidpoint([1 / 16] * 5 + [1]),
]


@pytest.mark.parametrize("dynamics", FAR, ids=lambda dynamics: dynamics.recurrence)
def test_dynamics_far_from_those_of_the_pretraining_are_warned_of_once(pretrained, dynamics):
    with pytest.warns(rf.errors.ConversionHint, match=r"pretrained weights .* revformers\.convert") as caught:
        rf.make_reversible(load(pretrained), dynamics)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", rf.errors.ConversionHint)
        rf.make_reversible(load(pretrained), dynamics)


def test_a_copy_and_an_adapter_of_a_pretrained_model_are_warned_of(pretrained, monkeypatch):
    lora = get_peft_model(load(pretrained), LoraConfig(r=2, target_modules="all-linear"))
    for model in (copy.deepcopy(load(pretrained)), lora):
        monkeypatch.setattr(hint, "_given", False)
        with pytest.warns(rf.errors.ConversionHint):
            rf.make_reversible(model, rf.Midpoint())


@pytest.mark.usefixtures("silent")
def test_what_is_near_or_knows_nothing_is_not_warned_of(pretrained):
    rf.make_reversible(load(pretrained), rf.BlendedMidpoint(1 / 8))
    rf.make_reversible(load(pretrained), rf.TwoEvaluationMidpoint(-1 / 16))
    rf.make_reversible(load(pretrained), rf.Residual(), "store")
    rf.make_reversible(smooth_llama(), rf.Midpoint())
    rf.make_reversible(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(pretrained)), rf.Midpoint())


@pytest.mark.thorough
@pytest.mark.usefixtures("silent")
def test_conversions_and_saved_reversible_models_are_not_warned_of(pretrained, tmp_path):
    model = load(pretrained)
    rf.convert(model, 0, TEXT)
    model.save_pretrained(tmp_path)
    loaded = rf.from_pretrained(tmp_path)
    assert torch.equal(loaded(TEXT).logits, model(TEXT).logits)
    rf.make_reversible(loaded, rf.Midpoint())
    rf.make_reversible(load(tmp_path), rf.Leapfrog())


@pytest.mark.thorough
def test_new_dynamics_take_update_predictors_with_a_warning():
    model = smooth_llama()
    rf.convert(model, 1, TEXT)
    with pytest.warns(UserWarning, match="update predictors of LlamaForCausalLM .* are removed"):
        rf.make_reversible(model, rf.BlendedMidpoint("1/16"))
    assert rf.describe(model).predictors == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rf.make_reversible(model, rf.BlendedMidpoint("1/4"))  # there are none to lose
        rf.convert(rf.make_residual(model), 1, TEXT)
