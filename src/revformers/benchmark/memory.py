"""Peak memory of one training step, each taken in a fresh process.

`python -m revformers.benchmark.memory` is that process: it reads a workload and an arm as JSON from its standard input
and prints the measurement as JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import torch

from revformers.benchmark.meter import MALLOC_SETTINGS, peak_allocated_bytes, peak_resident_bytes
from revformers.benchmark.workload import Arm, Workload


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


def measure_peak_memory(workload: Workload, arm: Arm, threads: int | None = None) -> PeakMemory:
    """Measure one step of `arm` in a fresh process, with `threads` CPU threads or as many as PyTorch takes.

    Raises:
        RuntimeError: where that process fails; the message ends with the last line it wrote.

    """
    request = {"workload": dataclasses.asdict(workload), "arm": dataclasses.asdict(arm)}
    thread_settings = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    process = subprocess.run(
        [sys.executable, "-m", "revformers.benchmark.memory"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, **MALLOC_SETTINGS, **thread_settings},
    )
    if process.returncode:
        last_line = (process.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise RuntimeError(f"The memory of the arm {arm.name!r} at {workload.layers} layers failed: {last_line}")
    return PeakMemory(**json.loads(process.stdout.splitlines()[-1]))


def measure_in_this_process(workload: Workload, arm: Arm) -> PeakMemory:
    """Measure one step of `arm` here; its resident peak means little in a process that did something before."""
    model = arm.apply(workload.build_model())
    batch = workload.build_batch()
    device = torch.device(workload.device)

    def step() -> None:
        workload.forward_backward(model, batch)

    # The first step makes the gradients, which stay, and whatever is made once, such as tables of positions.
    step()
    resident_peak = peak_resident_bytes(step) if device.type == "cpu" else None
    peak = peak_allocated_bytes(step, device)
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return PeakMemory(peak=peak, weights_and_gradients=sum(storages.values()), resident_peak=resident_peak)


def _main() -> None:
    """Answer one request."""
    request: dict[str, Any] = json.load(sys.stdin)
    measured = measure_in_this_process(Workload(**request["workload"]), Arm(**request["arm"]))
    print(json.dumps(dataclasses.asdict(measured)))


if __name__ == "__main__":
    _main()
