"""What layers add to the stream: layers of users' own, and steps that evaluate the layer before as well."""

import copy
import functools

import pytest
import torch
from transformers import FalconForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import revformers as rf
from lab.tiny import tiny_model
from revformers.models.attach import add_update_predictors
from revformers.models.families import find_layout
from revformers.models.parts import update_predictors
from revformers.models.update_predictor import PredictorForm
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.tiny_models import batch, tiny

PREVIOUS = ["previous_mlp", "previous_update"]


class Doubled(LlamaDecoderLayer):
    """Adds half of its input once more."""

    def forward(self, hidden_states, **keywords):
        return LlamaDecoderLayer.forward(self, hidden_states, **keywords) + 0.5 * hidden_states


class Renamed(LlamaDecoderLayer):
    """Has no forward of its own, as the classes that FSDP makes."""


class InPlace(LlamaDecoderLayer):
    """Writes its output to its input."""

    def forward(self, hidden_states, **keywords):
        hidden_states += LlamaDecoderLayer.forward(self, hidden_states, **keywords) - hidden_states
        return hidden_states


def with_layers(kind):
    model = tiny("llama")
    for layer in model.model.layers:
        layer.__class__ = kind
    return model


def logits(model, **inputs):
    with torch.no_grad():
        return model(**batch(model) | inputs).logits


def test_the_forward_of_a_subclass_is_what_a_layer_computes():
    expected = logits(with_layers(Doubled))
    model = rf.make_reversible(with_layers(Doubled), rf.Residual(), "checkpoint")
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert not torch.allclose(logits(tiny("llama")), expected, atol=1e-2)
    assert find_layout(model.model.layers[0]) is None
    with pytest.raises(rf.NotReversibleError, match="where Doubled splits into attention and MLP is not known"):
        rf.make_reversible(with_layers(Doubled), rf.Hamiltonian())
    assert rf.verify_gradients(rf.make_reversible(model, rf.Midpoint()), batch(model)).bit_exact


@pytest.mark.parametrize("wraps", [False, True], ids=["own function", "functools.wraps"])
def test_so_is_a_forward_that_was_patched(monkeypatch, wraps):
    own = LlamaDecoderLayer.forward

    def patched(self, hidden_states, **keywords):
        return own(self, hidden_states, **keywords) + 0.5 * hidden_states

    model = rf.make_reversible(tiny("llama"), rf.Residual(), "store")
    assert find_layout(model.model.layers[0]) is not None
    monkeypatch.setattr(LlamaDecoderLayer, "forward", functools.wraps(own)(patched) if wraps else patched)
    assert find_layout(model.model.layers[0]) is None
    assert torch.allclose(logits(model), logits(tiny("llama")), atol=1e-5)


def test_a_subclass_without_a_forward_keeps_its_branches():
    assert find_layout(with_layers(Renamed).model.layers[0]) is find_layout(tiny("llama").model.layers[0])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_layer_that_writes_to_its_input_is_refused(mode):
    model = rf.make_reversible(with_layers(InPlace), rf.Residual(), "store")
    with mode(), pytest.raises(rf.NotReversibleError, match="InPlace writes to its input in place"):
        model(**batch(model))


def test_in_inference_mode_it_is_right():
    """There PyTorch counts no writes."""
    model = rf.make_reversible(with_layers(InPlace), rf.Residual(), "store")
    with torch.inference_mode():
        found = model(**batch(model)).logits
    assert torch.allclose(found, logits(tiny("llama")), atol=1e-5)


def neox():
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        use_parallel_residual=False,
        initializer_range=0.2,
    )
    return GPTNeoXForCausalLM(config).double().eval()


def by_hand(model, ids, blend, predictors=None, feature=None):
    """The recurrence on transformers' own layers, in ordinary float64 autograd."""
    decoder = model.gpt_neox
    current = decoder.embed_in(ids)
    positions = decoder.rotary_emb(current, torch.arange(ids.shape[1])[None])
    previous = current

    def update(layer, hidden):
        return decoder.layers[layer](hidden, position_embeddings=positions) - hidden

    for layer in range(len(decoder.layers)):
        own = update(layer, current)
        step = blend * previous + (1 - blend) * current + own
        if predictors is None and layer:
            step = step + blend * update(layer - 1, current)
        if predictors is not None:
            values = [current, own]
            if layer:
                before = decoder.layers[layer - 1]
                second = before.mlp(before.post_attention_layernorm(current))
                values.append(second if feature == "previous_mlp" else update(layer - 1, current))
            step = step + sum(linear(value) for linear, value in zip(predictors[layer].maps, values, strict=True))
            step = step + predictors[layer].bias
        previous, current = current, step
    return model.lm_head(decoder.final_layer_norm(current))


def gradients(model, logits):
    model.zero_grad()
    logits.log_softmax(-1).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(ours, theirs):
    scale = max(gradient.abs().max() for gradient in theirs.values())
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert (ours[name] - theirs[name]).abs().max() < 1e-6 * scale, name


@pytest.mark.parametrize("blend", [1, 0.5, -0.25])
def test_two_evaluations_are_the_papers_recurrence(blend):
    model = neox()
    expected = by_hand(model, TEXT, blend)
    reference = gradients(model, expected)
    rf.make_reversible(model, rf.TwoEvaluationMidpoint(blend))
    assert torch.allclose(model(TEXT).logits, expected, atol=1e-6)
    assert_close(gradients(model, model(TEXT).logits), reference)
    assert rf.verify_gradients(model, {"input_ids": TEXT}).bit_exact
    rf.make_reversible(model, rf.BlendedMidpoint(blend))
    assert not torch.allclose(model(TEXT).logits, expected, atol=1e-2), "the second evaluation counts"


@pytest.mark.thorough
@pytest.mark.parametrize("feature", PREVIOUS)
def test_a_predictor_on_the_layer_before_is_the_same_recurrence_by_hand(feature):
    model = neox()
    rf.convert(model, 1, TEXT, predictor=feature, allocation="uniform")
    predictors = update_predictors(model)
    ordinary = copy.deepcopy(model)
    rf.make_residual(ordinary)
    expected = by_hand(ordinary, TEXT, 0.5, predictors, feature)
    assert torch.allclose(model(TEXT).logits, expected, atol=1e-5)
    ours = gradients(model, model(TEXT).logits)
    for predictor in predictors:
        predictor.zero_grad()
    theirs = gradients(ordinary, by_hand(ordinary, TEXT, 0.5, predictors, feature))
    assert_close({name: ours[name] for name in theirs}, theirs)
    assert rf.verify_gradients(model, {"input_ids": TEXT}).bit_exact


@pytest.mark.thorough
@pytest.mark.parametrize("feature", PREVIOUS)
def test_they_predict_more_than_state_and_update_alone(feature):
    plain, richer = smooth_llama(), smooth_llama()
    errors = [
        max(fit.error for fit in rf.convert(model, 0, TEXT, predictor=predictor).fits)
        for model, predictor in ((plain, "update"), (richer, feature))
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.thorough
@pytest.mark.parametrize("feature", PREVIOUS)
def test_they_save_and_load(feature, tmp_path):
    model = smooth_llama()
    rf.convert(model, 0, TEXT, predictor=feature)
    model.save_pretrained(tmp_path)
    loaded = rf.from_pretrained(tmp_path)
    assert torch.equal(loaded(TEXT).logits, model(TEXT).logits)
    assert update_predictors(loaded)[1].form == update_predictors(model)[1].form


def generated(model, cached):
    prompt = {"input_ids": TEXT[:2], "attention_mask": torch.ones_like(TEXT[:2])}
    return model.generate(**prompt, max_new_tokens=6, do_sample=False, use_cache=cached, pad_token_id=0)


@pytest.mark.thorough
def test_the_previous_mlp_needs_no_place_in_the_cache():
    model = smooth_llama()
    rf.convert(model, 0, TEXT, predictor="previous_mlp")
    assert torch.equal(generated(model, True), generated(model, False))


def test_attention_of_the_layer_before_generates_without_a_cache_and_refuses_one():
    model = rf.make_reversible(smooth_llama(), rf.TwoEvaluationMidpoint(0.5))
    tokens = generated(model, False)
    with torch.no_grad():
        for length in range(TEXT.shape[1], tokens.shape[1]):
            assert torch.equal(model(tokens[:, :length]).logits[:, -1].argmax(-1), tokens[:, length])
    with pytest.raises(ValueError, match="pass use_cache=False, also to generate"):
        generated(model, True)


@pytest.mark.thorough
def test_a_router_is_never_counted_twice():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model = MixtralForCausalLM(config).eval()
    rf.convert(model, 1, TEXT, predictor="previous_mlp")
    assert rf.verify_gradients(model, {"input_ids": TEXT[:2]}).bit_exact
    with pytest.raises(ValueError, match="both evaluations would count"):
        model(TEXT, output_router_logits=True)
    rf.make_residual(model)
    rf.convert(model, 1, TEXT)
    assert len(model(TEXT, output_router_logits=True).router_logits) == 3


def test_a_family_whose_mlp_is_not_known_is_refused_by_name():
    model = tiny("BartForCausalLM")
    with pytest.raises(rf.NotReversibleError, match="previous_mlp needs to know where BartDecoderLayer splits"):
        rf.convert(model, 0, TEXT, predictor="previous_mlp")
    assert not update_predictors(model)


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["FalconForCausalLM", "BartForCausalLM"])
def test_layers_that_return_more_than_a_state_are_converted(family):
    model = tiny(family).eval()
    rf.convert(model, 1, TEXT)
    assert rf.verify_gradients(model, {"input_ids": TEXT[:2]}).bit_exact


def test_predictors_on_the_layer_before_need_no_inputs_of_it_yet():
    # Falcon's layers have inputs without a default.
    model = tiny_model(FalconForCausalLM)
    rf.make_reversible(model, rf.Midpoint())
    predictors = add_update_predictors(model, PredictorForm(("state", "previous_update")))
    assert len(predictors) == len(model.transformer.h)
    assert torch.isfinite(model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss)
