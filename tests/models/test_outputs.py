"""What a model returns beside its logits: attention weights, hidden states, router logits."""

import pytest
import torch
import transformers
from torch import Tensor

import revformers as rf
from lab.survey import architectures
from lab.tiny import perturb_, tiny_batch, tiny_model
from tests.conversion.test_convert import TEXT
from tests.tiny_models import FAMILIES, batch, tiny

FROM_LAYERS = [
    "BloomForCausalLM",
    "CpmAntForCausalLM",
    "CTRLLMHeadModel",
    "FalconForCausalLM",
    "GPTNeoForCausalLM",
    "MptForCausalLM",
    "XLNetLMHeadModel",
]
"""Architectures whose layers return attention weights beside their hidden state."""
FAST = [*FAMILIES.values(), *FROM_LAYERS, "BambaForCausalLM", "GPTJForCausalLM", "RoCBertForCausalLM"]
POLICIES = ["store", "checkpoint", "offload", "rebuild"]


def tensors(value, name=""):
    """Every value in an output, however deep, by its place."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in tensors(item, f"{name}.{key}").items()}
    if isinstance(value, (tuple, list)):
        return {k: v for key, item in enumerate(value) for k, v in tensors(item, f"{name}[{key}]").items()}
    return {} if value is None else {name: value}


def outputs(model, inputs, gradients=False):
    with torch.set_grad_enabled(gradients):
        output = model(**inputs)
    return tensors({name: value for name, value in output.items() if name != "past_key_values"})


def everything(model):
    """A batch that asks for all that a model can return."""
    inputs = tiny_batch(model) | {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
    return inputs | ({"output_router_logits": True} if hasattr(model.config, "output_router_logits") else {})


@pytest.mark.parametrize(
    "architecture", [*FAST, *(pytest.param(x, marks=pytest.mark.slow) for x in architectures() if x not in FAST)]
)
def test_outputs_hold_the_tensors_of_the_ordinary_model(architecture):
    torch.manual_seed(0)
    try:
        model = perturb_(tiny_model(getattr(transformers, architecture), attn_implementation="eager")).eval()
        inputs = everything(model)
        expected = outputs(model, inputs)
        outputs(rf.make_reversible(model, rf.Residual(), "checkpoint"), inputs, gradients=True)
    except rf.NotReversibleError as error:
        pytest.skip(f"refused: {error}")
    except Exception as error:  # the survey says why
        pytest.skip(f"not built: {error}")
    assert architecture not in FROM_LAYERS or any("attentions" in name for name in expected)
    for policy, gradients in (("store", False), ("store", True), ("checkpoint", True)):
        rf.set_activations(model, policy)
        found = outputs(model, inputs, gradients)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert isinstance(found[name], Tensor), f"{name} with {policy} is {found[name]!r}"
            scale = value[value.isfinite()].abs().max().item() if value.is_floating_point() else 0
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4 * max(1, scale), equal_nan=True, msg=name)
    for granularity in ("block", "branch"):
        try:
            rf.make_reversible(model, rf.Midpoint(granularity=granularity))
        except rf.NotReversibleError:
            continue
        found = outputs(model, inputs, gradients=True)
        assert found.keys() == expected.keys()
        assert all(isinstance(value, Tensor) for value in found.values())


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", *FROM_LAYERS])
def test_attention_weights_have_the_same_gradients_under_every_policy(architecture):
    model = tiny(architecture, initializer_range=0.2, attn_implementation="eager")
    rf.make_reversible(model, rf.BlendedMidpoint("1/4"))
    inputs = batch(model) | {"output_attentions": True}
    gradients = {}
    policies = [*POLICIES, rf.Budget(rf.smallest_budget(model, 2, 16) + 100_000)]
    for policy in policies:
        rf.set_activations(model, policy)
        model.zero_grad()
        model(**inputs)  # a budget stores layers from the second pass of a batch shape on
        output = model(**inputs)
        weights = [value for value in tensors(output.attentions).values() if value.requires_grad]
        assert len(weights) == 4
        (output.loss + sum(value.square().sum() for value in weights)).backward()
        gradients[policy] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for policy in policies:
        assert gradients[policy].keys() == gradients["store"].keys()
        assert all(torch.equal(gradients[policy][name], value) for name, value in gradients["store"].items()), policy
    model.zero_grad()
    model(**inputs).loss.backward()
    assert any(
        not torch.equal(p.grad, gradients["store"][name]) for name, p in model.named_parameters() if p.grad is not None
    )


@pytest.mark.parametrize(("dynamics", "evaluations"), [(rf.Midpoint(), 3), (rf.TwoEvaluationMidpoint("1/4"), 5)])
def test_attention_weights_do_not_live_as_long_as_the_graph(dynamics, evaluations):
    model = tiny("FalconForCausalLM", num_hidden_layers=3, attn_implementation="eager")
    rf.make_reversible(model, dynamics)
    alive = []

    def note(_module, _arguments, output):
        alive.append(output[1].untyped_storage()._weak_ref())

    for layer in model.transformer.h:
        layer.self_attention.register_forward_hook(note)
    loss = model(**batch(model)).loss
    assert len(alive) == evaluations
    assert all(torch.UntypedStorage._expired(reference) for reference in alive)
    loss.backward()


@pytest.mark.thorough
@pytest.mark.parametrize("by", ["argument", "config"])
def test_attention_weights_are_never_counted_twice(by):
    model = tiny("llama", attn_implementation="eager").eval()
    rf.convert(model, 0, TEXT, predictor="previous_update")
    if by == "config":
        model.config.output_attentions = True
    with pytest.raises(
        ValueError, match="output_attentions cannot be used with a model that evaluates attention twice"
    ):
        model(TEXT, use_cache=False, **({"output_attentions": True} if by == "argument" else {}))
    model.config.output_attentions = False
    rf.make_residual(model)
    rf.convert(model, 0, TEXT, predictor="previous_mlp")
    assert len(model(TEXT, output_attentions=True).attentions) == 4
