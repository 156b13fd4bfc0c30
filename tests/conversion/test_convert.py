import copy
import logging

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForSequenceClassification,
)

import revformers as rf
from lab.bench.smollm2 import ModelUnavailableError, fetch_model
from revformers.conversion.calibration import split_off
from revformers.conversion.convert import Converter, Method
from revformers.conversion.measure import mean_loss
from revformers.engine.state_format import StateFormat
from revformers.models.parts import require_reversible, reversible_stack, update_predictors
from tests.test_reversible import llama

TEXT = torch.randint(61, (12, 20), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": TEXT}]


def smooth_llama(layers=6):
    """A network whose updates are small against its states and nearly linear in them, as those of trained ones are."""
    model = llama(layers=layers)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.5)
    return model


def distance(model, other):
    """Mean KL divergence of the next-token distributions, nats."""
    with torch.no_grad():
        left, right = (network(TEXT).logits.log_softmax(-1) for network in (model, other))
    return nn.functional.kl_div(right, left, log_target=True, reduction="none").sum(-1).mean().item()


@pytest.mark.thorough
@pytest.mark.parametrize("bits", [0, 1])
def test_the_predictor_brings_the_converted_network_back(bits):
    original = smooth_llama()
    alone, corrected = copy.deepcopy(original), copy.deepcopy(original)
    rf.convert(alone, bits, TEXT, predictor="none", allocation="uniform")
    conversion = rf.convert(corrected, bits, TEXT, predictor="update")
    assert distance(original, corrected) < 0.2 * distance(original, alone)
    assert rf.verify_gradients(corrected, {"input_ids": TEXT[:2]}).bit_exact
    assert all(fit.explained <= 1 for fit in conversion.fits)
    assert conversion.added_parameters == 6 * (2 * 32 * 32 + 32)
    assert conversion.side_information == bits * 6 * 32 / 8
    assert conversion.checkpoints == 6 * 32 * 4
    assert conversion.loss == pytest.approx(mean_loss(corrected, BATCHES))
    assert conversion.original_loss == pytest.approx(mean_loss(original, BATCHES))


@pytest.mark.parametrize(
    ("scale", "given", "digits"), [(1.0, "auto", 16), (1.0, "int32:12", 12), (5e3, "auto", 14), (5e3, "int64", None)]
)
def test_a_conversion_chooses_the_binary_point_by_its_text(scale, given, digits):
    model = smooth_llama(2)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(scale)
    conversion = rf.convert(model, 1, TEXT[:2], predictor="none", allocation="uniform", states=given)
    chosen = StateFormat(given.partition(":")[0], digits)
    assert conversion.state_format == chosen == require_reversible(model).states
    assert conversion.states == 2 * 32 * (4 if chosen.kind == "int32" else 8)
    assert f"{chosen}; the largest magnitude is" in str(conversion)
    if chosen.kind == "auto":
        needed = 4 * conversion.largest_magnitude
        assert needed <= chosen.in_32_bits.maximum_magnitude
        assert digits == 16 or needed > StateFormat("auto", digits + 1).in_32_bits.maximum_magnitude


def test_losses_are_those_of_the_format_that_the_model_then_has():
    model = smooth_llama(3).to(torch.bfloat16)
    conversion = rf.convert(model, 1, TEXT[:4], predictor="none", allocation="uniform")
    assert require_reversible(model).fixed_point == StateFormat().in_32_bits
    assert conversion.states == 2 * 32 * 4
    assert conversion.loss == mean_loss(model, [{"input_ids": TEXT[:4]}])
    rf.set_states(model, "int64")
    assert conversion.loss == pytest.approx(mean_loss(model, [{"input_ids": TEXT[:4]}]), rel=1e-3)


def test_states_that_the_model_does_not_fit_into_undo_the_conversion():
    model = smooth_llama(2)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(4e5)
    with pytest.raises(ValueError, match=r'32-bit states do not hold .* \(states="int64"'):
        rf.convert(model, 1, TEXT[:2], predictor="none", allocation="uniform")
    assert reversible_stack(model) is None
    rf.convert(model, 1, TEXT[:2], predictor="none", allocation="uniform", states="int64")
    with pytest.raises(ValueError, match="no states 'int8'"):
        rf.convert(rf.make_residual(model), 1, TEXT[:2], states="int8")


def test_the_fit_is_the_least_squares_solution_of_the_recurrence():
    """The second layer against PyTorch's own solver, on hidden states of the ordinary network."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=61, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
    )
    model = GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        states = model(TEXT, output_hidden_states=True).hidden_states
    # Of twelve sequences the last is set aside.
    first, second, third = (state[:-1].flatten(0, 1).double() for state in states[:3])
    rf.convert(model, 0, TEXT, predictor="update")
    # The first step is the ordinary one: the second has p[0] = first, p[1] = second, and p[2] = p[0] + f(p[1]).
    update = third - second
    features = torch.cat([second, update, torch.ones(len(second), 1)], dim=1)
    size = third.square().mean(dim=1, keepdim=True).sqrt()  # every token counts by its error relative to its state
    weights = torch.linalg.lstsq(features / size, (third - (first + update)) / size).solution
    predictor = update_predictors(model)[1]
    with torch.no_grad():
        ours = predictor([second.float(), update.float()])
    assert torch.allclose(ours.double(), features @ weights, atol=2e-2 * (third - second).abs().max().item())


@pytest.mark.thorough
def test_one_token_with_a_massive_activation_does_not_decide_the_fit():
    """As in trained networks: a token whose state is a thousand times larger than the others'."""
    plain, massive = smooth_llama(), smooth_llama()
    with torch.no_grad():
        massive.model.embed_tokens.weight[7] *= 1000
        massive.lm_head.weight.copy_(plain.lm_head.weight)
    distances = []
    for model in (plain, massive):
        ordinary = copy.deepcopy(model)
        rf.convert(model, 1, TEXT, predictor="update", allocation="uniform")
        distances.append(distance(ordinary, model))
    assert distances[1] < 2 * distances[0]


def test_the_text_that_predictors_are_judged_on_is_not_the_text_of_the_fit():
    """With more features than tokens the fit leaves nothing of its own text's error, and much of other text's."""
    few = TEXT[:3, :8]
    conversion = rf.convert(smooth_llama(), 0, few, predictor="update")
    seen = rf.convert(smooth_llama(), 0, few[:1], predictor="update")  # one sequence: nothing is set aside
    assert min(fit.explained for fit in seen.fits[1:]) > 0.9
    assert max(fit.explained for fit in conversion.fits[1:]) < 0.8
    assert conversion.calibration_tokens == 24


@pytest.mark.parametrize(("shape", "kept"), [((12, 20), (11, 1)), ((1, 20), (1, 0)), ((64, 256), (56, 8))])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_an_eighth_of_the_sequences_is_set_aside(shape, kept, batch_size):
    text = torch.arange(shape[0]).repeat_interleave(shape[1]).view(shape)
    parts = split_off([{"input_ids": chunk} for chunk in text.split(batch_size)])
    rows = [[row for batch in part for row in batch["input_ids"][:, 0].tolist()] for part in parts]
    assert (len(rows[0]), len(rows[1])) == kept
    assert sorted(rows[0] + rows[1]) == list(range(shape[0]))
    assert all(row >= kept[0] for row in rows[1])


def test_at_most_4096_tokens_are_set_aside():
    text = torch.zeros(64, 1024, dtype=torch.long)
    fitted, set_aside = split_off([{"input_ids": text}])
    assert [sum(batch["input_ids"].shape[0] for batch in part) for part in (fitted, set_aside)] == [60, 4]


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_the_fit_does_not_depend_on_how_the_text_is_batched(batch_size):
    whole, parts = smooth_llama(), smooth_llama()
    rf.convert(whole, 0, BATCHES)
    rf.convert(parts, 0, [{"input_ids": chunk} for chunk in TEXT.split(batch_size)])
    assert torch.allclose(whole(TEXT).logits, parts(TEXT).logits, atol=1e-2)


@pytest.mark.thorough
def test_a_converted_model_saves_loads_trains_and_goes_back(tmp_path, caplog):
    model = smooth_llama()
    original = copy.deepcopy(model)
    rf.convert(model, 0.5, TEXT)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = rf.from_pretrained(tmp_path)
    assert "update_predictor" not in caplog.text
    assert torch.equal(loaded(TEXT).logits, model(TEXT).logits)
    before = copy.deepcopy(loaded.state_dict())
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(input_ids=TEXT, labels=TEXT).loss.backward()
    optimizer.step()
    trained = [name for name, value in loaded.state_dict().items() if not torch.equal(value, before[name])]
    assert any("update_predictor" in name for name in trained)
    assert set(rf.make_residual(model).state_dict()) == set(original.state_dict())
    assert torch.equal(model(TEXT).logits, original(TEXT).logits)


@pytest.mark.thorough
def test_half_precision_weights_are_converted():
    model = smooth_llama().to(torch.bfloat16)
    conversion = rf.convert(model, 1, TEXT)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert abs(conversion.loss - conversion.original_loss) < 0.2
    assert rf.verify_gradients(model, {"input_ids": TEXT[:2]}).bit_exact


@pytest.mark.thorough
def test_generation_agrees_with_and_without_cache():
    model = smooth_llama()
    rf.convert(model, 0, TEXT)
    prompt = {"input_ids": TEXT[:2], "attention_mask": torch.ones_like(TEXT[:2])}
    tokens = [
        model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=0)
        for cached in (True, False)
    ]
    assert torch.equal(*tokens)


@pytest.mark.parametrize(
    ("bits", "calibration", "message"),
    [
        (9, TEXT, "from 0 to 8, not 9"),
        (-1, TEXT, "from 0 to 8, not -1"),
        (float("nan"), TEXT, "from 0 to 8, not nan"),
        ("2", TEXT, "from 0 to 8, not '2'"),
        (2, None, "no calibration text"),
        (2, [], "no calibration text"),
        (2, TEXT[0], "two tokens or more a sequence, not \\[20\\]"),
        (2, [{"input_ids": TEXT, "attention_mask": torch.zeros_like(TEXT)}], "must not be padded"),
    ],
)
def test_bad_input_is_refused_and_the_model_is_left_as_it_was(bits, calibration, message):
    model = smooth_llama()
    with pytest.raises(ValueError, match=message):
        rf.convert(model, bits, calibration)
    assert rf.make_residual(model) is model
    assert not update_predictors(model)


def test_an_interrupted_conversion_leaves_the_ordinary_network():
    model = smooth_llama()
    before = model(TEXT).logits

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rf.convert(model, 1, TEXT, progress=stop)
    assert not update_predictors(model)
    assert torch.equal(model(TEXT).logits, before)


@pytest.mark.thorough
def test_a_conversion_after_an_interrupted_one_measures_again(monkeypatch):
    """Half of what the budget is spent by is not taken for all of it."""
    model = smooth_llama()
    converter = Converter(model, Method(), TEXT)
    with monkeypatch.context() as patched:
        patched.setattr("revformers.conversion.convert.measure_layer_costs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            converter.convert(1)
    assert converter.convert(1).layer_bits == Converter(smooth_llama(), Method(), TEXT).convert(1).layer_bits != [1] * 6


def test_a_model_that_is_reversible_already_is_refused():
    model = rf.make_reversible(smooth_llama(), rf.Midpoint())
    with pytest.raises(ValueError, match="already reversible"):
        rf.convert(model, 1, TEXT)


def test_a_classifier_is_converted_as_the_language_model_that_it_starts_from():
    model = LlamaForSequenceClassification(smooth_llama().config)
    with pytest.raises(ValueError, match="LlamaForSequenceClassification has no head that predicts tokens"):
        rf.convert(model, 1, TEXT)


@pytest.mark.slow
def test_a_real_model_gets_room_for_its_massive_activation():
    try:
        folder = fetch_model()
    except ModelUnavailableError as error:
        pytest.skip(str(error))
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    text = tokenizer("The history of the bridge begins with a ferry. " * 40, return_tensors="pt").input_ids[:, :256]
    rf.convert(model, 4, text, predictor="none", allocation="uniform")
    stack = require_reversible(model)
    assert stack.states == StateFormat("auto", 14), "its largest state is about 27,000"
    assert rf.verify_gradients(model, {"input_ids": text}).bit_exact
    assert stack.fixed_point == stack.states.in_32_bits
    rf.set_states(model, "auto")
    with pytest.raises(rf.StateRangeError):
        model(text)
