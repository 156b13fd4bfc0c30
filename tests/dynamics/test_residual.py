from fractions import Fraction

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import revformers as rf
from revformers.dynamics import Coefficients


def test_it_is_the_ordinary_network_and_has_no_inverse():
    assert rf.Residual().coefficients(5) == Coefficients(Fraction(0), Fraction(1), 1.0)
    assert rf.Residual().recurrence == "p[l+1] = p[l] + f(p[l])"
    assert not rf.Residual().reversible
    with pytest.raises(ValueError, match="cannot be undone"):
        rf.Residual().side_information_bits(0)


def test_the_step_size_is_the_weight_of_the_update():
    assert rf.Residual(step_size=2).coefficients(5) == Coefficients(Fraction(0), Fraction(1), 2.0)
    assert rf.Residual(step_size=0.5).recurrence == "p[l+1] = p[l] + 0.5 f(p[l])"
    with pytest.raises(ValueError, match="positive finite step_size"):
        rf.Residual(step_size=0)


def test_only_the_default_is_the_ordinary_network():
    assert rf.Residual(granularity="branch", start="zero").ordinary
    assert not rf.Residual(step_size=2).ordinary
    assert not rf.Residual(readout="mean").ordinary


def test_scaling_the_updates_is_scaling_the_embedding_before_pre_norm_layers():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=32, rms_norm_eps=0.0)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double()
    tokens = torch.randint(32, (2, 7))
    rf.make_reversible(model, rf.Residual(step_size=4, granularity="branch"), "store")
    found = model(tokens).logits
    rf.make_residual(model)
    with torch.no_grad():
        model.get_input_embeddings().weight /= 4
    torch.testing.assert_close(found, model(tokens).logits)
