"""Exact gradients for every family, dynamics and precision: the whole matrix with ``-m slow``, a slice by default."""

import contextlib
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional

import revformers as rf
from lab.survey import EXACT, FAILED, architectures, block_updates, examine
from lab.tiny import perturb_
from revformers.engine.states import StatePair
from revformers.models import families
from revformers.models.discovery import find_stack
from revformers.models.families import LAYOUTS, find_layout
from tests.tiny_models import FAMILIES, batch, tiny

DYNAMICS = {
    "midpoint": rf.Midpoint(),
    "quarter": rf.BlendedMidpoint("1/4"),
    "random": rf.BlendedMidpoint.random(0),
    "leapfrog": rf.Leapfrog(),
    "hamiltonian": rf.Hamiltonian(),
}
PAGE = Path(__file__).parents[2] / "docs/appendix/families.md"
WEIGHTS = {"plain": 0.02, "sharp": 0.2}
PRECISIONS = ("fp32", "bf16", "autocast")
DROPOUTS = {"no_dropout": 0.0, "dropout": 0.1}
TRAINED = ("full", "lora")


def matrix():
    """Every case; those outside the slice are slow. The slice has each family with each dynamics, and of the other
    settings one combination each, so that all of them come up."""
    settings = list(itertools.product(WEIGHTS, PRECISIONS, DROPOUTS, TRAINED))
    for number, pair in enumerate(itertools.product(FAMILIES, DYNAMICS)):
        for place, setting in enumerate(settings):
            in_slice = place == 7 * number % len(settings)
            yield pytest.param(
                *pair, *setting, id="-".join((*pair, *setting)), marks=[] if in_slice else [pytest.mark.slow]
            )


@pytest.mark.parametrize(("family", "dynamics", "weights", "precision", "dropout", "trained"), matrix())
def test_rebuilt_gradients_equal_stored_ones_to_the_bit(family, dynamics, weights, precision, dropout, trained):
    model = tiny(
        family,
        initializer_range=WEIGHTS[weights],
        dropout=DROPOUTS[dropout],
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        lora=trained == "lora",
    )
    rf.make_reversible(model, DYNAMICS[dynamics])
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else contextlib.nullcontext()
    with autocast:
        report = rf.verify_gradients(model, batch(model))
    assert report.bit_exact, str(report)
    assert report.parameters == sum(parameter.requires_grad for parameter in model.parameters())
    assert torch.isfinite(torch.tensor(report.loss))


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_state_changed_by_one_unit_during_the_rebuild_is_found(family, dynamics, monkeypatch):
    retreat = StatePair.retreat
    changed = []

    def retreat_and_change(self, *arguments):
        retreat(self, *arguments)
        if not changed:
            self.previous.view(-1)[5] += 1
            changed.append(True)

    monkeypatch.setattr(StatePair, "retreat", retreat_and_change)
    model = rf.make_reversible(tiny(family), DYNAMICS[dynamics])
    with pytest.raises(rf.RebuildMismatchError):
        model(**batch(model)).loss.backward()


def relative_difference(values, expected):
    """The largest difference of any gradient, relative to the largest entry of all."""
    assert values.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    return (max((values[name] - expected[name]).abs().max() for name in expected) / scale).item()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def gpt_neox_recurrence(model, input_ids, dynamics):
    """The loss of GPT-NeoX under `dynamics` in plain floating point, by the equations of the paper alone."""
    decoder = model.gpt_neox
    state = decoder.embed_in(input_ids)
    position_ids = torch.arange(input_ids.shape[1])[None]
    position_embeddings = decoder.rotary_emb(state, position_ids)
    inputs = {"attention_mask": None, "position_ids": position_ids, "position_embeddings": position_embeddings}
    previous = state
    for index, layer in enumerate(decoder.layers):
        if isinstance(dynamics, rf.Hamiltonian):
            previous = previous + layer.attention(layer.input_layernorm(state), **inputs)[0]
            state = state + layer.mlp(layer.post_attention_layernorm(previous))
        else:
            step = dynamics.coefficients(index)
            a, b, c = float(step.previous), float(step.current), step.update
            update = type(layer).forward(layer, state, **inputs) - state
            previous, state = state, a * previous + b * state + c * update
    logits = model.get_output_embeddings()(decoder.final_layer_norm(state))
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_gradients_agree_with_a_float64_recurrence_without_fixed_point(dynamics):
    model = tiny("gpt_neox", dtype=torch.float64, initializer_range=0.2)
    input_ids = batch(model)["input_ids"]
    loss = gpt_neox_recurrence(model, input_ids, DYNAMICS[dynamics])
    loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    rebuilt = rf.make_reversible(model, DYNAMICS[dynamics])(input_ids, labels=input_ids).loss
    rebuilt.backward()
    assert rebuilt.item() == pytest.approx(loss.item(), rel=1e-6)
    assert relative_difference(gradients(model), expected) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_is_the_ordinary_model(family):
    model = perturb_(tiny(family)).eval()
    inputs = batch(model)
    ordinary = model(**inputs)
    ordinary.loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    residual = rf.make_reversible(model, rf.Residual(), "store")(**inputs)
    residual.loss.backward()
    torch.testing.assert_close(residual.logits, ordinary.logits, rtol=0, atol=2e-5)
    assert relative_difference(gradients(model), expected) < 1e-4


@pytest.mark.parametrize("beams", [1, 3], ids=["greedy", "beam_search"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_gives_the_same_tokens_with_and_without_a_cache(family, beams):
    model = rf.make_reversible(perturb_(tiny(family)), rf.Hamiltonian()).eval()
    model.generation_config.eos_token_id = None
    prompt = torch.arange(10, 26).view(2, 8)
    cached, plain = (
        model.generate(prompt, max_new_tokens=6, do_sample=False, num_beams=beams, use_cache=use_cache, pad_token_id=0)
        for use_cache in (True, False)
    )
    assert cached.shape == (2, 14)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("dynamics", ["midpoint", "hamiltonian"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_auxiliary_loss_of_experts_has_exact_gradients(family, dynamics):
    model = rf.make_reversible(tiny(family, initializer_range=0.2), DYNAMICS[dynamics])
    inputs = batch(model) | {"output_router_logits": True}
    output = model(**inputs)
    assert output.aux_loss > 0
    output.aux_loss.backward()
    routers = [gradient for name, gradient in gradients(model).items() if "router" in name or ".gate." in name]
    assert len(routers) >= 4
    assert all(gradient.any() for gradient in routers)
    assert rf.verify_gradients(model, inputs).bit_exact


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_auxiliary_loss_of_experts_is_that_of_the_ordinary_model(family):
    model = tiny(family, initializer_range=0.2)
    inputs = batch(model) | {"output_router_logits": True}
    model(**inputs).loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    rf.make_reversible(model, rf.Residual(), "store")(**inputs).loss.backward()
    assert relative_difference(gradients(model), expected) < 1e-4


VARIANTS = {
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm-parallel": ("StableLmForCausalLM", {"use_parallel_residual": True}),
    "stablelm-sequential": ("StableLmForCausalLM", {"use_parallel_residual": False}),
    "falcon-40b": ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-sequential": ("FalconForCausalLM", {"parallel_attn": False, "alibi": True}),
    "granite4-dense": ("GraniteMoeHybridForCausalLM", {"num_local_experts": 0}),
    "granite-shared-experts": ("GraniteMoeSharedForCausalLM", {"shared_intermediate_size": 64}),
    "llama4-dense": ("Llama4ForCausalLM", {"moe_layers": [1]}),
}


def with_layout(name):
    family, options = VARIANTS.get(name, (name, {}))
    return perturb_(tiny(family, **options))


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_the_branches_of_a_layer_add_up_to_what_the_layer_adds(name):
    model = with_layout(name)
    updates = list(block_updates(model, batch(model)))
    assert len(updates) == len(find_stack(model).layers)
    for _, update, expected in updates:
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_layer_have_exact_gradients_by_branch(name):
    model = rf.make_reversible(with_layout(name), rf.Hamiltonian())
    assert rf.verify_gradients(model, batch(model)).bit_exact


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("FalconForCausalLM", {"hidden_dropout": 0.1}),
        ("BloomForCausalLM", {}),
    ],
    ids=["opt-post-norm", "falcon-dropout", "bloom"],
)
def test_layers_without_a_layout_step_by_block_only(family, options):
    model = tiny(family, dropout=0.1, **options)
    assert find_layout(find_stack(model).layers[0]) is None
    with pytest.raises(rf.NotReversibleError, match="splits into attention and MLP is not known"):
        rf.make_reversible(model, rf.Hamiltonian())
    assert rf.verify_gradients(rf.make_reversible(model, rf.Midpoint()), batch(model)).bit_exact


def test_a_class_derived_from_a_known_layer_is_not_taken_for_it():
    layer = find_stack(tiny("llama")).layers[0]

    class Derived(type(layer)):
        pass

    layer.__class__ = Derived
    assert find_layout(layer) is not None, "FSDP derives classes, outside of transformers"
    Derived.__module__ = "transformers.models.derived.modeling_derived"
    assert find_layout(layer) is None


def test_the_survey_finds_a_wrong_layout(monkeypatch):
    (right,) = LAYOUTS["LlamaDecoderLayer"]
    swapped = replace(right, attention=replace(right.attention, before="post_attention_layernorm"))
    monkeypatch.setitem(families.LAYOUTS, "LlamaDecoderLayer", (swapped,))
    finding = examine("LlamaForCausalLM")
    assert finding.block == FAILED
    assert finding.note == "AssertionError: Residual gives other logits than the ordinary model"


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize(("architecture", "depth"), [("GPTJForCausalLM", "n_layer"), ("MptForCausalLM", "n_layers")])
def test_layers_that_return_attention_weights_as_well(architecture, depth, layers):
    model = perturb_(tiny(architecture, **{depth: layers})).eval()
    inputs = batch(model)
    expected = model(**inputs).logits
    rf.make_reversible(model, rf.Residual(), "store")
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=2e-5)
    assert rf.verify_gradients(rf.make_reversible(model.train(), rf.Midpoint()), inputs).bit_exact


def test_attention_weights_are_handed_on_where_nothing_is_evaluated_again():
    model = tiny("MptForCausalLM").eval()
    inputs = batch(model) | {"output_attentions": True}
    expected = model(**inputs).attentions
    rf.make_reversible(model, rf.Residual(), "store")
    for weights, ordinary in zip(model(**inputs).attentions, expected, strict=True):
        torch.testing.assert_close(weights, ordinary)


@pytest.mark.parametrize("architecture", ["CpmAntForCausalLM", "RoCBertForCausalLM", "Llama4ForCausalLM"])
def test_decoders_that_pass_use_cache_in_their_own_way(architecture):
    model = rf.make_reversible(tiny(architecture), rf.Midpoint())
    assert "forward" not in vars(model), "trainers inspect the signature of the whole model's forward"
    inputs = batch(model)
    del inputs["labels"]
    assert model(**inputs).past_key_values is None
    assert rf.verify_gradients(model, inputs).bit_exact


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("GPT2LMHeadModel", {"is_encoder_decoder": True}, "is an encoder-decoder"),
        ("HrmTextForCausalLM", {}, "runs its layers several times over"),
        ("Gemma3nForCausalLM", {}, "shares keys and values between layers"),
        ("Inkling2ForCausalLM", {}, "read the states of earlier layers"),
        ("BltForCausalLM", {}, "several stacks of layers"),
        ("opt", {"layerdrop": 0.1}, "set layerdrop to 0"),
        ("BartForCausalLM", {"decoder_layerdrop": 0.1}, "set decoder_layerdrop to 0"),
    ],
)
def test_what_is_no_plain_fold_is_refused_at_once(architecture, options, reason):
    if architecture in ("Inkling2ForCausalLM", "BltForCausalLM"):
        pytest.importorskip(
            "transformers", minversion="5.24", reason="5.17 lacks the one, and tiny models of the other"
        )
    model = tiny(architecture, **options)
    forward = type(model).forward
    with pytest.raises(rf.NotReversibleError, match=reason):
        rf.make_reversible(model, rf.Midpoint())
    assert model.forward.__func__ is forward


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("ZayaForCausalLM", "passes more than the hidden state from layer to layer"),
        ("RwkvForCausalLM", "changes the hidden state between layers"),
        ("MllamaForCausalLM", "ran 3 of its 4 layers"),
        ("ReformerModelWithLMHead", "takes something else before its hidden state"),
    ],
)
def test_what_is_no_plain_fold_is_refused_in_the_first_forward(architecture, reason):
    model = rf.make_reversible(tiny(architecture), rf.Midpoint())
    with pytest.raises(rf.NotReversibleError, match=reason):
        model.eval()(**batch(model))


def documented():
    """The rows of docs/appendix/families.md, by architecture."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]
    return {cells[0]: cells for cells in rows}


def test_the_page_knows_every_layout():
    proven = {layer for row in documented().values() if row[3] == EXACT for layer in row[1].split(", ")}
    assert LAYOUTS.keys() == proven


def test_the_page_knows_every_architecture_of_the_transformers_that_it_was_made_with():
    if not re.search(rf"transformers\s+{re.escape(transformers.__version__)}\s", PAGE.read_text(encoding="utf-8")):
        pytest.skip(f"docs/appendix/families.md was made with another transformers than {transformers.__version__}")
    assert set(architectures()) == documented().keys()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", architectures())
def test_the_page_says_what_the_survey_finds(architecture):
    finding = examine(architecture)
    assert finding.block != FAILED, finding.note
    assert documented()[architecture][1:4] == [", ".join(finding.layers), finding.block, finding.branch]
