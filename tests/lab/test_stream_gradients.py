"""The precision of gradients by the dtype in which those of the states are summed, as lab.studies measures it."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import revformers as rf
from lab.bench.workload import llama_config
from lab.studies.stream_gradients import errors
from revformers.engine.gradient_dtype import gradient_dtype


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = AutoConfig.for_model(**llama_config(16, 32, 64, 32) | {"initializer_range": 0.2})
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), torch.randint(64, (2, 32))


@pytest.mark.parametrize(
    ("dynamics", "bfloat16_suffices"),
    [
        (rf.Midpoint(), True),
        (rf.BlendedMidpoint("1/16"), True),
        (rf.BlendedMidpoint("1/2", 1.5), True),
        (rf.Leapfrog(), False),
        (rf.BlendedMidpoint("3/2", 0.01), False),
    ],
    ids=lambda value: getattr(value, "recurrence", None),
)
def test_gradients_are_as_precise_as_those_of_the_ordinary_network(network, dynamics, bfloat16_suffices):
    """Against float64. Where bfloat16 does not suffice, it is the control: it would be less precise."""
    ordinary = errors(*copy.deepcopy(network), None)["bfloat16"]
    found = errors(*copy.deepcopy(network), dynamics)
    chosen = str(gradient_dtype(torch.bfloat16, dynamics.steps(16))).removeprefix("torch.")
    assert found[chosen] < 1.1 * max(ordinary, found["float32"])
    assert (max(found["bfloat16"], found["waiting"]) < 1.15 * found["float32"]) == bfloat16_suffices
