"""Mixtures of experts: router outputs, and the gradients of their auxiliary loss, under every policy."""

import contextlib

import pytest
import torch

import revformers as rf
from tests.tiny_models import batch, tiny

FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss"]
POLICIES = ["store", "rebuild", "checkpoint"]


def step(model, policy, part, half):
    """The router logits of every layer, the loss, and the gradients of `part`, "loss" or "aux_loss", by name."""
    rf.set_activations(model, policy)
    model.zero_grad()
    torch.manual_seed(1)  # dropout
    with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
        output = model(**batch(model), output_router_logits=True)
    output[part].backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return [logits.detach() for logits in output.router_logits], output[part].detach(), gradients


@pytest.mark.parametrize("part", ["loss", "aux_loss"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16 autocast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_routers_and_their_loss_are_those_of_stored_activations(family, half, part):
    model = rf.make_reversible(tiny(family, dropout=0.2), rf.BlendedMidpoint("1/4"))
    stored, *others = (step(model, policy, part, half) for policy in POLICIES)
    logits, loss, gradients = stored
    assert len(logits) == model.config.num_hidden_layers
    routers = [name for name in gradients if name.endswith((".router.weight", ".gate.weight"))]
    assert len(routers) == model.config.num_hidden_layers
    assert all(gradients[name].any() for name in routers)
    assert ("lm_head.weight" in gradients) == (part == "loss"), "the auxiliary loss does not reach the head"
    for other_logits, other_loss, other_gradients in others:
        assert all(map(torch.equal, logits, other_logits))
        assert torch.equal(loss, other_loss)
        assert gradients.keys() == other_gradients.keys()
        assert all(torch.equal(gradient, other_gradients[name]) for name, gradient in gradients.items())


def test_dropout_takes_part():
    model = rf.make_reversible(tiny("mixtral", dropout=0.2), rf.BlendedMidpoint("1/4"))
    first = step(model, "store", "aux_loss", half=False)[1]
    assert not torch.equal(first, step(model.eval(), "store", "aux_loss", half=False)[1])
