import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import revformers as rf
from revformers.head.teacher import AdapterOff, FrozenCopy
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.tiny_models import batch, tiny


def adapted(model, **options):
    options = {"target_modules": "all-linear", "lora_dropout": 0.5, "init_lora_weights": False, **options}
    return get_peft_model(model, LoraConfig(r=2, **options)).train()


def logits(teacher, inputs):
    hidden = teacher.hidden(inputs)
    assert hidden.shape[:2] == inputs["input_ids"].shape
    assert not hidden.requires_grad
    result = teacher.logits(hidden.flatten(0, 1)[3:10])
    assert not result.requires_grad
    return result


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2", "opt"])
def test_a_copy_keeps_the_weights_that_the_model_had(family):
    model = tiny(family, dropout=0.5, initializer_range=0.2)
    inputs = batch(model)
    expected = copy.deepcopy(model).eval()(**inputs).logits.flatten(0, 1)[3:10]
    teacher = FrozenCopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.allclose(logits(teacher, inputs), expected, atol=1e-5)
    assert expected.std() > 0.1


def test_a_copy_of_a_reversible_model_is_the_ordinary_network():
    model = tiny("llama")
    inputs = batch(model)
    expected = model(**inputs).logits.flatten(0, 1)[3:10]
    rf.make_reversible(model, rf.Midpoint())
    assert torch.allclose(logits(FrozenCopy(model), inputs), expected, atol=1e-5)
    assert not torch.allclose(model(**inputs).logits.flatten(0, 1)[3:10], expected, atol=1e-3)


def test_a_copy_goes_where_the_batch_is():
    teacher = FrozenCopy(tiny("llama"))
    # A mask of four dimensions is taken as it is, so that nothing asks for values, which this device has none of.
    batch = {
        "input_ids": torch.zeros(2, 5, dtype=torch.int64, device="meta"),
        "attention_mask": torch.zeros(2, 1, 5, 5, device="meta"),
    }
    assert teacher.hidden(batch).device.type == "meta"


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4"])
def test_adapters_that_hold_a_part_of_the_weights_are_refused(start):
    model = adapted(tiny("llama"), init_lora_weights=start)
    with pytest.raises(ValueError, match="AdapterOff is not the original network, because init_lora_weights moved"):
        AdapterOff(model)
    AdapterOff(adapted(tiny("llama"), init_lora_weights="gaussian"))


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, {"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_student_without_its_adapters_is_the_original(options):
    original = smooth_llama().eval()
    model = copy.deepcopy(original)
    rf.convert(model, 0, TEXT)
    model = adapted(model, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "update_predictor" in name:
                parameter.add_(0.1)
    modes = {name: module.training for name, module in model.named_modules()}
    expected = original(input_ids=TEXT).logits.flatten(0, 1)[3:10]
    teacher = AdapterOff(model)
    assert torch.allclose(logits(teacher, {"input_ids": TEXT}), expected, atol=1e-5)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert any(modes.values())
    assert not torch.allclose(model.eval()(input_ids=TEXT).logits.flatten(0, 1)[3:10], expected, atol=1e-3)


def test_a_teacher_that_would_change_with_training_is_refused():
    with pytest.raises(ValueError, match="takes a PEFT model, not LlamaForCausalLM"):
        AdapterOff(tiny("llama"))
    model = adapted(tiny("llama"))
    AdapterOff(model)
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"norm\.weight is trained and is not an adapter"):
        AdapterOff(model)


def test_update_predictors_may_be_trained_beside_adapters():
    model = smooth_llama()
    rf.convert(model, 0, TEXT)
    model = adapted(model, target_modules=["q_proj"])
    for name, parameter in model.named_parameters():
        if "update_predictor" in name:
            parameter.requires_grad_(True)
    AdapterOff(model)


def test_a_copy_of_an_adapted_model_is_refused():
    with pytest.raises(ValueError, match="takes a model without adapters, not PeftModel"):
        FrozenCopy(adapted(tiny("llama")))


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_batch_that_goes_on_from_a_cache_is_refused(name):
    model = tiny("llama")
    with torch.no_grad():
        cache = model(**batch(model), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="whole sequences"):
        FrozenCopy(model).hidden(batch(model) | {name: cache})
