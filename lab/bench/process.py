"""Fresh processes that measure, so that nothing that ran before is in a figure, and that a crash takes nothing along.

`python -m lab.bench.process` is such a process: it reads requests, one JSON object a line, from its standard
input and answers each in a line of its own.
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
from lab.bench.workload import MeasuredWorkload
from revformers import dynamics
from revformers.activations import parse_policy
from revformers.setup import Setup


class MeasuringProcess:
    """A `Measurer` in a fresh process, for the length of a ``with`` block.

    Not of multiprocessing, which gives a process no environment of its own, and imports the parent's main module: the
    allocator and the thread pools read their settings as the process starts.

    Args:
        threads: CPU threads of the process; left out, as many as PyTorch takes.
        returns_memory: whether every freed block goes back to the system at once. Resident memory means little without;
            but then every tensor is made of new pages, which no training that people run pays for, so not for times.

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
        """Return how many bytes `device` has free, and how many it has."""
        free, total = self._ask("the memory of the device", "device_memory", device=device)
        return free, total

    def peak(
        self, workload: MeasuredWorkload, arm: Setup, *, memory: int | None = None, resident: bool = False
    ) -> PeakMemory:
        """Measure the memory of one step; see `Measurer.peak`.

        Raises:
            MemoryError: where the step does not fit, or the system ended the process for want of memory.
            RuntimeError: where the process fails; the message ends with the last line it wrote.

        """
        what = f"the memory of {arm_name(arm)} at {workload.layers} layers"
        return PeakMemory(**self._ask(what, "peak", tasks={"": (workload, arm)}, memory=memory, resident=resident))

    def times(
        self, tasks: Mapping[str, Task], rounds: int, warm_up_rounds: int, *, memory: int | None = None
    ) -> TurnTimes:
        """Time the steps of several arms in turns; see `Measurer.times`.

        Raises:
            MemoryError: where the system ended the process for want of memory.
            RuntimeError: where the process fails; the message ends with the last line it wrote.

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
            raise MemoryError("The system ended the process, as it does where memory runs out.")
        raise RuntimeError(f"The process that measured {what} failed: {last_line}")

    def _started(self) -> "subprocess.Popen[str]":
        """Return the process, which starts with the first request, and anew after one that ended it."""
        if self._process is None:
            # A file, as nobody would empty a pipe while the process works.
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

    Counting allocations does not see what earlier tasks left behind; resident memory would, so its cross-check is left
    out where there are several tasks.

    Raises:
        MemoryError: where a step does not fit.
        RuntimeError: where the process fails; the message ends with the last line it wrote.

    """
    with MeasuringProcess(threads) as process:
        return [process.peak(workload, arm, resident=len(tasks) == 1) for workload, arm in tasks]


def measure_side_by_side(tasks: Sequence[Sequence[Task]], processes_at_once: int) -> list[list[PeakMemory]]:
    """Measure every sequence of tasks in a fresh process of its own, some processes at a time.

    Counting allocations is blind to what else runs, so on the CPU there may be several; they share the cores.

    Raises:
        MemoryError: where a step does not fit.
        RuntimeError: where a process fails.

    """
    threads = max(1, (os.cpu_count() or 1) // processes_at_once) if processes_at_once > 1 else None
    with ThreadPoolExecutor(processes_at_once) as pool:
        return list(pool.map(lambda of_one: measure_peak_memory(of_one, threads=threads), tasks))


def _main() -> None:
    """Answer requests until there are no more."""
    # Whatever libraries print goes to the messages, and nothing but answers to the parent.
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
    """Return a way to train as JSON holds it; `_setup` reads it."""
    recurrence = setup.dynamics
    return {"dynamics": recurrence and recurrence.to_dict(), "activations": str(setup.activations)}


def _setup(written: dict[str, Any]) -> Setup:
    recurrence = written["dynamics"]
    return Setup(recurrence and dynamics.from_dict(recurrence), parse_policy(written["activations"]))


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
