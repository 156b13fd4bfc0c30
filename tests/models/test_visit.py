import pytest
import torch

import revformers as rf
from revformers.models.attach import add_update_predictors
from revformers.models.fields import LayerReturn, ordinary_field
from revformers.models.update_predictor import PredictorForm
from revformers.models.visit import layer_calls, visit_layer
from tests.tiny_models import tiny

IDS = torch.randint(61, (2, 6), generator=torch.Generator().manual_seed(0))


def visited(model, layer, use=lambda visit: None):
    """What is visited, what `use` makes of it, and which layers' attention is evaluated meanwhile."""
    evaluated = []
    handles = [
        part.self_attn.register_forward_hook(lambda *_, number=number: evaluated.append(number))
        for number, part in enumerate(model.model.layers)
    ]

    with torch.no_grad():
        visit = visit_layer(model, {"input_ids": IDS}, layer)
        used = use(visit)
    for handle in handles:
        handle.remove()
    return visit, used, evaluated


def test_one_layer_is_evaluated_as_the_ordinary_network_evaluates_it():
    model = tiny("llama").eval()
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
    rf.make_reversible(model, rf.Midpoint())
    visit, update, evaluated = visited(model, 2, lambda visit: visit.ordinary(states[2]))
    assert torch.equal(visit.embedding, states[0])
    torch.testing.assert_close(states[2] + update, states[3], rtol=1e-5, atol=1e-5)
    assert evaluated == [2]
    assert visited(model, 2)[2] == [], "no layer is evaluated that the caller does not ask for"


def test_the_update_is_that_of_the_dynamics_without_its_predictor():
    model = rf.make_reversible(tiny("llama").eval(), rf.TwoEvaluationMidpoint("1/4"))
    hidden = torch.randn(2, 6, model.config.hidden_size)
    _visit, before, _evaluated = visited(model, 1, lambda visit: visit.ordinary(hidden))
    _visit, (own, update), evaluated = visited(model, 2, lambda visit: (visit.ordinary(hidden), visit.update(hidden)))
    torch.testing.assert_close(update, own + before / 4)
    assert evaluated == [2, 2, 1]


@pytest.mark.parametrize("feature", ["previous_mlp", "previous_update"])
def test_features_of_the_layer_before_are_those_of_its_predictor(feature):
    model = rf.make_reversible(tiny("llama").eval(), rf.BlendedMidpoint("1/2"))
    add_update_predictors(model, PredictorForm(("state", feature)))
    hidden = torch.randn(2, 6, model.config.hidden_size)
    assert visited(model, 0)[0].previous == {}
    _visit, value, _evaluated = visited(model, 2, lambda visit: visit.previous[feature](hidden))
    before = model.model.layers[1]
    _visit, update, _evaluated = visited(model, 1, lambda visit: visit.ordinary(hidden))
    expected = update if feature == "previous_update" else before.mlp(before.post_attention_layernorm(hidden))
    torch.testing.assert_close(value, expected)


def test_layers_without_a_layout_are_run_to_see_what_they_return():
    model = rf.make_reversible(tiny("BartForCausalLM").eval(), rf.Midpoint())
    hidden = torch.randn(2, 6, model.config.hidden_size)
    with torch.no_grad():
        update = visit_layer(model, {"input_ids": IDS}, 1).ordinary(hidden)
    assert update.shape == hidden.shape


def test_the_calls_of_all_layers_stay_valid():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint(), "store")
    with torch.no_grad():
        embedding, calls = layer_calls(model, {"input_ids": IDS})
        expected = []
        for index in range(len(calls)):
            expected.append(visit_layer(model, {"input_ids": IDS}, index).ordinary(embedding))
        fields = [ordinary_field(call, LayerReturn()) for call in calls]
        assert [call.index for call in calls] == list(range(model.config.num_hidden_layers))
        assert torch.equal(embedding, model.get_input_embeddings()(IDS))
        assert all(torch.equal(field(embedding), value) for field, value in zip(fields, expected, strict=True))
    assert not torch.equal(expected[0], expected[1])
