import pytest
import torch

import revformers as rf
from tests.test_exact_or_refused import reversible
from tests.tiny_models import batch, tiny


def disturb(part, generator):
    """Add noise of a generator of its own to what a part of the model returns."""
    part.register_forward_hook(lambda module, given, output: output + 1e-3 * torch.rand(1, generator=generator))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "model.layers.3.self_attn.q_proj", "model.norm"])
def test_the_innermost_module_that_does_not_repeat_itself_is_named(name):
    model = reversible("rebuild", dropout=0.2)
    random_state = torch.get_rng_state()
    assert rf.nondeterministic_modules(model, batch(model)) == ()
    disturb(model.get_submodule(name), torch.Generator().manual_seed(0))
    assert rf.nondeterministic_modules(model, batch(model)) == (name,)
    assert rf.describe(model).activations == "rebuild"
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_pre_hooks for module in model.model.layers[1].mlp.modules())


def test_what_no_module_computes_is_part_of_the_one_around_it():
    model = reversible("rebuild")
    generator = torch.Generator().manual_seed(0)
    mlp, activation = model.model.layers[2].mlp, torch.nn.functional.silu

    def forward(hidden):
        noise = 1 + 1e-3 * torch.rand(1, generator=generator)
        return mlp.down_proj(activation(mlp.gate_proj(hidden)) * mlp.up_proj(hidden) * noise)

    mlp.forward = forward
    assert rf.nondeterministic_modules(model, batch(model), repeats=1) == ("model.layers.2.mlp",)


def test_a_kernel_that_differs_now_and_then_is_found_by_repetition():
    model = reversible("rebuild")
    calls = []

    def differ(module, given, output):
        calls.append(None)
        return output * (1 + 1e-3 * (len(calls) == 4))

    model.model.layers[2].mlp.register_forward_hook(differ)
    assert rf.nondeterministic_modules(model, batch(model)) == ("model.layers.2.mlp",)


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="is an ordinary network"):
        rf.nondeterministic_modules(tiny("llama"), {})
    with pytest.raises(ValueError, match="repeats is 0"):
        rf.nondeterministic_modules(reversible("rebuild"), {}, repeats=0)
