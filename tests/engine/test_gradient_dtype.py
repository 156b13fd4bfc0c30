import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import revformers as rf
from lab.bench.workload import llama_config
from lab.studies.stream_gradients import errors
from revformers.engine.gradient_dtype import gradient_dtype
from revformers.planning.setups import rebuild
from revformers.planning.step import step_memory
from revformers.setup import CHECKPOINT, Workload

NARROW = [rf.Midpoint(), rf.Hamiltonian(), rf.BlendedMidpoint("1/16"), rf.BlendedMidpoint("1/2"), rf.Residual()]
WIDE = [rf.Leapfrog(), rf.BlendedMidpoint("-1/16"), rf.BlendedMidpoint.random(0)]


@pytest.mark.parametrize("dynamics", [*NARROW, *WIDE], ids=lambda dynamics: dynamics.recurrence)
def test_the_dtype_is_that_of_the_stream_where_it_suffices(dynamics):
    steps = dynamics.steps(12)
    expected = torch.bfloat16 if dynamics in NARROW else torch.float32
    assert gradient_dtype(torch.bfloat16, steps) == expected
    assert gradient_dtype(torch.float16, steps) == gradient_dtype(torch.float32, steps) == torch.float32
    assert gradient_dtype(torch.float64, steps) == torch.float64


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = AutoConfig.for_model(**llama_config(16, 32, 64, 32) | {"initializer_range": 0.2})
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), torch.randint(64, (2, 32))


@pytest.mark.parametrize("dynamics", [NARROW[0], NARROW[2], WIDE[0]], ids=lambda dynamics: dynamics.name)
def test_gradients_are_as_precise_as_those_of_the_ordinary_network(network, dynamics):
    """Against float64. Leapfrog is the control: in bfloat16 it would be far less precise."""
    ordinary = errors(*copy.deepcopy(network), None)["bfloat16"]
    found = errors(*copy.deepcopy(network), dynamics)
    chosen = str(gradient_dtype(torch.bfloat16, dynamics.steps(16))).removeprefix("torch.")
    assert found[chosen] < 1.1 * ordinary
    assert (found["bfloat16"] < 1.2 * found["float32"]) == (dynamics in NARROW)


def test_rebuilding_holds_one_gradient_more_than_checkpointing_while_a_layer_is_differentiated():
    """And the input of the layer, which checkpointing keeps from the forward pass."""
    workload = Workload(llama_config(6, 256, 64, 512), sequence_length=512, precision="bfloat16")
    of_stream = 4 * 512 * 256 * 2
    working = [step_memory(workload, setup, 4, 512).device.working for setup in (CHECKPOINT, rebuild(0))]
    assert working[1] - working[0] < 2.01 * of_stream
