import dataclasses
import re

import pytest
import torch

from lab.bench.memory import Measurer, TurnTimes
from lab.bench.process import measure_peak_memory
from lab.bench.workload import PLAIN_CHECKPOINT, PLAIN_STORE, Arm, Workload, arms_from_names, llama_config
from revformers import BlendedMidpoint, Hamiltonian, Leapfrog, Midpoint

WORKLOAD = Workload(llama_config(3, 64, 32, 128), batch_size=4, sequence_length=128)
RANDOM_STATE_BYTES = 5056
"""What PyTorch's checkpointing keeps on the CPU besides the input of a step."""


def growth(arm, workload=WORKLOAD):
    """Return the bytes by which each of two added layers raises the peak."""
    shallow, deep = (Measurer().peak(workload.with_layers(layers), arm).peak for layers in (3, 5))
    return (deep - shallow) / 2


@pytest.mark.parametrize("dynamics", [Midpoint(), Leapfrog(), Hamiltonian()])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rebuilding_does_not_grow_with_depth(dynamics, precision):
    workload = dataclasses.replace(WORKLOAD, precision=precision)
    assert abs(growth(Arm("rebuild", dynamics.to_dict()), workload)) <= 0.01 * workload.layer_input_bytes


@pytest.mark.parametrize(("blend", "bits"), [("1/2", 1), ("1/16", 4)])
def test_a_contracting_step_grows_by_its_side_information(blend, bits):
    grown = growth(Arm("rebuild", BlendedMidpoint(blend).to_dict()))
    assert grown == pytest.approx(WORKLOAD.layer_input_elements * bits / 8, abs=0.01 * WORKLOAD.layer_input_bytes)


@pytest.mark.parametrize(
    ("arm", "tensors"), [(Arm(PLAIN_CHECKPOINT), 1), (Arm("checkpoint", Hamiltonian().to_dict()), 2)]
)
def test_the_meter_resolves_what_checkpointing_keeps(arm, tensors):
    grown = growth(arm)
    assert tensors * WORKLOAD.layer_input_bytes <= grown
    assert grown <= tensors * (WORKLOAD.layer_input_bytes + RANDOM_STATE_BYTES + 512)


def test_storing_grows_by_many_tensors():
    assert growth(Arm(PLAIN_STORE)) > 10 * WORKLOAD.layer_input_bytes


def test_the_head_does_not_set_the_peak():
    # Otherwise the growth of the layers would hide below it.
    rebuild = Arm("rebuild", Midpoint().to_dict())
    larger = dataclasses.replace(WORKLOAD, model_config=llama_config(3, 64, 64, 128))
    assert Measurer().peak(larger, rebuild).peak == Measurer().peak(WORKLOAD, rebuild).peak


def test_the_optimizer_has_states_that_count_apart_and_leaves_the_weights_alone():
    workload, measurer = dataclasses.replace(WORKLOAD, optimizer="adamw"), Measurer()
    with_states, without = measurer.peak(workload, Arm(PLAIN_STORE)), Measurer().peak(WORKLOAD, Arm(PLAIN_STORE))
    parameters = WORKLOAD.build_model().num_parameters()
    assert 8 * parameters <= with_states.optimizer_states < 8 * parameters + 4096
    assert without.optimizer_states == 0
    assert with_states.weights_and_gradients == without.weights_and_gradients
    assert with_states.total == without.total + with_states.optimizer_states
    times = measurer.times({"store": (workload, Arm(PLAIN_STORE))}, rounds=2, warm_up_rounds=0)
    again = Measurer().times({"store": (WORKLOAD, Arm(PLAIN_STORE))}, rounds=2, warm_up_rounds=0)
    assert times.losses == again.losses


def test_arms_take_turns_on_one_model_and_see_the_same_batches():
    names = ["plain_checkpoint", "rebuild", "checkpoint", "plain_store", "budget"]
    arms = arms_from_names(names, Midpoint(), budget=2**22)
    larger = dataclasses.replace(WORKLOAD, batch_size=6)
    tasks = {arm.name: (WORKLOAD, arm) for arm in arms} | {"larger": (larger, arms[1])}
    times = Measurer().times(tasks, rounds=3, warm_up_rounds=1)
    assert times.out_of_memory == []
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == dict.fromkeys(tasks, 3)
    losses = times.losses
    assert losses["rebuild"] == losses["checkpoint"] == losses["budget"]
    assert losses["plain_checkpoint"] == losses["plain_store"] != losses["rebuild"]
    assert len(set(losses["rebuild"])) == 4  # another batch in every round, the one that warms up included
    assert losses["larger"] != losses["rebuild"]


class OutOfMemory(Arm):
    """An arm that does not fit."""

    def apply(self, model):
        raise torch.OutOfMemoryError("Tried to allocate 80 GiB.")


def test_what_does_not_fit_is_a_result():
    tasks = {"none": (WORKLOAD, OutOfMemory(PLAIN_STORE)), "store": (WORKLOAD, Arm(PLAIN_STORE))}
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

    monkeypatch.setattr(Workload, "train_step", fail)
    with pytest.raises(kind, match=re.escape(message)):
        Measurer().peak(WORKLOAD, Arm(PLAIN_STORE))


@pytest.mark.slow
@pytest.mark.parametrize("arm", [Arm(PLAIN_STORE), Arm(PLAIN_CHECKPOINT), Arm("rebuild", Midpoint().to_dict())])
def test_the_resident_set_agrees(arm):
    large = Workload(llama_config(8, 256, 128, 512), batch_size=4, sequence_length=512)
    (measured,) = measure_peak_memory([(large, arm)])
    if measured.resident_peak is None:
        pytest.skip("the resident peak cannot be reset here")
    assert measured.resident_peak == pytest.approx(measured.peak, rel=0.1)
