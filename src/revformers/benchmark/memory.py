"""Peak memory of one training step, taken in fresh processes.

`python -m revformers.benchmark.memory` is such a process: it reads workloads and arms as JSON from its standard input
and prints the measurements as JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from revformers.benchmark.meter import MALLOC_SETTINGS, peak_allocated_bytes, peak_resident_bytes
from revformers.benchmark.workload import Arm, Workload

Task = tuple[Workload, Arm]


@dataclass(frozen=True)
class PeakMemory:
    """Memory of one forward and backward pass into gradients that already exist; all in bytes.

    Attributes:
        peak: the most that tensors held beyond `weights_and_gradients` and the batch.
        weights_and_gradients: parameters, buffers and gradients, alive before, during and after.
        resident_peak: by how much the process's resident memory rose, a cross-check of `peak` on Linux CPUs, else None.

    """

    peak: int
    weights_and_gradients: int
    resident_peak: int | None

    @property
    def total(self) -> int:
        """Everything alive at the peak."""
        return self.peak + self.weights_and_gradients


def measure_peak_memory(tasks: Sequence[Task], *, threads: int | None = None) -> list[PeakMemory]:
    """Measure one step of every task, one after the other, in one fresh process.

    Counting allocations does not see what earlier tasks left behind; resident memory would, so its cross-check is left
    out where there are several tasks.

    Args:
        tasks: what to measure.
        threads: CPU threads of the process; left out, as many as PyTorch takes.

    Raises:
        RuntimeError: where the process fails; the message ends with the last line it wrote.

    """
    requests = [{"workload": dataclasses.asdict(workload), "arm": dataclasses.asdict(arm)} for workload, arm in tasks]
    thread_settings = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    process = subprocess.run(
        [sys.executable, "-m", "revformers.benchmark.memory"],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        env={**os.environ, **MALLOC_SETTINGS, **thread_settings},
    )
    if process.returncode:
        last_line = (process.stderr.strip().splitlines() or [f"it ended with code {process.returncode}"])[-1]
        what = ", ".join(f"{arm.name} at {workload.layers} layers" for workload, arm in tasks)
        raise RuntimeError(f"The process that measured the memory of {what} failed: {last_line}")
    return [PeakMemory(**measured) for measured in json.loads(process.stdout.splitlines()[-1])]


def measure_side_by_side(tasks: Sequence[Sequence[Task]], processes_at_once: int) -> list[list[PeakMemory]]:
    """Measure every sequence of tasks in a fresh process of its own, some processes at a time.

    Counting allocations is blind to what else runs, so on the CPU there may be several; they share the cores.

    Raises:
        RuntimeError: where a process fails.

    """
    threads = max(1, (os.cpu_count() or 1) // processes_at_once) if processes_at_once > 1 else None
    with ThreadPoolExecutor(processes_at_once) as pool:
        return list(pool.map(lambda of_one: measure_peak_memory(of_one, threads=threads), tasks))


def measure_in_this_process(workload: Workload, arm: Arm, *, resident: bool = False) -> PeakMemory:
    """Measure one step of `arm` here; `resident` adds the cross-check, which means little where others ran before."""
    model = arm.apply(workload.build_model())
    batch = workload.build_batch()
    device = torch.device(workload.device)

    def step() -> None:
        workload.forward_backward(model, batch)

    # The first step makes the gradients, which stay, and whatever is made once, such as tables of positions.
    step()
    resident_peak = peak_resident_bytes(step) if resident and device.type == "cpu" else None
    peak = peak_allocated_bytes(step, device)
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return PeakMemory(peak=peak, weights_and_gradients=sum(storages.values()), resident_peak=resident_peak)


def _main() -> None:
    """Answer one list of requests."""
    requests: list[dict[str, Any]] = json.load(sys.stdin)
    measured = [
        measure_in_this_process(Workload(**request["workload"]), Arm(**request["arm"]), resident=len(requests) == 1)
        for request in requests
    ]
    print(json.dumps([dataclasses.asdict(one) for one in measured]))


if __name__ == "__main__":
    _main()
