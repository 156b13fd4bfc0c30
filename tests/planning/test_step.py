import dataclasses

import pytest
import torch
from transformers import AutoConfig

from lab.bench.memory import Measurer
from lab.bench.workload import MeasuredWorkload as Measured
from lab.bench.workload import llama_config
from revformers.activations import Checkpoint, Offload, Rebuild
from revformers.dynamics import BlendedMidpoint, Leapfrog, Midpoint, Residual
from revformers.head.loss import chunk_of
from revformers.planning.devices import DEVICES
from revformers.planning.setups import rebuild, title_of
from revformers.planning.step import (
    _STEPS,
    _memory,
    _peaks_outside_tiles,
    _work,
    step_memory,
    step_operations,
    step_time,
)
from revformers.setup import CHECKPOINT, OFFLOAD, STORE, Setup, Workload

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


@pytest.mark.parametrize(
    ("dynamics", "further"),
    [
        (Midpoint(), 1),
        (BlendedMidpoint("1/4"), 1),
        (BlendedMidpoint("1/4", 1.25), 1),
        (BlendedMidpoint("1/4", 0.5), 2),
        (Leapfrog(), 4),
    ],
    ids=lambda value: getattr(value, "recurrence", None),
)
def test_rebuilding_holds_one_gradient_more_than_checkpointing_while_a_layer_is_differentiated(dynamics, further):
    """In tensors of the stream's size; two if |c| < 1, and in float32 four: two gradients, and one for the layer."""
    workload = Workload(llama_config(6, 256, 64, 512), sequence_length=512, precision="bfloat16")
    memory = [step_memory(workload, setup, 4, 512).device for setup in (CHECKPOINT, Setup(dynamics, Rebuild()))]
    checkpointed, rebuilt = (device.working + device.head for device in memory)
    assert (rebuilt - checkpointed) / (4 * 512 * 256 * 2) == pytest.approx(further, abs=0.01)


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
    config = CONFIG | {"num_hidden_layers": 2, "vocab_size": 65536}  # so that the peak lies in the head
    workload = Workload(AutoConfig.for_model(**config), head="chunked")
    for setup in SETUPS:
        forget()
        few = step_memory(workload, setup, 1, 4096).device.total, step_operations(workload, setup, 1, 4096)
        forget()
        with monkeypatch.context() as patch:
            patch.setattr("revformers.planning.step.CHUNKS", 10**6)
            many = step_memory(workload, setup, 1, 4096).device.total, step_operations(workload, setup, 1, 4096)
        assert 0 <= many[0] - few[0] <= 4 * 4096 / chunk_of(workload.width)  # the sums of the other chunks
        assert few[1] == many[1]
    forget()


def forget():
    for cached in (_memory, _peaks_outside_tiles, _work):
        cached.cache_clear()
    _STEPS.clear()


@pytest.mark.thorough
def test_operations_of_many_chunks_are_counted():
    workload = Workload(AutoConfig.for_model(**CONFIG))
    short, long = (step_operations(workload, STORE, 1, tokens) for tokens in (16384, 32768))
    # Two products forward and five backward a layer, of which a token sees half; all else grows with the tokens.
    attention = 6 * 7 * 16384**2 * 128
    assert long == pytest.approx(2 * (short - attention) + 4 * attention, rel=0.001)


def test_checkpointing_and_rebuilding_cost_at_most_a_forward_pass():
    stored, checkpointed, rebuilt = (step_operations(WORKLOAD, setup, 1, 64) for setup in SETUPS[:3])
    assert stored < checkpointed < rebuilt <= stored * 4 / 3


@pytest.mark.thorough
def test_time_is_operations_where_bytes_cost_nothing():
    speed = DEVICES["h100"].float32
    endless, usual, slow = (dataclasses.replace(DEVICES["h100"], memory=memory) for memory in (1e30, 1e12, 1e10))
    for setup in SETUPS:
        seconds = step_time(WORKLOAD, setup, 1, 64, endless)
        assert round(seconds * speed) == step_operations(WORKLOAD, setup, 1, 64)
        assert step_time(WORKLOAD, setup, 1, 64, slow) > step_time(WORKLOAD, setup, 1, 64, usual)


def test_this_library_hides_copies_and_transformers_waits_for_them():
    device = DEVICES["h100"]
    overlapped = Setup(Residual(), Offload())
    host = step_memory(WORKLOAD, overlapped, 2, 64).host
    assert host == 6 * 4 * 2 * 64 * 128
    computed = step_time(WORKLOAD, Setup(Residual(), Checkpoint()), 2, 64, device)
    hidden, half, slow = (
        step_time(WORKLOAD, overlapped, 2, 64, dataclasses.replace(device, link=host / seconds))
        for seconds in (computed / 10, computed / 2, 10 * computed)
    )
    assert hidden == pytest.approx(computed, rel=0.01)
    assert computed < half < 1.5 * computed, "the backward pass takes longer than its copies, the forward pass does not"
    assert slow == pytest.approx(20 * computed)
    serial = step_time(WORKLOAD, OFFLOAD, 2, 64, dataclasses.replace(device, link=host / computed))
    assert serial == pytest.approx(step_time(WORKLOAD, CHECKPOINT, 2, 64, device) + 2 * computed, rel=0.01)


def test_pinned_memory_is_taken_in_powers_of_two():
    overlapped = Setup(Residual(), Offload())
    assert step_memory(WORKLOAD, overlapped, 3, 64).host == step_memory(WORKLOAD, overlapped, 4, 64).host


def test_an_overlapped_offload_has_two_inputs_on_the_device():
    offloaded, kept = (
        step_memory(WORKLOAD, Setup(Residual(), policy), 2, 64).device.total for policy in (Offload(), Checkpoint())
    )
    layer_input = 4 * 2 * 64 * 128
    assert kept - offloaded == pytest.approx(4 * layer_input, rel=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize("setup", [CHECKPOINT, rebuild(2)], ids=title_of)
def test_few_tiles_are_run_and_many_counted(setup, monkeypatch):
    tiled = dataclasses.replace(setup, mlp_tile=32)
    few = step_memory(WORKLOAD, tiled, 2, 192).device.total, step_time(WORKLOAD, tiled, 2, 192, DEVICES["h100"])
    assert few[0] < step_memory(WORKLOAD, setup, 2, 192).device.total
    assert few[1] > step_time(WORKLOAD, setup, 2, 192, DEVICES["h100"])
    forget()
    monkeypatch.setattr("revformers.planning.step.TILES", 1000)
    all_of_them = step_memory(WORKLOAD, tiled, 2, 192).device.total, step_time(WORKLOAD, tiled, 2, 192, DEVICES["h100"])
    forget()
    assert few[0] == pytest.approx(all_of_them[0], rel=0.002)
    assert few[1] == pytest.approx(all_of_them[1], rel=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("setup", [CHECKPOINT, rebuild(2)], ids=title_of)
def test_the_planned_peak_with_tiles_is_the_measured_one(setup):
    tiled = dataclasses.replace(setup, mlp_tile=200)  # the last tile is half as large
    measured = Measurer().peak(Measured(CONFIG, 2, 256, head="chunked"), tiled).peak
    workload = dataclasses.replace(WORKLOAD, head="chunked")
    # PyTorch keeps the state of the CPU's random numbers, 5,056 bytes, for every checkpoint.
    assert step_memory(workload, tiled, 2, 256).device.total == pytest.approx(measured, rel=0.01, abs=9 * 5056)


def test_fused_kernels_take_no_workspace():
    narrow = Workload(AutoConfig.for_model(**CONFIG | {"intermediate_size": 16}), head="own")
    for setup, differ in ((rebuild(2), True), (STORE, False)):
        plain, fused = (step_memory(narrow, setup, 1, 64, fused=fused).device.total for fused in (False, True))
        assert (fused < plain) == differ, "the ordinary network has none of the engine's kernels"
        assert fused <= plain
