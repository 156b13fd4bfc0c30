"""Measures the peak memory of one call from the allocator's own events.

On the CPU the count comes from the allocation events that PyTorch's profiler records: every block that an operator
requests from the allocator, temporary ones included, to the byte. The resident set, read from Linux, is a cross-check
that does not depend on PyTorch. It is rounded to pages and includes memory that the C library keeps, so
`MALLOC_SETTINGS` must be in the environment when the process starts. `lab/results` holds both figures for arms that had
a process to themselves.
"""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from lab.private_api import cpu_allocations

MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc immediately returns every freed block above 64 KiB to the system."""


def peak_allocated_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Call `function` and return the most bytes that its tensors held at once on `device`.

    Memory that was allocated before the call does not count. On the CPU no other profiler may be running.

    Raises:
        ValueError: for a device other than the CPU and CUDA.

    """
    # Otherwise this call would be credited for freeing the reference cycles of earlier calls.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise ValueError(f"Peak memory can be measured on the CPU and on CUDA, not on {device.type}.")
    return _largest_sum(cpu_allocations(function))


def _largest_sum(sizes: list[int]) -> int:
    """Return the largest running sum, or 0 if all are negative."""
    held = largest = 0
    for size in sizes:
        held += size
        largest = max(largest, held)
    return largest


def peak_resident_bytes(function: Callable[[], object]) -> int | None:
    """Call `function` and return the peak increase of the process's resident memory in bytes, or None off Linux.

    The figure is unreliable unless the process was started with `MALLOC_SETTINGS`.
    """
    try:
        # 5 resets the high-water mark of the resident set; see proc(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        function()
        return None
    before = _process_status("VmRSS")
    function()
    return _process_status("VmHWM") - before


def _process_status(field: str) -> int:
    """Return one of the memory figures in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")
