import dataclasses

import pytest
import torch
from transformers import AutoConfig

from lab.bench.memory import Measurer
from lab.bench.workload import MeasuredWorkload as Measured
from lab.bench.workload import llama_config
from revformers.planning.setups import rebuild, title_of
from revformers.planning.step import _STEPS, _memory, step_memory, step_operations, step_time
from revformers.setup import CHECKPOINT, OFFLOAD, STORE, Workload

CONFIG = llama_config(6, 128, 256, 256)
WORKLOAD = Workload(AutoConfig.for_model(**CONFIG), head="own")
SETUPS = (STORE, CHECKPOINT, rebuild(0), rebuild(2))


@pytest.mark.thorough
@pytest.mark.parametrize("setup", [STORE, CHECKPOINT, rebuild(0)], ids=title_of)
@pytest.mark.parametrize("head", ["own", "chunked"])
def test_the_planned_peak_is_the_measured_one(setup, head):
    measured = Measurer().peak(Measured(CONFIG, 2, 256, head=head), setup).peak
    workload = dataclasses.replace(WORKLOAD, head=head)
    assert step_memory(workload, setup, 2, 256).device.total == pytest.approx(measured, rel=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("training", "dtype"), [("full", torch.float32), ("full", torch.bfloat16), ("qlora", torch.bfloat16)]
)
def test_depth_is_carried_on_exactly(training, dtype):
    pytest.importorskip("peft")
    workload = Workload(AutoConfig.for_model(**CONFIG), precision=str(dtype).removeprefix("torch."), training=training)
    for setup in SETUPS:
        whole = _memory(workload, setup, 6, 2, 64)
        assert step_memory(workload, setup, 2, 64).device.total == sum(whole.values())


def test_the_ends_of_a_stack_are_special():
    pytest.importorskip("peft")
    workload = Workload(AutoConfig.for_model(**CONFIG), training="lora")
    peaks = [sum(_memory(workload, rebuild(0), depth, 2, 64).values()) for depth in (2, 3, 4, 5)]
    # Eight bytes of every tensor that a step is compared by are all that grows.
    assert peaks[0] < peaks[1] < peaks[2] == pytest.approx(peaks[3], abs=1024)


def test_a_shallow_model_is_run_as_it_is():
    config = AutoConfig.for_model(**CONFIG | {"num_hidden_layers": 1})
    workload = Workload(config, head="own")
    assert step_memory(workload, rebuild(0), 1, 64).device.total == sum(
        _memory(workload, rebuild(0), 1, 1, 64).values()
    )


def test_offloading_moves_the_checkpoints_of_all_layers_but_one():
    on_device, offloaded = (step_memory(WORKLOAD, setup, 2, 64) for setup in (CHECKPOINT, OFFLOAD))
    layer_input = 4 * 2 * 64 * 128
    assert offloaded.host == pytest.approx(6 * layer_input, rel=0.01)
    assert on_device.device.total - offloaded.device.total == pytest.approx(5 * layer_input, rel=0.01)


@pytest.mark.thorough
def test_a_loss_of_few_chunks_takes_what_one_of_many_takes(monkeypatch):
    workload = Workload(AutoConfig.for_model(**CONFIG))
    for setup in SETUPS:
        many = step_memory(workload, setup, 1, 16384).device.total
        forget()
        with monkeypatch.context() as patch:
            patch.setattr("revformers.planning.step.COUNTED", 4096)
            few = step_memory(workload, setup, 1, 16384).device.total
        forget()
        assert few == pytest.approx(many, rel=0.01)


def forget():
    _memory.cache_clear()
    _STEPS.clear()


@pytest.mark.thorough
def test_operations_of_many_chunks_are_counted():
    workload = Workload(AutoConfig.for_model(**CONFIG))
    short, long = (step_operations(workload, STORE, tokens) for tokens in (16384, 32768))
    # Two products forward and five backward a layer; all else grows with the tokens.
    attention = 6 * 7 * 2 * 16384**2 * 128
    assert long == pytest.approx(2 * (short - attention) + 4 * attention, rel=0.001)


def test_checkpointing_and_rebuilding_cost_at_most_a_forward_pass():
    stored, checkpointed, rebuilt = (step_operations(WORKLOAD, setup, 64) for setup in SETUPS[:3])
    assert stored < checkpointed < rebuilt <= stored * 4 / 3


def test_time_is_operations_where_bytes_cost_nothing():
    for setup in SETUPS:
        assert round(step_time(WORKLOAD, setup, 64, 0.0)) == step_operations(WORKLOAD, setup, 64)
        assert step_time(WORKLOAD, setup, 64, 100.0) > step_time(WORKLOAD, setup, 64, 1.0)
