"""Layers whose code is not that of transformers, and what is done to the list of layers after `make_reversible`."""

import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import revformers as rf
from revformers.models.families import find_layout
from tests.tiny_models import batch, tiny


class Doubled(LlamaDecoderLayer):
    """Adds half of its input once more."""

    def forward(self, hidden_states, **keywords):
        return LlamaDecoderLayer.forward(self, hidden_states, **keywords) + 0.5 * hidden_states


class Renamed(LlamaDecoderLayer):
    """Has no forward of its own, as the classes that FSDP makes."""


class InPlace(LlamaDecoderLayer):
    """Writes its output to its input."""

    def forward(self, hidden_states, **keywords):
        hidden_states += LlamaDecoderLayer.forward(self, hidden_states, **keywords) - hidden_states
        return hidden_states


def with_layers(kind):
    model = tiny("llama")
    for layer in model.model.layers:
        layer.__class__ = kind
    return model


def logits(model, **inputs):
    with torch.no_grad():
        return model(**batch(model) | inputs).logits


def test_the_forward_of_a_subclass_is_what_a_layer_computes():
    expected = logits(with_layers(Doubled))
    model = rf.make_reversible(with_layers(Doubled), rf.Residual(), "checkpoint")
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert not torch.allclose(logits(tiny("llama")), expected, atol=1e-2)
    assert find_layout(model.model.layers[0]) is None
    with pytest.raises(rf.NotReversibleError, match="where Doubled splits into attention and MLP is not known"):
        rf.make_reversible(with_layers(Doubled), rf.Hamiltonian())
    assert rf.verify_gradients(rf.make_reversible(model, rf.Midpoint()), batch(model)).bit_exact


@pytest.mark.parametrize("wraps", [False, True], ids=["own function", "functools.wraps"])
def test_so_is_a_forward_that_was_patched(monkeypatch, wraps):
    own = LlamaDecoderLayer.forward

    def patched(self, hidden_states, **keywords):
        return own(self, hidden_states, **keywords) + 0.5 * hidden_states

    model = rf.make_reversible(tiny("llama"), rf.Residual(), "store")
    assert find_layout(model.model.layers[0]) is not None
    monkeypatch.setattr(LlamaDecoderLayer, "forward", functools.wraps(own)(patched) if wraps else patched)
    assert find_layout(model.model.layers[0]) is None
    assert torch.allclose(logits(model), logits(tiny("llama")), atol=1e-5)


def test_a_subclass_without_a_forward_keeps_its_branches():
    assert find_layout(with_layers(Renamed).model.layers[0]) is find_layout(tiny("llama").model.layers[0])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_layer_that_writes_to_its_input_is_refused(mode):
    model = rf.make_reversible(with_layers(InPlace), rf.Residual(), "store")
    with mode(), pytest.raises(rf.NotReversibleError, match="InPlace writes to its input in place"):
        model(**batch(model))


def test_in_inference_mode_it_is_right():
    """There PyTorch counts no writes."""
    model = rf.make_reversible(with_layers(InPlace), rf.Residual(), "store")
    with torch.inference_mode():
        found = model(**batch(model)).logits
    assert torch.allclose(found, logits(tiny("llama")), atol=1e-5)


@pytest.mark.parametrize("change", ["append", "replace", "remove"])
def test_a_list_of_layers_that_has_changed_is_refused(change):
    model = tiny("llama")
    plain = copy.deepcopy(model.model.layers[0])
    rf.make_reversible(model, rf.Midpoint())
    if change == "append":
        model.model.layers.append(plain)
    elif change == "replace":
        model.model.layers[2] = plain
    else:
        del model.model.layers[2]
    with pytest.raises(rf.NotReversibleError, match="The layers of LlamaModel are not the 4 that were made reversible"):
        model(**batch(model))


def test_a_head_called_decoder_may_have_an_adapter():
    model = tiny("ModernBertDecoderForCausalLM")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["Wqkv", "decoder"], init_lora_weights=False))
    assert rf.verify_gradients(rf.make_reversible(model, rf.Midpoint()), batch(model)).bit_exact
