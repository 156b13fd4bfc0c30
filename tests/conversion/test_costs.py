import copy

import pytest
import torch
from torch.nn import functional

import revformers as rf
from revformers.conversion.costs import measure_layer_costs
from revformers.conversion.fit import fit_last_updates
from revformers.models.attach import add_update_predictors
from revformers.models.parts import update_predictors
from revformers.models.update_predictor import PredictorForm
from tests.conversion.test_convert import TEXT, distance, smooth_llama

MANY = [{"input_ids": TEXT.repeat(40, 1)}]
"""The cost is a mean over tokens that are drawn: many of them, for a mean that is near its expectation."""


def divergence_of_single_tokens(model, layer, stays):
    """Mean over tokens t of KL(original || one with a small part of the last update more at t) over the square of
    that part, where it stays in the stream behind the layer or is read by the layer: half of the Fisher information,
    by finite differences, from layers of transformers alone.
    """
    part = 1e-2
    with torch.no_grad():
        output = model(TEXT, output_hidden_states=True)
        states = output.hidden_states
        last = states[layer] - states[layer - 1]
        positions = model.model.rotary_emb(last, torch.arange(TEXT.shape[1])[None])
        total = 0.0
        for token in range(TEXT.shape[1]):
            error = torch.zeros_like(last)
            error[:, token] = part * last[:, token]
            hidden = model.model.layers[layer](states[layer] + (0 if stays else error), position_embeddings=positions)
            hidden = hidden + (error if stays else -error)
            for following in model.model.layers[layer + 1 :]:
                hidden = following(hidden, position_embeddings=positions)
            logits = model.lm_head(model.model.norm(hidden))
            total += functional.kl_div(
                logits.double().log_softmax(-1),
                output.logits.double().log_softmax(-1),
                log_target=True,
                reduction="sum",
            ).item()
    return total / TEXT.numel() / part**2


@pytest.mark.thorough
def test_the_cost_of_a_layer_is_half_its_fisher_information():
    model = smooth_llama()
    expected = [[divergence_of_single_tokens(model, layer, stays) for layer in (1, 3)] for stays in (False, True)]
    costs = measure_layer_costs(rf.make_reversible(model, rf.Midpoint()), MANY)
    assert [costs.read[1], costs.read[3]] == pytest.approx(expected[0], rel=0.1)
    assert [costs.kept[1], costs.kept[3]] == pytest.approx(expected[1], rel=0.1)
    # The first layer's last update is nothing: p[-1] = p[0].
    assert costs.read[0] == costs.kept[0] == 0


@pytest.mark.thorough
def test_what_the_state_tells_of_the_last_update_costs_nothing():
    alone, known = smooth_llama(), smooth_llama()
    rf.make_reversible(known, rf.BlendedMidpoint(1))
    fit_last_updates(known, add_update_predictors(known, PredictorForm(("state",))), [{"input_ids": TEXT}])
    without = measure_layer_costs(rf.make_reversible(alone, rf.BlendedMidpoint(1)), MANY)
    fitted = measure_layer_costs(known, MANY)
    assert fitted.predicted([1] * 6) < 0.7 * without.predicted([1] * 6)


@pytest.mark.thorough
def test_measuring_changes_neither_the_model_nor_the_random_state_nor_gradients():
    model = smooth_llama()
    rf.convert(model, 0, TEXT)
    weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    before = model(TEXT).logits
    first, again = (measure_layer_costs(model, [{"input_ids": TEXT}]) for _ in range(2))
    assert first == again
    assert first != measure_layer_costs(model, [{"input_ids": TEXT}], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(TEXT).logits, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(update_predictors(model)) == 6


@pytest.mark.thorough
@pytest.mark.parametrize("predictor", ["none", "state", "update"])
def test_calibrated_blends_do_no_worse_than_uniform_ones(predictor):
    model = smooth_llama()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(6)  # one layer whose update is expensive to forget
    uniform, calibrated = copy.deepcopy(model), copy.deepcopy(model)
    rf.convert(uniform, 1, TEXT, predictor=predictor, allocation="uniform")
    chosen = rf.convert(calibrated, 1, TEXT, predictor=predictor)
    # With predictors the two are near each other here.
    assert distance(model, calibrated) < (1 if predictor == "none" else 1.1) * distance(model, uniform)
    assert chosen.bits <= 1
    blends = chosen.dynamics.blend
    assert blends[2] == min(blends) < max(blends[1:]), "the layer that answers most to what it reads has the finest"
    assert rf.verify_gradients(calibrated, {"input_ids": TEXT[:2]}).bit_exact
