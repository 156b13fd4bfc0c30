import dataclasses

import pytest

from revformers import BlendedMidpoint, Hamiltonian, Leapfrog, Midpoint
from revformers.benchmark import memory as module
from revformers.benchmark.memory import PeakMemory, measure_in_this_process, measure_peak_memory
from revformers.benchmark.workload import PLAIN_CHECKPOINT, PLAIN_STORE, Arm, Workload, llama_config

WORKLOAD = Workload(llama_config(3, 64, 32, 128), batch_size=4, sequence_length=128)
RANDOM_STATE_BYTES = 5056
"""What PyTorch's checkpointing keeps on the CPU besides the input of a step."""


def growth(arm, workload=WORKLOAD):
    """Return the bytes by which each of two added layers raises the peak."""
    shallow, deep = (measure_in_this_process(workload.with_layers(layers), arm).peak for layers in (3, 5))
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
    assert measure_in_this_process(larger, rebuild).peak == measure_in_this_process(WORKLOAD, rebuild).peak


def test_a_fresh_process_measures_the_same_whatever_ran_in_it_before():
    store, rebuild = Arm(PLAIN_STORE), Arm("rebuild", Midpoint().to_dict())
    here = {arm.name: measure_in_this_process(WORKLOAD, arm) for arm in (store, rebuild)}
    fresh = measure_peak_memory([(WORKLOAD, arm) for arm in (rebuild, store, rebuild)], threads=1)
    assert fresh == [here["rebuild"], here[PLAIN_STORE], here["rebuild"]]
    parameters = WORKLOAD.build_model().num_parameters()
    assert 8 * parameters <= fresh[0].weights_and_gradients < 8 * parameters + 4096
    assert fresh[0].total == fresh[0].peak + fresh[0].weights_and_gradients


def test_processes_side_by_side_share_the_cores(monkeypatch):
    asked = []

    def measure(tasks, *, threads):
        asked.append(threads)
        return [PeakMemory(workload.layers, 0, None) for workload, _ in tasks]

    monkeypatch.setattr(module, "measure_peak_memory", measure)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 6)
    arm = Arm(PLAIN_STORE)
    tasks = [[(WORKLOAD, arm), (WORKLOAD.with_layers(7), arm)], [(WORKLOAD.with_layers(2), arm)]]
    measured = module.measure_side_by_side(tasks, 2)
    assert [[one.peak for one in of_process] for of_process in measured] == [[3, 7], [2]]
    assert asked == [3, 3]
    module.measure_side_by_side(tasks, 1)
    assert asked[2:] == [None, None]


def test_a_failure_in_the_process_is_told():
    with pytest.raises(RuntimeError, match=r"rebuild at 3 layers failed: .*no inverse"):
        measure_peak_memory([(WORKLOAD, Arm("rebuild", {"name": "residual"}))])


@pytest.mark.slow
@pytest.mark.parametrize("arm", [Arm(PLAIN_STORE), Arm(PLAIN_CHECKPOINT), Arm("rebuild", Midpoint().to_dict())])
def test_the_resident_set_agrees(arm):
    large = Workload(llama_config(8, 256, 128, 512), batch_size=4, sequence_length=512)
    (measured,) = measure_peak_memory([(large, arm)])
    if measured.resident_peak is None:
        pytest.skip("the resident peak cannot be reset here")
    assert measured.resident_peak == pytest.approx(measured.peak, rel=0.1)
