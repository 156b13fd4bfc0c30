import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import revformers as rf
from revformers.analysis import analyze
from revformers.analysis.analyze import spread_layers
from revformers.analysis.hamiltonian import product_roots
from revformers.analysis.linear import forward_growth, inverse_growth
from revformers.analysis.walk import steps_of, walk
from revformers.models.attach import add_update_predictors
from revformers.models.parts import reversible_stack
from revformers.models.update_predictor import PredictorForm
from revformers.models.visit import layer_calls
from tests.tiny_models import batch, tiny

DYNAMICS = ["residual", "midpoint", "leapfrog", "blended_midpoint", "hamiltonian"]


def text(model):
    return {"input_ids": batch(model)["input_ids"][:1, :3]}


@pytest.fixture(scope="module")
def found():
    model = tiny("llama", initializer_range=0.2, num_hidden_layers=2)
    return model, analyze(model, text(model))


def test_an_ordinary_model(found):
    model, analysis = found
    n = model.config.num_hidden_layers
    assert (analysis.own, analysis.layers, analysis.tokens, analysis.dtype) == ("residual", n, 3, "float32")
    assert [one.name for one in analysis.dynamics] == DYNAMICS
    assert [spectrum.layer for spectrum in analysis.spectra] == list(range(n))
    for one in analysis.dynamics:
        steps = 2 * n if one.name == "hamiltonian" else n
        assert len(one.growth_forwards) == steps + 1
        assert len(one.mean_squares) == steps + 2
        assert (one.growth_backwards is None) == (one.name == "residual")
        assert (one.invariants is None) == (one.name in ("residual", "blended_midpoint"))
        if one.name != "residual":
            assert set(one.reversal_errors["exact"]) == {0.0}
            assert one.reversal_errors["float32"][1] > 0


def test_the_model_is_not_changed():
    model = tiny("llama")
    model.model.layers[0].eval()
    before, kind = {name: value.clone() for name, value in model.state_dict().items()}, type(model)
    analyze(model, text(model), layers=[], dynamics=[rf.Midpoint()])
    assert reversible_stack(model) is None
    assert type(model) is kind
    assert model.training
    assert not model.model.layers[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predictions_are_the_closed_forms_of_the_eigenvalues(found):
    _, analysis = found
    by_name = {one.name: one for one in analysis.dynamics}
    for place, spectrum in enumerate(analysis.spectra):
        values = spectrum.block.found
        step = rf.Leapfrog().coefficients(0)
        assert by_name["leapfrog"].predicted_forward[place] == max(forward_growth(step, values))
        assert by_name["leapfrog"].predicted_inverse[place] == max(inverse_growth(step, values))
        assert by_name["residual"].predicted_inverse[place] == math.inf
        sizes = np.abs(product_roots(rf.Hamiltonian().coefficients(0), spectrum.branches.found))
        assert by_name["hamiltonian"].predicted_forward[place] == pytest.approx(sizes.max())
        assert by_name["hamiltonian"].predicted_inverse[place] == pytest.approx((1 / sizes).max())


def test_a_reversible_model_keeps_its_dynamics():
    model = rf.make_reversible(tiny("llama", initializer_range=0.2), rf.Hamiltonian())
    analysis = analyze(model, text(model), layers=[1], branches=False)
    assert analysis.own == "hamiltonian"
    assert analysis.dynamics[0].name == "hamiltonian"
    assert reversible_stack(model).dynamics == rf.Hamiltonian()
    assert [spectrum.layer for spectrum in analysis.spectra] == [1]


def test_dynamics_of_one_name_have_their_options_in_it():
    model = rf.make_reversible(tiny("llama", initializer_range=0.2), rf.BlendedMidpoint("1/4"))
    analysis = analyze(model, text(model), layers=[])
    assert [one.name for one in analysis.dynamics] == [
        "blended_midpoint:blend=1/4",
        "midpoint",
        "leapfrog",
        "blended_midpoint:blend=1/2",
        "hamiltonian",
    ]
    repeated = analyze(model, text(model), layers=[], dynamics=[rf.Midpoint(), rf.Midpoint(0.5)])
    assert [one.name for one in repeated.dynamics] == ["midpoint"]


def test_eigenvalues_predict_nothing_of_two_evaluations():
    model = tiny("llama", initializer_range=0.2)
    analysis = analyze(model, text(model), layers=[1], dynamics=[rf.TwoEvaluationMidpoint("1/4")], branches=False)
    assert analysis.dynamics[0].predicted_forward == (None,)
    assert analysis.dynamics[0].growth_forwards[-1] > 1


def test_layers_whose_branches_are_not_known_have_no_product_and_no_hamiltonian_steps():
    model = tiny("BartForCausalLM")
    analysis = analyze(model, text(model), layers=[0])
    assert analysis.spectra[0].branches is None
    assert analysis.spectra[0].block.found
    assert [one.name for one in analysis.dynamics] == [name for name in DYNAMICS if name != "hamiltonian"]


def test_layers_are_spread_from_the_first_to_the_last():
    assert spread_layers(3, 12) == [0, 6, 11]
    assert spread_layers(40, 4) == [0, 1, 2, 3]
    assert spread_layers(1, 5) == [0]


def test_it_is_plain_in_json(found):
    _, analysis = found
    values = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert values["verdict"] == analysis.verdict
    assert len(values["spectra"][0]["block"]["magnitude"]) == 2
    assert values["dynamics"][0]["predicted_inverse"][0] is None  # infinite


def test_the_verdict_names_the_least_growth(found):
    _, analysis = found
    best = min((one for one in analysis.dynamics if one.round_trip), key=lambda one: one.round_trip)
    assert f"With {best.name} a perturbation" in analysis.verdict
    worse = dataclasses.replace(best, name="another", growth_forwards=(1.0, 1e-30))
    assert "With another" in dataclasses.replace(analysis, dynamics=(*analysis.dynamics, worse)).verdict
    alone = dataclasses.replace(analysis, dynamics=analysis.dynamics[:1])
    assert "on the way back" not in alone.verdict


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (torch.bfloat16, {}, "bfloat16 are too coarse"),
        (torch.float32, {"layers": [9]}, "no layer 9"),
        (torch.float32, {"probes": 0}, "probes is 0"),
        (torch.float32, {"tolerance": float("nan")}, "tolerance must be above 0"),
        (torch.float32, {"seed": -1}, "seed must be at least 0"),
        (torch.float32, {"dynamics": [rf.BlendedMidpoint([0.5])]}, "1 blends"),
    ],
)
def test_mistakes_are_one_sentence(dtype, options, message):
    model = tiny("llama", dtype=dtype)
    with pytest.raises(ValueError, match=message):
        analyze(model, text(model), **options)
    assert reversible_stack(model) is None


@pytest.mark.parametrize("dynamics", [rf.Midpoint(), ["midpoint"]])
def test_only_a_list_of_dynamics_can_be_compared(dynamics):
    model = tiny("llama")
    with pytest.raises(TypeError, match="dynamics is a list of dynamics such as"):
        analyze(model, text(model), dynamics=dynamics)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="no floating-point weights"):
        analyze(torch.nn.Identity(), {})


@pytest.mark.parametrize("layer", [0, 1])
def test_the_spectrum_of_a_layer_is_that_of_its_jacobian_at_its_own_state(found, layer):
    model, analysis = found
    module, seen = model.model.layers[layer], {}

    def record(_, args, keywords):
        seen.update(state=args[0].detach(), keywords=keywords)

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    model.eval()(**text(model), use_cache=False)
    handle.remove()
    state = seen["state"]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(lambda p: module(p, **seen["keywords"]) - p, state)
    values = eigenvalues_of(jacobian)
    block = analysis.spectra[layer].block
    assert block.real_high.real == pytest.approx(values.real.max(), rel=1e-3)
    assert block.real_low.real == pytest.approx(values.real.min(), rel=1e-3)
    assert block.imaginary.imag == pytest.approx(values.imag.max(), rel=1e-3, abs=1e-4)
    assert analysis.spectra[layer].state_rms == pytest.approx(state.square().mean().sqrt().item(), rel=1e-5)
    with torch.no_grad():
        update = module(state, **seen["keywords"]) - state
    assert analysis.spectra[layer].update_rms == pytest.approx(update.square().mean().sqrt().item(), rel=1e-4)


def eigenvalues_of(jacobian):
    size = math.isqrt(jacobian.numel())
    return np.linalg.eigvals(jacobian.reshape(size, size).double().numpy())


@pytest.mark.parametrize("dynamics", [rf.Residual(), rf.Hamiltonian()], ids=lambda one: one.name)
def test_the_mlp_of_a_product_of_branches_is_differentiated_where_it_reads(dynamics):
    """After attention in the ordinary network; at the next state under Hamiltonian."""
    model = rf.make_reversible(tiny("llama", initializer_range=0.3, num_hidden_layers=2), dynamics, "store").eval()
    analysis = analyze(model, text(model), layers=[1], dynamics=[dynamics])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with torch.no_grad():
            embedding, calls = layer_calls(model, text(model))
        attention, mlp = (step.field for step in steps_of(calls, rf.Hamiltonian())[2:])
        states = [state.float() for state in walk(steps_of(calls, dynamics), embedding, "repeat")[1:]]
        state = states[dynamics.steps_per_layer]
        following = states[3] if dynamics == rf.Hamiltonian() else state + attention(state).detach()
        first, second, elsewhere = (
            torch.autograd.functional.jacobian(field, at).reshape(state.numel(), -1).double()
            for field, at in ((attention, state), (mlp, following), (mlp, state))
        )
    found = abs(analysis.spectra[0].branches.magnitude)
    assert found == pytest.approx(abs(eigenvalues_of(second @ first)).max(), rel=1e-3)
    assert found != pytest.approx(abs(eigenvalues_of(elsewhere @ first)).max(), rel=1e-2)


@pytest.mark.parametrize("feature", ["previous_mlp", "previous_update"])
def test_a_predictor_may_evaluate_the_layer_before(feature):
    model = rf.make_reversible(tiny("llama", num_hidden_layers=2), rf.BlendedMidpoint("1/2"), activations="store")
    add_update_predictors(model, PredictorForm(("state", feature)))
    analysis = analyze(model, text(model), layers=[1], dynamics=[rf.Midpoint()], probes=1)
    assert [spectrum.layer for spectrum in analysis.spectra] == [1]


@pytest.mark.parametrize("dynamics", [rf.Residual(), rf.Midpoint(), rf.Hamiltonian()], ids=lambda one: one.name)
@pytest.mark.parametrize("layers", [[], [0]])
def test_states_that_are_not_finite_are_refused_by_their_layer(dynamics, layers):
    model = rf.make_reversible(tiny("llama", num_hidden_layers=3), dynamics, "store")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"Layer 1 returns values that are not finite.*check the weights"):
        analyze(model, text(model), layers=layers)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="The embedding has values that are not finite"):
        analyze(model, text(model), layers=layers)


def test_long_options_of_the_model_are_not_its_name():
    dynamics = rf.BlendedMidpoint(["1/4", "1/2"], [1.003085613576762, 0.998975897])
    model = rf.make_reversible(tiny("llama", num_hidden_layers=2), dynamics)
    names = [one.name for one in analyze(model, text(model), layers=[]).dynamics]
    assert names[0] == "blended_midpoint of the model"
    assert "blended_midpoint:blend=1/2" in names
