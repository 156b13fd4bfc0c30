import copy
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import revformers as rf
from revformers.conversion.allocation import BlendCosts, measure_blend_costs, uniform_blends
from revformers.hf.attach import add_update_predictors
from revformers.hf.state import require_reversible
from revformers.update_predictor import PredictorForm
from tests.conversion.test_convert import BATCHES, TEXT, distance, smooth_llama

BLENDS = [Fraction(sign, 2**bits) for sign in (1, -1) for bits in (0, 1, 3)]
BITS = {blend: {1: 0, 2: 1, 8: 3}[abs(blend).denominator] for blend in BLENDS}


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=len(BLENDS), max_size=len(BLENDS)), min_size=1, max_size=4),
    st.floats(0, 3),
)
def test_the_knapsack_is_solved_as_by_trying_everything(table, bits):
    costs = BlendCosts(tuple(dict(zip(BLENDS, row, strict=True)) for row in table))
    chosen = costs.choose(bits)
    capacity = bits * len(table) + 1e-9
    assert sum(BITS[blend] for blend in chosen) <= capacity
    every = itertools.product(BLENDS, repeat=len(table))
    best = min(costs.predicted(blends) for blends in every if sum(BITS[blend] for blend in blends) <= capacity)
    assert costs.predicted(chosen) == pytest.approx(best)


def test_a_budget_is_met_in_the_mean():
    assert uniform_blends(0, 3) == [1, 1, 1]
    assert uniform_blends(2, 2) == [Fraction(1, 4)] * 2
    for bits in (0.25, 0.5, 1.75, 3.1):
        blends = uniform_blends(bits, 40)
        spent = [rf.BlendedMidpoint(blend).side_information_bits(0) for blend in blends]
        assert sum(spent) / 40 == pytest.approx(bits)
        assert max(spent) - min(spent) <= 1


def test_the_costs_are_those_of_one_blended_layer_among_ordinary_ones():
    """Layer 3 at a = 1/2, by hand: hidden states of the ordinary network, then its own layers."""
    original = smooth_llama()
    with torch.no_grad():
        output = original(TEXT, output_hidden_states=True)
        states = output.hidden_states
        hidden = states[4] - 0.5 * (states[3] - states[2])  # p[4] less a times the last update
        positions = original.model.rotary_emb(hidden, torch.arange(TEXT.shape[1])[None])
        for layer in original.model.layers[4:]:
            hidden = layer(hidden, position_embeddings=positions)
        logits = original.lm_head(original.model.norm(hidden))
        expected = functional.kl_div(
            logits.log_softmax(-1), output.logits.log_softmax(-1), log_target=True, reduction="none"
        )
    model = rf.make_reversible(copy.deepcopy(original), rf.Midpoint())
    costs = measure_blend_costs(model, BATCHES)
    assert costs.divergence[3][Fraction(1, 2)] == pytest.approx(expected.sum(-1).mean().item(), rel=1e-3)
    # The first layer's last update is nothing: p[-1] = p[0].
    assert max(costs.divergence[0].values()) < 1e-9 < min(costs.divergence[3].values())
    assert require_reversible(model).dynamics == rf.Midpoint()


def test_predictors_lower_the_costs_and_keep_their_scale():
    alone, corrected = smooth_llama(), smooth_llama()
    rf.convert(corrected, 0, TEXT, trajectory="original")
    rf.make_reversible(alone, rf.Midpoint())
    added = add_update_predictors(alone, PredictorForm())  # they predict nothing yet
    without, fitted = (measure_blend_costs(model, BATCHES).predicted([1] * 6) for model in (alone, corrected))
    assert fitted < 0.2 * without
    assert {predictor.scale for predictor in added} == {1.0}


def test_finer_blends_cost_a_quarter_a_bit():
    costs = measure_blend_costs(rf.make_reversible(smooth_llama(), rf.Midpoint()), BATCHES).divergence[2]
    assert costs[Fraction(1, 16)] == pytest.approx(costs[Fraction(1, 4)] / 16)
    # What is extrapolated there is what measuring finds, to a few percent: the cost is a square in a.
    assert costs[Fraction(1, 4)] == pytest.approx(costs[Fraction(1, 2)] / 4, rel=0.1)


@pytest.mark.parametrize("predictor", ["none", "update"])
def test_calibrated_blends_do_no_worse_than_uniform_ones(predictor):
    model = smooth_llama()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(6)  # one layer whose update is expensive to forget
    uniform, calibrated = copy.deepcopy(model), copy.deepcopy(model)
    rf.convert(uniform, 1, TEXT, predictor=predictor)
    chosen = rf.convert(calibrated, 1, TEXT, predictor=predictor, allocation="calibrated")
    assert distance(model, calibrated) < distance(model, uniform)
    assert chosen.bits <= 1
    assert math.isfinite(chosen.predicted_loss)
    blends = chosen.dynamics.blend
    assert abs(blends[3]) < max(map(abs, blends)), "the layer after the expensive update gets a finer blend"
    assert rf.verify_gradients(calibrated, {"input_ids": TEXT[:2]}).bit_exact
