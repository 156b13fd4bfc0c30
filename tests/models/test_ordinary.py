import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import revformers as rf
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.tiny_models import batch, tiny


def adapted(model, **options):
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **options))


@pytest.mark.thorough
@pytest.mark.parametrize("dynamics", [rf.Hamiltonian(), rf.BlendedMidpoint("1/4")], ids=["hamiltonian", "blended"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "OlmoForCausalLM"])
def test_the_logits_are_those_of_the_original_to_the_bit(family, dynamics):
    model = tiny(family)
    inputs = {"input_ids": batch(model)["input_ids"]}
    original = model(**inputs).logits
    rf.make_reversible(model, dynamics)
    reversible = model(**inputs).logits
    with rf.ordinary(model) as same:
        assert same is model
        assert torch.equal(model(**inputs).logits, original)
    assert torch.equal(model(**inputs).logits, reversible)
    assert not torch.allclose(reversible, original, atol=1e-3)


@pytest.mark.thorough
def test_update_predictors_and_adapters_are_off():
    model = smooth_llama()
    original = copy.deepcopy(model)
    rf.convert(model, 0, TEXT)
    converted = model(TEXT).logits
    model = adapted(model)
    trained = model(input_ids=TEXT).logits
    with rf.ordinary(model):
        assert torch.equal(model(input_ids=TEXT).logits, original(TEXT).logits)
    assert torch.equal(model(input_ids=TEXT).logits, trained)
    assert not torch.allclose(trained, converted, atol=1e-3)
    assert not torch.allclose(converted, original(TEXT).logits, atol=1e-3)


def test_an_ordinary_model_stays_as_it_is():
    model = tiny("llama")
    inputs = batch(model)
    original = model(**inputs).logits
    with rf.ordinary(model):
        assert torch.equal(model(**inputs).logits, original)


def test_nested_blocks_and_exceptions_restore_what_was_in_place():
    model = tiny("llama")
    inputs = batch(model)
    original = model(**inputs).logits
    model = adapted(rf.make_reversible(model, rf.Midpoint()))
    trained = model(**inputs).logits
    with rf.ordinary(model):
        with pytest.raises(KeyError), rf.ordinary(model):
            raise KeyError
        assert torch.equal(model(**inputs).logits, original)
    assert torch.equal(model(**inputs).logits, trained)


def test_what_could_be_trained_before_can_be_trained_after_and_nothing_else():
    model = adapted(rf.make_reversible(tiny("llama"), rf.Midpoint()), modules_to_save=["lm_head"])
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with rf.ordinary(model):
        pass
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert rf.verify_gradients(model, batch(model)).bit_exact


def test_the_ordinary_network_can_be_trained():
    """Its gradients are those of transformers' own layers."""
    model = tiny("llama")
    twin = copy.deepcopy(model)
    rf.make_reversible(model, rf.Leapfrog())
    with rf.ordinary(model):
        model(**batch(model)).loss.backward()
    twin(**batch(twin)).loss.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
