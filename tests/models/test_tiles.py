import copy

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

import revformers as rf
from lab.bench.meter import peak_allocated_bytes
from revformers.models.tiles import set_mlp_tiles
from tests.tiny_models import FAMILIES, batch, tiny

WITHOUT_TILES = {"opt": "not a separate module", "mixtral": "Router", "qwen3_moe": "Experts", "gpt_oss": "Router"}


def step(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [*sorted(FAMILIES.keys() - WITHOUT_TILES.keys()), "MoshiForCausalLM"])
def test_every_family_computes_the_same_in_tiles(family):
    model = tiny(family, initializer_range=0.2)
    inputs = batch(model)
    loss, gradients = step(model, inputs)
    set_mlp_tiles(model, 5)
    tiled_loss, tiled_gradients = step(model, inputs)
    assert torch.allclose(tiled_loss, loss, rtol=1e-5)
    scale = max(gradient.abs().max() for gradient in gradients.values())
    assert tiled_gradients.keys() == gradients.keys()
    assert all((tiled_gradients[name] - gradients[name]).abs().max() < 1e-5 * scale for name in gradients)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "dynamics", [rf.Hamiltonian(), rf.BlendedMidpoint("1/4"), rf.TwoEvaluationMidpoint("1/2")], ids=lambda d: d.name
)
@pytest.mark.parametrize("autocast", [False, True])
def test_rebuilt_gradients_equal_stored_ones_to_the_bit(dynamics, autocast):
    model = rf.make_reversible(tiny("gpt2", dropout=0.1), dynamics)
    set_mlp_tiles(model, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert rf.verify_gradients(model, batch(model)).bit_exact


@pytest.mark.parametrize("more", [0, 1, 1000])
def test_a_batch_that_fits_into_one_tile_gives_the_gradients_without_tiles(more):
    model = tiny("llama", num_hidden_layers=2)
    inputs = batch(model)
    for change in (None, "store", "rebuild"):
        if change is not None:
            rf.make_reversible(model, rf.Midpoint(), change)
        set_mlp_tiles(model, None)
        loss, gradients = step(model, inputs)
        set_mlp_tiles(model, inputs["input_ids"].numel() + more)
        tiled_loss, tiled_gradients = step(model, inputs)
        assert torch.equal(tiled_loss, loss)
        assert all(torch.equal(tiled_gradients[name], gradients[name]) for name in gradients)


def test_adapters_on_frozen_layers_are_exact_in_tiles():
    model = tiny("llama", lora=True)
    rf.make_reversible(model, rf.Midpoint())
    set_mlp_tiles(model, 5)
    assert rf.verify_gradients(model, batch(model)).bit_exact


@pytest.mark.thorough
@pytest.mark.parametrize("activations", ["store", "checkpoint", "rebuild"])
def test_one_tile_of_inner_activations_exists_at_once(activations):
    model = tiny("llama", intermediate_size=4096, num_hidden_layers=2)
    inputs = {"input_ids": torch.randint(100, (2, 128))}

    def peak():
        return peak_allocated_bytes(lambda: model(**inputs).logits.sum().backward(), torch.device("cpu"))

    rf.make_reversible(model, rf.Midpoint(), activations)
    model.zero_grad()
    peak()  # makes the gradients, which stay
    without = peak()
    set_mlp_tiles(model, 16)
    inner = 2 * 128 * 4096 * 4
    # The gate, its activation, the other half and their product are kept of an MLP, of every layer where it is stored.
    assert without - peak() > 3 * inner * (2 if activations == "store" else 1)


def test_every_token_is_evaluated_once_and_again_in_the_backward_pass():
    model = tiny("llama", num_hidden_layers=1)
    set_mlp_tiles(model, 5)
    tokens = []
    model.model.layers[0].mlp.gate_proj.register_forward_hook(
        lambda module, inputs, output: tokens.append(output.shape[1])
    )
    loss = model(**batch(model)).loss
    assert tokens == [5, 5, 5, 5, 5, 5, 2]
    loss.backward()
    assert sorted(tokens) == sorted(2 * [5, 5, 5, 5, 5, 5, 2])


def test_tiles_can_be_changed_copied_and_taken_away():
    model = tiny("llama")
    inputs = batch(model)
    before = step(model, inputs)
    set_mlp_tiles(model, 5)
    set_mlp_tiles(model, 7)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.allclose(step(twin, inputs)[0], before[0], rtol=1e-5)
    set_mlp_tiles(twin, None)
    after = step(twin, inputs)
    assert torch.equal(after[0], before[0])
    assert all(torch.equal(after[1][name], before[1][name]) for name in before[1])


@pytest.mark.parametrize("family", WITHOUT_TILES)
def test_mlps_that_are_not_known_to_treat_every_token_apart_are_refused(family):
    model = tiny(family)
    with pytest.raises(ValueError, match=WITHOUT_TILES[family]):
        set_mlp_tiles(model, 5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_mistakes_are_named():
    model = tiny("llama")
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        set_mlp_tiles(model, 0)
    for tokens in (3.5, True, float("nan"), "8"):
        with pytest.raises(TypeError, match=f"A tile is a whole number of tokens, not {tokens!r}"):
            set_mlp_tiles(model, tokens)
    model.model.layers[1].mlp.forward = lambda hidden: hidden
    with pytest.raises(ValueError, match="replaced by another library"):
        set_mlp_tiles(model, 5)


def test_tiles_that_another_library_has_wrapped_change_with_the_others():
    model = tiny("llama")
    set_mlp_tiles(model, 5)
    mlp = model.model.layers[1].mlp
    add_hook_to_module(mlp, ModelHook())
    lengths = []
    mlp.down_proj.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[:2].numel()))
    for tokens, expected in ((20, [20, 12]), (None, [32])):
        set_mlp_tiles(model, tokens)
        lengths.clear()
        model(**batch(model))
        assert lengths == expected


def test_a_refusal_leaves_the_tiles_as_they_are():
    model = tiny("llama")
    set_mlp_tiles(model, 5)
    model.model.layers[1].mlp = model.model.layers[1].self_attn.o_proj
    with pytest.raises(ValueError, match="not a separate module"):
        set_mlp_tiles(model, 7)
    assert "forward" in vars(model.model.layers[0].mlp)
