"""What transformers does with a model is what it does with a reversible one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import revformers as rf
from lab.tiny import perturb_
from tests.tiny_models import batch, tiny

PROMPT = torch.arange(10, 26).view(2, 8)
GREEDY = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}

each_family = pytest.mark.parametrize("family", ["llama", "gemma3", "FalconForCausalLM"])
each_dynamics = pytest.mark.parametrize(
    "dynamics", [rf.Midpoint(), rf.Hamiltonian(readout="mean")], ids=["midpoint", "hamiltonian"]
)


def model_of(family, dynamics=None, **options):
    model = perturb_(tiny(family, **options)).eval()
    model.generation_config.eos_token_id = None
    return model if dynamics is None else rf.make_reversible(model, dynamics)


@each_dynamics
@each_family
def test_every_cache_gives_the_same_tokens(family, dynamics):
    model = model_of(family, dynamics)
    plain = model.generate(PROMPT, use_cache=False, **GREEDY)
    assert plain.shape == (2, 16)
    assert torch.equal(model.generate(PROMPT, **GREEDY), plain)
    assert torch.equal(model.generate(PROMPT, cache_implementation="static", **GREEDY), plain)


def test_a_token_whose_states_are_out_of_range_ends_a_generation_with_a_cache():
    """Whether the model writes it or the prompt holds it."""
    model = model_of("llama", rf.Midpoint(), tie_word_embeddings=False, initializer_range=0.3)
    rf.set_states(model, "int32")
    tokens = model.generate(PROMPT, **GREEDY)
    assert torch.equal(model.generate(PROMPT, use_cache=False, **GREEDY), tokens)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokens[0, 11]] = 1e5
    assert tokens[0, 11] not in tokens[:, :11]
    for prompt in (PROMPT, tokens[:, :12]):
        with pytest.raises(rf.StateRangeError, match="embedding has magnitude"):
            model.generate(prompt, **GREEDY)


@each_dynamics
@each_family
def test_padding_on_the_left_changes_no_tokens(family, dynamics):
    model = model_of(family, dynamics)
    short, long = PROMPT[:1, :5], PROMPT[1:]
    padded = torch.cat([torch.nn.functional.pad(short, (3, 0)), long])
    mask = (padded != 0).long()
    together = model.generate(padded, attention_mask=mask, **GREEDY)
    for row, alone in zip(together, (short, long), strict=True):
        expected = model.generate(alone, attention_mask=torch.ones_like(alone), **GREEDY)[0]
        assert torch.equal(row[-len(expected) :], expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 5},
        {"prompt_lookup_num_tokens": 2},
        {"cache_implementation": "static"},
        {"output_scores": True, "output_hidden_states": True, "output_attentions": True, "num_beams": 2},
    ],
    ids=["greedy", "beams", "sampled", "prompt_lookup", "static", "outputs"],
)
@each_family
def test_residual_dynamics_generate_what_the_ordinary_model_does(family, options):
    model = model_of(family, attn_implementation="eager")
    prompt = PROMPT[:1] if "prompt_lookup_num_tokens" in options else PROMPT
    generated = []
    for _ in range(2):
        torch.manual_seed(0)
        generated.append(model.generate(prompt, return_dict_in_generate=True, **GREEDY | options))
        rf.make_reversible(model, rf.Residual(), "store")
    ordinary, residual = generated
    assert torch.equal(residual.sequences, ordinary.sequences)
    for name in ("hidden_states", "attentions"):
        if f"output_{name}" in options:
            found, expected = ([x for step in getattr(output, name) for x in step] for output in (residual, ordinary))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.thorough
@each_dynamics
@each_family
def test_assisted_decoding_gives_the_tokens_of_the_model_itself(family, dynamics):
    model = model_of(family, dynamics)
    assistant = model_of(family, rf.Midpoint(), num_hidden_layers=2)
    expected = model.generate(PROMPT[:1], **GREEDY)
    assert torch.equal(model.generate(PROMPT[:1], assistant_model=assistant, **GREEDY), expected)
    ordinary = model_of(family)
    expected = ordinary.generate(PROMPT[:1], **GREEDY)
    assert torch.equal(ordinary.generate(PROMPT[:1], assistant_model=assistant, **GREEDY), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "FalconForCausalLM"])
def test_an_early_exit_is_refused_and_leaves_the_model_as_it_was(family):
    model = model_of(family, rf.Midpoint())
    expected = model.generate(PROMPT[:1], **GREEDY)
    with pytest.raises(rf.NotReversibleError, match="only the first 2 of its 4 layers, as assistant_early_exit asks"):
        model.generate(PROMPT[:1], assistant_early_exit=2, **GREEDY)
    assert model.config.num_hidden_layers == 4
    assert torch.equal(model.generate(PROMPT[:1], **GREEDY), expected)


@each_family
def test_resized_and_tied_embeddings(family):
    model = model_of(family, rf.Midpoint(), tie_word_embeddings=True)
    with torch.no_grad():
        before = model(PROMPT).logits
    model.resize_token_embeddings(140)
    assert model.config.get_text_config().vocab_size == 140
    assert torch.equal(model(PROMPT).logits[..., :128], before)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not torch.equal(model(PROMPT).logits[..., :128], before)
    assert rf.verify_gradients(model.train(), batch(model)).bit_exact


@each_dynamics
@each_family
def test_hidden_states_are_those_of_the_recurrence_in_both_modes(family, dynamics):
    model = model_of(family, dynamics)
    with torch.no_grad():
        expected = model(PROMPT, output_hidden_states=True)
    trained = model.train()(PROMPT, output_hidden_states=True)
    assert len(expected.hidden_states) == 5
    assert torch.equal(model.get_output_embeddings()(expected.hidden_states[-1]), expected.logits) or family == "gemma3"
    for state, other in zip(expected.hidden_states, trained.hidden_states, strict=True):
        assert torch.equal(state, other)
    assert all(state.requires_grad for state in trained.hidden_states)


def test_a_model_runs_in_several_threads_at_once():
    model = model_of("llama", rf.Midpoint())
    prompts = [torch.full((1, 6), token) for token in range(10, 18)]
    expected = [model.generate(prompt, **GREEDY) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda prompt: model.generate(prompt, **GREEDY), prompts))
    assert all(map(torch.equal, found, expected))


def test_a_model_may_run_within_another_and_within_itself():
    outer, inner = model_of("llama", rf.Midpoint()), model_of("FalconForCausalLM", rf.Hamiltonian())
    expected, found = [model(PROMPT).logits for model in (outer, inner, outer)], []
    running = []

    def run_others(*_):
        if not running:
            running.append(True)
            found.extend(model(PROMPT).logits for model in (inner, outer))

    outer.model.layers[1].mlp.register_forward_hook(run_others)
    found.insert(0, outer(PROMPT).logits)
    assert len(found) == 3
    assert all(map(torch.equal, found, expected))
