import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import revformers as rf
from lab.bench.workload import llama_config
from lab.studies.stream_gradients import errors
from revformers.engine.gradient_dtype import gradient_dtype
from revformers.planning.step import step_memory
from revformers.setup import CHECKPOINT, Setup, Workload

SCALED = rf.BlendedMidpoint("1/2", 1.5)
NARROW = [rf.Midpoint(), rf.Hamiltonian(), rf.BlendedMidpoint("1/16"), SCALED, rf.Residual()]
WIDE = [rf.Leapfrog(), rf.BlendedMidpoint("3/2", 0.01), rf.BlendedMidpoint("-1/16"), rf.BlendedMidpoint.random(0)]


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


@pytest.mark.parametrize(
    "dynamics", [NARROW[0], NARROW[2], SCALED, *WIDE[:2]], ids=lambda dynamics: dynamics.recurrence
)
def test_gradients_are_as_precise_as_those_of_the_ordinary_network(network, dynamics):
    """Against float64. The wide ones are the control: in bfloat16 they would be far less precise."""
    ordinary = errors(*copy.deepcopy(network), None)["bfloat16"]
    found = errors(*copy.deepcopy(network), dynamics)
    chosen = str(gradient_dtype(torch.bfloat16, dynamics.steps(16))).removeprefix("torch.")
    assert found[chosen] < 1.1 * max(ordinary, found["float32"])
    assert (max(found["bfloat16"], found["waiting"]) < 1.2 * found["float32"]) == (dynamics in NARROW)


@pytest.mark.parametrize(
    ("dynamics", "further"),
    [
        (rf.Midpoint(), 1),
        (rf.BlendedMidpoint("1/4"), 1),
        (rf.BlendedMidpoint("1/4", 1.25), 1),
        (rf.BlendedMidpoint("1/4", 0.5), 2),
        (rf.Leapfrog(), 4),
    ],
    ids=lambda value: getattr(value, "recurrence", None),
)
def test_rebuilding_holds_one_gradient_more_than_checkpointing_while_a_layer_is_differentiated(dynamics, further):
    """In tensors of the stream's size; two if |c| < 1, and in float32 four: two gradients, and one for the layer."""
    workload = Workload(llama_config(6, 256, 64, 512), sequence_length=512, precision="bfloat16")
    memory = [step_memory(workload, setup, 4, 512).device for setup in (CHECKPOINT, Setup(dynamics, rf.Rebuild()))]
    checkpointed, rebuilt = (device.working + device.head for device in memory)
    assert (rebuilt - checkpointed) / (4 * 512 * 256 * 2) == pytest.approx(further, abs=0.01)
