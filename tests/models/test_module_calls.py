"""Every module of a layer is called with what the layer's own forward calls it with, by position or by name."""

from collections import defaultdict

import pytest
import torch
import transformers
from peft import AdaptionPromptConfig, get_peft_model
from torch import nn

import revformers as rf
from lab.survey import architectures
from lab.tiny import tiny_batch, tiny_model
from revformers.models.discovery import find_stack
from revformers.models.families import find_layout
from tests.tiny_models import FAMILIES, batch, tiny

SPECIAL = [
    "BailingHybridForCausalLM",
    "BambaForCausalLM",
    "FalconForCausalLM",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "JambaForCausalLM",
    "Lfm2ForCausalLM",
    "Llama4ForCausalLM",
    "MBartForCausalLM",
    "MusicgenForCausalLM",
    "PhiForCausalLM",
    "Qwen3NextForCausalLM",
]
"""Architectures whose layers pass on less, more or other things than they are given."""


def each_architecture(fast):
    rest = [name for name in architectures() if name not in fast]
    return pytest.mark.parametrize(
        "architecture", [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in rest)]
    )


def described(value):
    # OPT flattens the tokens of its MLP, which changes nothing.
    return (value.dtype, value.numel(), value.shape[-1:]) if isinstance(value, torch.Tensor) else type(value).__name__


def calls(model, inputs):
    """What every direct child of a layer was called with, in order: sizes of tensors, types of other values."""
    seen, hooks = defaultdict(list), []
    for index, layer in enumerate(find_stack(model).layers):
        for name, module in layer.named_children():

            def record(_module, arguments, keywords, key=(index, name)):
                by_name = {name: described(value) for name, value in keywords.items()}
                seen[key].append(([described(value) for value in arguments], by_name))

            hooks.append(module.register_forward_pre_hook(record, with_kwargs=True))
    with torch.no_grad():
        model.eval()(**inputs)
    for hook in hooks:
        hook.remove()
    return dict(seen)


def built(architecture):
    """A tiny model with a layout, or a skipped test."""
    torch.manual_seed(0)
    try:
        model = tiny_model(getattr(transformers, architecture))
        inputs = tiny_batch(model)
        model(**inputs)
        layers = find_stack(model).layers
    except Exception as error:  # the survey says why
        pytest.skip(f"not built, or refused: {error}")
    if any(find_layout(layer) is None for layer in layers):
        pytest.skip("a layer without a layout is called as a whole")
    return model, inputs


@each_architecture([*FAMILIES.values(), *SPECIAL])
def test_modules_are_called_as_the_layer_itself_calls_them(architecture):
    model, inputs = built(architecture)
    expected = calls(model, inputs)
    assert len(expected) >= 2 * len(find_stack(model).layers)
    assert calls(rf.make_reversible(model, rf.Residual(), "store"), inputs) == expected


def test_a_hook_that_changes_the_input_of_attention_by_its_name_works():
    model = tiny("llama").eval()
    inputs = batch(model)
    plain = model(**inputs).logits

    def double(_module, arguments, keywords):
        return arguments, keywords | {"hidden_states": 2 * keywords["hidden_states"]}

    model.model.layers[1].self_attn.register_forward_pre_hook(double, with_kwargs=True)
    expected = model(**inputs).logits
    assert not torch.equal(expected, plain)
    rf.make_reversible(model, rf.Residual(), "store")
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=2e-5)
    assert rf.verify_gradients(rf.make_reversible(model.train(), rf.Midpoint()), inputs).bit_exact


@pytest.mark.parametrize("dynamics", [rf.Midpoint(), rf.Hamiltonian()], ids=["block", "branch"])
def test_adaption_prompts_of_peft_are_trained_exactly(dynamics):
    model = get_peft_model(tiny("llama"), AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if name.endswith("adaption_gate"):
            nn.init.ones_(parameter)
    report = rf.verify_gradients(rf.make_reversible(model, dynamics), batch(model))
    assert report.bit_exact
    assert report.parameters == 4


def test_a_layer_that_does_not_call_its_attention_is_refused():
    model = tiny("llama")

    class Derived(type(model.model.layers[0])):
        def forward(self, hidden_states, **_):
            return hidden_states

    layer = model.model.layers[0]
    layout = find_layout(layer)
    layer.__class__ = Derived
    with pytest.raises(rf.NotReversibleError, match="Derived does not call its self_attn"):
        layout.attention_call(layer, {})
