import pytest
import torch

import revformers as rf
from revformers.errors import NotReversibleError, UserError
from revformers.models.parts import reversible_stack
from revformers.training.model import build_config, build_dynamics, build_model
from tests.training.tiny import tiny_recipe


def test_the_model_is_what_the_recipe_says(tmp_path):
    dynamics = {"name": "leapfrog", "activations": "checkpoint", "states": "int32:12"}
    model = build_model(tiny_recipe(tmp_path, {f"dynamics.{name}": value for name, value in dynamics.items()}))
    assert model.config.n_layer == 2
    assert model.config.vocab_size == 300  # of the tokenizer
    assert model.config.eos_token_id == 0
    stack = reversible_stack(model)
    assert stack.dynamics.name == "leapfrog"
    assert stack.activations == rf.Checkpoint()
    assert str(stack.states) == "int32:12"


def test_weights_depend_on_the_seed_and_on_nothing_else(tmp_path):
    torch.manual_seed(1)
    first = build_model(tiny_recipe(tmp_path)).state_dict()
    state = torch.get_rng_state()
    second = build_model(tiny_recipe(tmp_path)).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    other = build_model(tiny_recipe(tmp_path, {"model.seed": 1})).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_weights_in_bfloat16(tmp_path):
    model = build_model(tiny_recipe(tmp_path, {"model.dtype": "bfloat16"}))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_options_reach_the_dynamics(tmp_path):
    recipe = tiny_recipe(tmp_path, {"dynamics.name": "midpoint", "dynamics.options": {"readout": "mean"}})
    assert build_dynamics(recipe.dynamics).readout == "mean"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dynamics.name": "euler"}, "no dynamics called 'euler'"),
        ({"dynamics.options.step": 1}, "no option 'step'"),
        ({"dynamics.name": "residual"}, "no inverse"),
        ({"model.architecture": "lama"}, "no architecture 'lama'; did you mean 'llama'"),
        ({"model.architecture": "t5", "model.config": {}}, "no causal language model"),
        ({"model.config.n_layers": 3}, "has no 'n_layers'; did you mean 'n_layer'"),
        ({"model.config.n_layer": "two"}, "does not describe a gpt2"),
        ({"model.config.n_head": 5}, "model.config"),
        ({"model.config.n_embd": -32}, "from this model.config: "),
        (
            {"model.architecture": "llama", "model.config": {"hidden_size": 64, "pad_token_id": 5000}},
            "from this model.config: Padding_idx must be within num_embeddings",
        ),
        ({"data.block_length": 64}, "block_length is 64 tokens, but the model reads at most 48"),
    ],
)
def test_wrong_models_are_named_in_one_sentence(tmp_path, overrides, message):
    recipe = tiny_recipe(tmp_path, overrides)
    if "model.config" in overrides:  # instead of that of a gpt2
        recipe.model.config.clear()
        recipe.model.config.update(overrides["model.config"])
    with pytest.raises(UserError, match=message) as caught:
        build_model(recipe)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_reversible_says_so(tmp_path):
    recipe = tiny_recipe(tmp_path)
    recipe.model.config.clear()
    recipe.model.config.update(hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    object.__setattr__(recipe.model, "architecture", "mamba")
    with pytest.raises(NotReversibleError):
        build_model(recipe)


def test_a_default_that_is_longer_than_the_blocks_is_no_error(tmp_path):
    assert build_config(tiny_recipe(tmp_path, {"data.block_length": 48})).n_positions == 48
