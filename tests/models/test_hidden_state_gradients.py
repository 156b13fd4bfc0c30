"""Derivatives with respect to hidden states, and hooks on them, are those of the recurrence."""

import pytest
import torch

import revformers as rf
from lab.fuzz.reference import Recurrence
from tests.tiny_models import batch, tiny

DYNAMICS = [rf.Residual(), rf.Midpoint(), rf.Leapfrog(), rf.BlendedMidpoint("1/4"), rf.BlendedMidpoint("-3/2")]


def neox(**options):
    # Its norms compute in the dtype of the model, so that float64 is float64.
    return tiny("gpt_neox", initializer_range=0.2, attn_implementation="eager", **options).double()


def of_hidden_state(model, index):
    output = model(**batch(model), output_hidden_states=True)
    return torch.autograd.grad(output.loss, output.hidden_states[index])[0]


@pytest.mark.thorough
@pytest.mark.parametrize("dynamics", DYNAMICS, ids=lambda dynamics: dynamics.name)
@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("activations", ["store", "rebuild", "checkpoint"])
def test_the_derivative_with_respect_to_a_hidden_state_is_the_whole_one(dynamics, index, activations):
    if activations == "rebuild" and not dynamics.reversible:
        pytest.skip("has no inverse")
    plain = neox()
    with Recurrence(dynamics).on(plain.gpt_neox.layers):
        expected = of_hidden_state(plain, index)
    found = of_hidden_state(rf.make_reversible(neox(), dynamics, activations), index)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_stream_of_gradients_stays_wide_in_half_precision(dtype):
    """What the dtype of the hidden states cannot hold goes beside them: each gradient is rounded once, at the end."""
    wide = rf.make_reversible(tiny("gpt_neox", num_hidden_layers=24, initializer_range=0.02), rf.Midpoint())
    narrow = rf.make_reversible(tiny("gpt_neox", num_hidden_layers=24, initializer_range=0.02), rf.Midpoint()).to(dtype)
    with torch.no_grad():
        for mine, theirs in zip(wide.parameters(), narrow.parameters(), strict=True):
            mine.copy_(theirs)
    streams = []
    for model in (wide, narrow):
        # Layers that add nothing: all that is left of the backward pass is the stream.
        for layer in model.gpt_neox.layers:
            for parameter in (*layer.attention.dense.parameters(), *layer.mlp.dense_4h_to_h.parameters()):
                parameter.detach().zero_()
        embedded = torch.full((1, 4, 64), 0.25, dtype=next(model.parameters()).dtype, requires_grad=True)
        hidden = model.gpt_neox(inputs_embeds=embedded).last_hidden_state
        weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float32).view_as(hidden)
        (hidden.float() * weights.to(dtype).float()).sum().backward()
        streams.append(embedded.grad)
    assert torch.allclose(streams[1].float(), streams[0].to(dtype).float(), rtol=1e-2, atol=1e-3)


def test_a_hook_that_changes_the_gradient_of_a_hidden_state_is_obeyed():
    model = rf.make_reversible(neox(), rf.Midpoint())
    model.gpt_neox.layers[1].register_forward_hook(
        lambda module, inputs, output: output.register_hook(torch.zeros_like) and None
    )
    model(**batch(model)).loss.backward()
    # Of the two states that are read, the other one is left.
    assert model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.grad.count_nonzero() == 0
    assert model.gpt_neox.layers[0].mlp.dense_4h_to_h.weight.grad.count_nonzero() > 0


@pytest.mark.parametrize("leaf", [False, True], ids=["detached", "a new leaf"])
def test_a_hidden_state_that_is_detached_between_the_layers_is_refused(leaf):
    model = rf.make_reversible(neox(), rf.Midpoint())
    model.gpt_neox.layers[1].register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_(leaf))
    with pytest.raises(rf.NotReversibleError, match="between layers 1 and 2 of GPTNeoXModel detaches"):
        model(**batch(model))


def test_in_the_ordinary_network_it_ends_the_gradient():
    model = rf.make_reversible(neox(), rf.Residual(), "checkpoint")
    model.gpt_neox.layers[1].register_forward_hook(lambda module, inputs, output: output.detach())
    model(**batch(model)).loss.backward()
    assert model.gpt_neox.layers[2].mlp.dense_4h_to_h.weight.grad is not None
    assert model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.grad is None
