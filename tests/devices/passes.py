"""Passes of models on a device, and their comparison with stored activations.

Every case runs on the CPU too, so that on a GPU only the device is new. Kernels of a GPU may sum in another order in
every call, such as those of the gradient of flash attention. So two passes are compared to the bit with deterministic
kernels; with the ordinary ones, their losses are equal and nothing was rebuilt otherwise, and gradients are close.
"""

import contextlib

import pytest
import torch

import revformers as rf
from tests.tiny_models import batch, tiny

POLICIES = ("rebuild", "checkpoint", "offload", "budget:rebuild", "budget:checkpoint")
SHARE = 8.0
"""A budget, relative to the smallest: of six layers, some are stored and others are not."""


def each_device(*on_cpu):
    """Run a test on the CPU, with these marks, and on a GPU."""
    return pytest.mark.parametrize(
        "device", [pytest.param("cpu", marks=on_cpu), pytest.param("cuda", marks=pytest.mark.gpu)]
    )


on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])


def network(device, dynamics=None, activations="store", states="auto", **options):
    """A reversible model of six layers whose updates are not small."""
    model = tiny("llama", num_hidden_layers=6, initializer_range=0.1, **options).to(device)
    return rf.make_reversible(model, dynamics or rf.BlendedMidpoint("1/4"), activations, states)


def set_policy(model, policy, inputs, share=SHARE):
    """Set an activation policy; a budget is `share` times the smallest for these inputs."""
    if policy.startswith("budget:"):
        recompute = policy.removeprefix("budget:")
        smallest = rf.smallest_budget(model, *inputs["input_ids"].shape, recompute)
        policy = rf.Budget(int(share * smallest), recompute)
    rf.set_activations(model, policy)


def step(model, policy, inputs=None, autocast=None, share=SHARE):
    """The loss and the gradient of every trained parameter, by name.

    Args:
        model: a reversible model.
        policy: the name of its activation policy.
        inputs: a batch on the device of the model; None for the tiny one.
        autocast: the dtype of autocast; None for no autocast.
        share: a budget, relative to the smallest.

    """
    inputs = batch(model) if inputs is None else inputs
    set_policy(model, policy, inputs, share)
    model.zero_grad()
    context = torch.autocast(model.device.type, autocast) if autocast else contextlib.nullcontext()
    with context:
        if policy.startswith("budget:"):
            model(**inputs)  # the first pass of a batch shape is observed, and stores no layer
        torch.manual_seed(1)
        loss = model(**inputs).loss
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def different(one, other):
    """The names of what differs between two steps."""
    (loss, gradients), (other_loss, others) = one, other
    assert gradients.keys() == others.keys()
    assert any(gradient.any() for gradient in gradients.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    names = [name for name, gradient in gradients.items() if not torch.equal(gradient, others[name])]
    return names if torch.equal(loss, other_loss) else ["loss", *names]


def assert_exact(model, policies=POLICIES, **options):
    """Assert that every policy gives the loss and the gradients of stored activations to the bit."""
    stored = step(model, "store", **options)
    for policy in policies:
        assert not different(step(model, policy, **options), stored), policy


def assert_close(model, tolerance, policies=POLICIES, **options):
    """Assert the same where kernels vary: losses to the bit, and gradients relative to the largest of all."""
    loss, stored = step(model, "store", **options)
    scale = max(gradient.abs().max().item() for gradient in stored.values())
    for policy in policies:
        other_loss, gradients = step(model, policy, **options)
        assert torch.equal(other_loss, loss), policy
        assert gradients.keys() == stored.keys()
        for name, gradient in gradients.items():
            assert (gradient - stored[name]).abs().max().item() <= tolerance * scale, (policy, name)
