import dataclasses
import io
import json
import os
import signal

import pytest

from lab.bench import process as module
from lab.bench.arm_names import ORDINARY_STORE, arm_name
from lab.bench.memory import Measurer, PeakMemory
from lab.bench.meter import MALLOC_SETTINGS
from lab.bench.process import MeasuringProcess, measure_peak_memory
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers import BlendedMidpoint, Midpoint
from revformers.activations import Rebuild
from revformers.engine.state_format import StateFormat
from revformers.models.update_predictor import PredictorForm
from revformers.setup import STORE, Setup

WORKLOAD = MeasuredWorkload(llama_config(3, 64, 32, 128), batch_size=4, sequence_length=128)


@pytest.mark.thorough
def test_a_fresh_process_measures_the_same_whatever_ran_in_it_before():
    store, rebuild = STORE, Setup(Midpoint(), Rebuild())
    here = {arm_name(arm): Measurer().peak(WORKLOAD, arm) for arm in (store, rebuild)}
    fresh = measure_peak_memory([(WORKLOAD, arm) for arm in (rebuild, store, rebuild)], threads=1)
    assert fresh == [here["rebuild"], here[ORDINARY_STORE], here["rebuild"]]
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
    arm = STORE
    tasks = [[(WORKLOAD, arm), (WORKLOAD.with_layers(7), arm)], [(WORKLOAD.with_layers(2), arm)]]
    measured = module.measure_side_by_side(tasks, 2)
    assert [[one.peak for one in of_process] for of_process in measured] == [[3, 7], [2]]
    assert asked == [3, 3]
    module.measure_side_by_side(tasks, 1)
    assert asked[2:] == [None, None]


@pytest.mark.thorough
def test_a_process_says_why_it_failed_and_is_replaced():
    with MeasuringProcess(threads=1) as process:
        with pytest.raises(RuntimeError, match=r"memory of rebuild at 3 layers failed: .*layers"):
            process.peak(WORKLOAD, Setup(BlendedMidpoint(["1/2", "1/4"]), Rebuild()))
        free, total = process.device_memory("cpu")
        assert 0 < free < total
        times = process.times({"a": (WORKLOAD, STORE)}, rounds=2, warm_up_rounds=0)
        assert len(times.seconds["a"]) == len(times.losses["a"]) == 2
        # What the system does to a process where memory runs out.
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(MemoryError, match="system ended the process"):
            process.peak(WORKLOAD, STORE)


def test_a_process_starts_when_it_is_asked(monkeypatch):
    monkeypatch.setattr(module.subprocess, "Popen", None)
    with MeasuringProcess():
        pass


@pytest.mark.parametrize("returns_memory", [True, False])
def test_freed_blocks_go_back_to_the_system_only_where_that_is_asked_for(returns_memory, monkeypatch):
    environments, popen = [], module.subprocess.Popen

    def start(words, env, **options):
        environments.append(env)
        return popen(["sh", "-c", """read line; echo '{"result": [1, 2]}'"""], **options)

    monkeypatch.setattr(module.subprocess, "Popen", start)
    with MeasuringProcess(returns_memory=returns_memory) as process:
        assert process.device_memory("cpu") == (1, 2)
    assert [MALLOC_SETTINGS.items() <= env.items() for env in environments] == [returns_memory]


def test_a_process_that_is_ended_in_the_middle_of_its_answer_has_not_answered(monkeypatch):
    popen, killed = module.subprocess.Popen, ["sh", "-c", """printf '{"result": [1' && kill -9 $$"""]
    monkeypatch.setattr(module.subprocess, "Popen", lambda words, **options: popen(killed, **options))
    with MeasuringProcess() as process, pytest.raises(MemoryError, match="system ended the process"):
        process.device_memory("cpu")


def test_a_setup_reaches_the_process_whole():
    states, predictors = StateFormat("int32", 12), PredictorForm(("state",), 4)
    by_branch = Setup(BlendedMidpoint("1/4", granularity="branch"), Rebuild(), states, None, 64)
    for setup in (STORE, by_branch, Setup(BlendedMidpoint("1/4"), Rebuild(), states, predictors)):
        assert module._setup(json.loads(json.dumps(module._written(setup)))) == setup


def test_want_of_memory_reaches_the_parent(monkeypatch, capfd):
    monkeypatch.setattr(Measurer, "peak", raise_memory_error)
    tasks = {"": [dataclasses.asdict(WORKLOAD), module._written(STORE)]}
    request = json.dumps({"method": "peak", "tasks": tasks, "memory": None, "resident": False})
    monkeypatch.setattr(module.sys, "stdin", io.StringIO(request + "\n"))
    shown = os.dup(1)
    module._main()
    os.dup2(shown, 1)
    assert json.loads(capfd.readouterr().out) == {"out_of_memory": "80 GiB"}


def raise_memory_error(*_, **__):
    raise MemoryError("80 GiB")
