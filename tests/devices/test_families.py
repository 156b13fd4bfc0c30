"""Every family that is tested in depth, mixtures of experts included."""

import pytest
import torch

import revformers as rf
from lab.private_api import run_experts_in_turn
from tests.devices.passes import assert_close, assert_exact, each_device
from tests.tiny_models import FAMILIES, batch, tiny

EXPERTS = ["mixtral", "qwen3_moe", "gpt_oss"]
POLICIES = {"policies": ("rebuild", "checkpoint")}


def network(device, family, dynamics, dtype):
    model = tiny(family, dtype=dtype, dropout=0.1, initializer_range=0.1).to(device)
    # OPT sums a mask of floats that it makes itself, for which PyTorch has no deterministic kernel on CUDA.
    inputs = batch(model)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return rf.make_reversible(model, dynamics), inputs


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_gradients_to_the_bit(deterministic, device, family, dtype):
    dynamics = rf.Hamiltonian() if dtype == torch.float32 else rf.BlendedMidpoint("1/4")
    model, inputs = network(device, family, dynamics, dtype)
    # The default counts the tokens of every expert by torch.histc, which has no deterministic kernel on CUDA.
    run_experts_in_turn(model)
    assert_exact(model, inputs=inputs, **POLICIES)


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("family", FAMILIES)
def test_with_ordinary_kernels_every_layer_is_evaluated_again_to_the_same_values(device, family):
    model, inputs = network(device, family, rf.Midpoint(), torch.bfloat16)
    del inputs["attention_mask"]
    assert_close(model, 2e-2, inputs=inputs, **POLICIES)


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", EXPERTS)
def test_every_implementation_of_experts_is_evaluated_again_to_the_same_values(device, family, experts):
    model, inputs = network(device, family, rf.Midpoint(), torch.bfloat16)
    model.set_experts_implementation(experts)
    assert_close(model, 2e-2, inputs=inputs | {"output_router_logits": True}, **POLICIES)
