import pytest
import torch
from torch import nn

import revformers as rf
from revformers.models.parts import require_reversible
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


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 2**-15), (torch.float32, 2**-31)])
def test_layers_that_step_from_other_states_are_not_blamed_though_their_arguments_are_equal(dtype, size):
    """The noise is less than a step of the dtype at a state, so it may show in the state after that one only."""
    model = reversible("rebuild", dynamics=rf.BlendedMidpoint("1/4"), initializer_range=0.02).to(dtype)
    generator = torch.Generator()

    def change_an_element(module, given, output):
        output = output.clone()
        output.view(-1)[torch.randint(output.numel(), (), generator=generator)] += size
        return output

    model.model.layers[0].mlp.down_proj.register_forward_hook(change_an_element)
    for seed in range(12):
        generator.manual_seed(seed)
        found = rf.nondeterministic_modules(model, {"input_ids": torch.arange(10, 18)[None]}, repeats=1)
        assert found == ("model.layers.0.mlp.down_proj",), seed


def test_the_names_are_in_the_order_of_the_calls_whenever_they_were_found():
    model, passes = reversible("rebuild"), []
    model.register_forward_pre_hook(lambda *_: passes.append(None))
    for layer, differs in ((0, 3), (2, 2)):
        model.model.layers[layer].mlp.register_forward_hook(
            lambda module, given, output, differs=differs: output * (1 + 1e-3 * (len(passes) == differs))
        )
    assert rf.nondeterministic_modules(model, batch(model)) == ("model.layers.0.mlp", "model.layers.2.mlp")


class Nested(nn.Module):
    """Calls itself."""

    def forward(self, hidden, depth=1):
        return self(hidden * 2, depth - 1) + hidden if depth else hidden


def test_a_module_that_calls_itself_is_judged_by_the_arguments_of_each_call():
    model = reversible("rebuild")
    model.model.layers[1].mlp.act_fn = nested = Nested()
    disturb(model.model.layers[0].mlp, torch.Generator().manual_seed(0))
    assert rf.nondeterministic_modules(model, batch(model)) == ("model.layers.0.mlp",)
    disturb(nested, torch.Generator().manual_seed(0))
    assert "model.layers.1.mlp.act_fn" not in rf.nondeterministic_modules(model, batch(model)), "what it reads differs"


def test_the_model_keeps_what_its_own_passes_recorded():
    model = reversible("budget:rebuild")
    model(**batch(model)).loss.backward()
    stack, report = require_reversible(model), rf.budget_report(model)
    stack.largest_magnitude = 0.0
    assert rf.nondeterministic_modules(model, batch(model), repeats=1) == ()
    assert rf.budget_report(model) is report
    assert stack.largest_magnitude == 0.0


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(TypeError, match=r"A batch is a mapping of the model's arguments, such as .*, not Tensor"):
        rf.nondeterministic_modules(reversible("rebuild"), torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="is an ordinary network"):
        rf.nondeterministic_modules(tiny("llama"), {})
    with pytest.raises(ValueError, match="repeats is 0"):
        rf.nondeterministic_modules(reversible("rebuild"), {}, repeats=0)
