"""Runs measurements in fresh processes: earlier work does not affect the figures, and a crash ends only one process.

`python -m lab.bench.process` is such a process: it reads requests, one JSON object per line, from its standard input
and answers each in one line.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lab import REPOSITORY
from lab.bench.arm_names import arm_name
from lab.bench.memory import Measurer, PeakMemory, Task, TurnTimes
from lab.bench.meter import MALLOC_SETTINGS
from lab.bench.rivals import Rival
from lab.bench.workload import MeasuredWorkload
from revformers import dynamics
from revformers.activations import parse_policy
from revformers.engine.state_format import parse_states
from revformers.models.update_predictor import PredictorForm
from revformers.setup import Setup


class MeasuringProcess:
    """A `Measurer` in a fresh process, for the duration of a ``with`` block.

    multiprocessing is not used, because it cannot give a process its own environment and it imports the parent's main
    module; the allocator and the thread pools read their settings when the process starts.

    Args:
        threads: number of CPU threads of the process; None for PyTorch's default.
        returns_memory: return every freed block to the system at once. Resident memory is unreliable without this, but
            every tensor then needs new pages, which slows steps down, so do not use it for times.

    """

    def __init__(self, threads: int | None = None, *, returns_memory: bool = True) -> None:
        self._settings = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        if returns_memory:
            self._settings |= MALLOC_SETTINGS

    def __enter__(self) -> "MeasuringProcess":
        self._process: subprocess.Popen[str] | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._messages.close()
            self._process = None

    def device_memory(self, device: str) -> tuple[int, int]:
        """Return the free and the total memory of `device` in bytes."""
        free, total = self._ask("the memory of the device", "device_memory", device=device)
        return free, total

    def peak(
        self, workload: MeasuredWorkload, arm: Setup, *, memory: int | None = None, resident: bool = False
    ) -> PeakMemory:
        """Measure the memory of one step; see `Measurer.peak`.

        Raises:
            MemoryError: if the step does not fit, or if the system ended the process because it ran out of memory.
            RuntimeError: if the process fails; the message ends with the last line that it wrote.

        """
        what = f"the memory of {arm_name(arm)} at {workload.layers} layers"
        return PeakMemory(**self._ask(what, "peak", tasks={"": (workload, arm)}, memory=memory, resident=resident))

    def times(
        self, tasks: Mapping[str, Task], rounds: int, warm_up_rounds: int, *, memory: int | None = None
    ) -> TurnTimes:
        """Time the steps of several arms in turns; see `Measurer.times`.

        Raises:
            MemoryError: if the system ended the process because it ran out of memory.
            RuntimeError: if the process fails; the message ends with the last line that it wrote.

        """
        counts = {"rounds": rounds, "warm_up_rounds": warm_up_rounds}
        return TurnTimes(**self._ask(f"the times of {', '.join(tasks)}", "times", tasks=tasks, memory=memory, **counts))

    def _ask(self, what: str, method: str, tasks: Mapping[str, Task] | None = None, **options: Any) -> Any:
        if tasks is not None:
            options["tasks"] = {
                name: [dataclasses.asdict(workload), _written(arm)] for name, (workload, arm) in tasks.items()
            }
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"method": method, **options}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line.endswith("\n"):
            answer = json.loads(line)
            if "out_of_memory" in answer:
                raise MemoryError(answer["out_of_memory"])
            return answer["result"]
        code = process.wait()
        self._messages.seek(0)
        last_line = (self._messages.read().strip().splitlines() or [f"it ended with code {code}"])[-1]
        self.__exit__()
        if code == -signal.SIGKILL:
            raise MemoryError("The system ended the process, probably because memory ran out.")
        raise RuntimeError(f"The process that measured {what} failed: {last_line}")

    def _started(self) -> "subprocess.Popen[str]":
        """Return the process; start it at the first request, and again after a request that ended it."""
        if self._process is None:
            # A file, because no one would empty a pipe while the process works.
            self._messages = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the process
            module_path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lab.bench.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                text=True,
                env={**os.environ, **self._settings, "PYTHONPATH": module_path},
            )
        return self._process


def measure_peak_memory(tasks: Sequence[Task], *, threads: int | None = None) -> list[PeakMemory]:
    """Measure one step of every task, one after the other, in one fresh process.

    Counting allocations is not affected by what earlier tasks left behind, but resident memory is, so its cross-check
    is left out if there are several tasks.

    Raises:
        MemoryError: if a step does not fit.
        RuntimeError: if the process fails; the message ends with the last line that it wrote.

    """
    with MeasuringProcess(threads) as process:
        return [process.peak(workload, arm, resident=len(tasks) == 1) for workload, arm in tasks]


def measure_side_by_side(tasks: Sequence[Sequence[Task]], processes_at_once: int) -> list[list[PeakMemory]]:
    """Measure every sequence of tasks in a fresh process of its own, several processes at a time.

    On the CPU several processes may run at once, because other processes do not affect the count of allocations; they
    share the cores.

    Raises:
        MemoryError: if a step does not fit.
        RuntimeError: if a process fails.

    """
    threads = max(1, (os.cpu_count() or 1) // processes_at_once) if processes_at_once > 1 else None
    with ThreadPoolExecutor(processes_at_once) as pool:
        return list(pool.map(lambda of_one: measure_peak_memory(of_one, threads=threads), tasks))


def _main() -> None:
    """Answer requests until standard input ends."""
    # Output of libraries goes to the messages, and only answers go to the parent.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    measurer = Measurer()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"result": _answer(measurer, request)}
        except MemoryError as error:
            answer = {"out_of_memory": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _written(setup: Setup) -> dict[str, Any]:
    """Return a setup in types that JSON supports; `_setup` reads it."""
    recurrence = setup.dynamics
    return {
        "dynamics": recurrence and recurrence.to_dict(),
        "activations": str(setup.activations),
        "states": str(setup.states),
        "rival": {"every": setup.every, "keeps_attention": setup.keeps_attention} if isinstance(setup, Rival) else None,
        "predictors": setup.predictors and setup.predictors.to_dict(),
        "mlp_tile": setup.mlp_tile,
    }


def _setup(written: dict[str, Any]) -> Setup:
    recurrence, policy = written["dynamics"], parse_policy(written["activations"])
    if written["rival"]:
        return Rival(None, policy, **written["rival"])
    predictors = written["predictors"]
    return Setup(
        recurrence and dynamics.from_dict(recurrence),
        policy,
        parse_states(written["states"]),
        predictors and PredictorForm(**predictors),
        written["mlp_tile"],
    )


def _answer(measurer: Measurer, request: dict[str, Any]) -> Any:
    method = request.pop("method")
    if method == "device_memory":
        return measurer.device_memory(**request)
    tasks = {
        name: (MeasuredWorkload(**workload), _setup(arm)) for name, (workload, arm) in request.pop("tasks").items()
    }
    if method == "times":
        return dataclasses.asdict(measurer.times(tasks, **request))
    ((workload, arm),) = tasks.values()
    return dataclasses.asdict(measurer.peak(workload, arm, **request))


if __name__ == "__main__":
    _main()
