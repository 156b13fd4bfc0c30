import dataclasses
import re

import pytest
import torch

from lab.bench.arm_names import setups_of
from lab.bench.memory import Measurer, TurnTimes
from lab.bench.process import measure_peak_memory
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers import BlendedMidpoint, Hamiltonian, Leapfrog, Midpoint
from revformers.activations import Checkpoint, Rebuild
from revformers.setup import CHECKPOINT, STORE, Setup

WORKLOAD = MeasuredWorkload(llama_config(3, 64, 32, 128), batch_size=4, sequence_length=128)
RANDOM_STATE_BYTES = 5056
"""What PyTorch's checkpointing keeps on the CPU besides the input of a step."""


def growth(arm, workload=WORKLOAD):
    """Return the bytes by which each of two added layers raises the peak."""
    shallow, deep = (Measurer().peak(workload.with_layers(layers), arm).peak for layers in (3, 5))
    return (deep - shallow) / 2


@pytest.mark.thorough
@pytest.mark.parametrize("dynamics", [Midpoint(), Leapfrog(), Hamiltonian()])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rebuilding_does_not_grow_with_depth(dynamics, precision):
    workload = dataclasses.replace(WORKLOAD, precision=precision)
    assert abs(growth(Setup(dynamics, Rebuild()), workload)) <= 0.01 * workload.layer_input_bytes


@pytest.mark.thorough
@pytest.mark.parametrize(("blend", "bits"), [("1/2", 1), ("1/16", 4)])
def test_a_contracting_step_grows_by_its_side_information(blend, bits):
    grown = growth(Setup(BlendedMidpoint(blend), Rebuild()))
    assert grown == pytest.approx(WORKLOAD.layer_input_elements * bits / 8, abs=0.01 * WORKLOAD.layer_input_bytes)


@pytest.mark.thorough
@pytest.mark.parametrize(("arm", "tensors"), [(CHECKPOINT, 1), (Setup(Hamiltonian(), Checkpoint()), 2)])
def test_the_meter_resolves_what_checkpointing_keeps(arm, tensors):
    grown = growth(arm)
    assert tensors * WORKLOAD.layer_input_bytes <= grown
    assert grown <= tensors * (WORKLOAD.layer_input_bytes + RANDOM_STATE_BYTES + 512)


@pytest.mark.thorough
def test_storing_grows_by_many_tensors():
    assert growth(STORE) > 10 * WORKLOAD.layer_input_bytes


@pytest.mark.thorough
def test_the_head_does_not_set_the_peak():
    # Otherwise the growth of the layers would hide below it.
    rebuild = Setup(Midpoint(), Rebuild())
    larger = dataclasses.replace(WORKLOAD, model_config=llama_config(3, 64, 64, 128))
    assert Measurer().peak(larger, rebuild).peak == Measurer().peak(WORKLOAD, rebuild).peak


@pytest.mark.thorough
def test_the_optimizer_has_states_that_count_apart_and_leaves_the_weights_alone():
    workload, measurer = dataclasses.replace(WORKLOAD, optimizer="adamw"), Measurer()
    with_states, without = measurer.peak(workload, STORE), Measurer().peak(WORKLOAD, STORE)
    parameters = WORKLOAD.build_model().num_parameters()
    assert 8 * parameters <= with_states.optimizer_states < 8 * parameters + 4096
    assert without.optimizer_states == 0
    assert with_states.weights_and_gradients == without.weights_and_gradients
    assert with_states.total == without.total + with_states.optimizer_states
    times = measurer.times({"store": (workload, STORE)}, rounds=2, warm_up_rounds=0)
    again = Measurer().times({"store": (WORKLOAD, STORE)}, rounds=2, warm_up_rounds=0)
    assert times.losses == again.losses


@pytest.mark.thorough
def test_arms_take_turns_on_one_model_and_see_the_same_batches():
    names = ["plain_checkpoint", "rebuild", "checkpoint", "plain_store", "budget"]
    arms = setups_of(names, Midpoint(), budget=2**22)
    larger = dataclasses.replace(WORKLOAD, batch_size=6)
    tasks = {name: (WORKLOAD, arm) for name, arm in arms.items()} | {"larger": (larger, arms["rebuild"])}
    times = Measurer().times(tasks, rounds=3, warm_up_rounds=1)
    assert times.out_of_memory == []
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == dict.fromkeys(tasks, 3)
    losses = times.losses
    assert losses["rebuild"] == losses["checkpoint"] == losses["budget"]
    assert losses["plain_checkpoint"] == losses["plain_store"] != losses["rebuild"]
    assert len(set(losses["rebuild"])) == 4  # another batch in every round, the one that warms up included
    assert losses["larger"] != losses["rebuild"]


class OutOfMemory(Setup):
    """An arm that does not fit."""

    def apply(self, model):
        raise torch.OutOfMemoryError("Tried to allocate 80 GiB.")


def test_what_does_not_fit_is_a_result():
    tasks = {"none": (WORKLOAD, OutOfMemory(STORE.dynamics, STORE.activations)), "store": (WORKLOAD, STORE)}
    times = Measurer().times(tasks, rounds=1, warm_up_rounds=0)
    assert times.out_of_memory == ["none"]
    assert list(times.seconds) == ["store"]
    assert Measurer().times({"none": tasks["none"]}, 1, 0) == TurnTimes({}, {}, ["none"])
    with pytest.raises(MemoryError, match="80 GiB"):
        Measurer().peak(*tasks["none"])


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried", MemoryError),
        ("CUDA error: out of memory", MemoryError),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", MemoryError),
        ("shapes cannot be multiplied", RuntimeError),
    ],
)
def test_only_want_of_memory_is_taken_for_it(message, kind, monkeypatch):
    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(MeasuredWorkload, "train_step", fail)
    with pytest.raises(kind, match=re.escape(message)):
        Measurer().peak(WORKLOAD, STORE)


@pytest.mark.slow
@pytest.mark.parametrize("arm", [STORE, CHECKPOINT, Setup(Midpoint(), Rebuild())])
def test_the_resident_set_agrees(arm):
    large = MeasuredWorkload(llama_config(8, 256, 128, 512), batch_size=4, sequence_length=512)
    (measured,) = measure_peak_memory([(large, arm)])
    if measured.resident_peak is None:
        pytest.skip("the resident peak cannot be reset here")
    assert measured.resident_peak == pytest.approx(measured.peak, rel=0.1)
