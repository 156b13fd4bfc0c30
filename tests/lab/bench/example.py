"""A comparison as `Comparison.run` would give it, with numbers made up so that each can be found again."""

import copy
import threading

from lab.bench.arm_names import setups_of
from lab.bench.depth import DepthPoint, as_rows, growths
from lab.bench.memory import Measurer, PeakMemory
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers.dynamics import Midpoint

MEBIBYTE = 2**20
ARMS = setups_of(["store", "checkpoint", "rebuild"], Midpoint())


def quartiles(median):
    return {"lower": median - 0.01, "median": median, "upper": median + 0.01}


def arm(name, peak, seconds):
    return {
        "arm": name,
        "peak": peak * MEBIBYTE,
        "weights_and_gradients": 50 * MEBIBYTE,
        "resident_peak": None,
        "losses": [8.5, 7.25, 6.125],
        "same_losses_as_store": True,
        "same_weights_as_store": True,
        "seconds": quartiles(seconds),
        "time_over_store": quartiles(seconds / 0.5),
        "time_over_checkpoint": quartiles(seconds / 0.6),
    }


def dynamics(name, recurrence, bits, loss, **verdict):
    return {
        "name": name,
        "recurrence": recurrence,
        "activations": "rebuild" if verdict else "store",
        "side_information_bits": bits,
        "validation_loss": loss,
        "seconds": quartiles(0.5),
        "time_over_ordinary": quartiles(1.25),
        **verdict,
    }


def depth():
    # One layer's input: 2 x 64 x 64 elements of 4 bytes.
    workload = MeasuredWorkload(llama_config(4, 64, 256, 64), batch_size=2, sequence_length=64)
    base, one = 200_000, workload.layer_input_bytes
    peaks = {
        "store": lambda n: base + 20 * one * n,
        "checkpoint": lambda n: base + one * n,
        "rebuild": lambda n: base + 6 * one,
    }
    points = [
        DepthPoint(name, layers, PeakMemory(peaks[name](layers), 0, None)) for name in ARMS for layers in (4, 8, 16)
    ]
    return {
        "recurrence": Midpoint().recurrence,
        "steps_per_layer": 1,
        "width": 64,
        "vocabulary": 256,
        "batch_size": 2,
        "sequence_length": 64,
        "layer_input_bytes": one,
        **as_rows(points, growths(points, workload, ARMS)),
    }


COMPARISON = {
    "command": "python -m lab compare recipes/quickstart.yaml --out runs/quickstart",
    "environment": {
        "date": "2026-01-02",
        "processor": "Example CPU",
        "cores": 2,
        "torch_threads": 2,
        "memory_bytes": 8 * 2**30,
        "accelerator": None,
        "system": "Linux x86_64",
        "python": "3.11.0",
        "revformers": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.17.0",
        "git_commit": "0123456789ab",
    },
    "options": {"dynamics_steps": 20, "arm_steps": 3, "depths": [4, 8, 16]},
    "network": {
        "architecture": "llama",
        "layers": 12,
        "width": 192,
        "vocabulary": 4096,
        "parameters": 6099648,
        "batch_size": 8,
        "sequence_length": 256,
        "precision": "float32",
        "device": "cpu",
    },
    "dynamics": [
        dynamics("residual", "p[l+1] = p[l] + f(p[l])", None, 6.9),
        dynamics("midpoint", "p[l+1] = p[l-1] + f(p[l])", 0, 6.8, bit_exact=True, max_relative_error=0.0),
        dynamics("leapfrog", "p[l+1] = 2 p[l] - p[l-1] + f(p[l])", 0, 6.7, bit_exact=True, max_relative_error=0.0),
        {"name": "hamiltonian", "recurrence": "q += attention(p), p += mlp(q)", "unavailable": "No branches here."},
    ],
    "arms": {
        "recurrence": Midpoint().recurrence,
        "layer_input_bytes": 1572864,
        "rows": [arm("store", 400, 0.5), arm("checkpoint", 120, 0.6), arm("rebuild", 100, 0.63)],
        "verification": {
            "bit_exact": True,
            "parameters": 110,
            "entries": 6099648,
            "text": "rebuilt gradients equal stored gradients to the bit",
        },
    },
    "depth": depth(),
}


def comparison():
    """Return a copy to change."""
    return copy.deepcopy(COMPARISON)


_one_profiler = threading.Lock()


def measure_here(tasks, *, threads=None):
    """Stand in for `measure_peak_memory` without the seconds that a process takes to start."""
    with _one_profiler:
        measurer = Measurer()
        return [measurer.peak(workload, arm) for workload, arm in tasks]


class MeasureHere(Measurer):
    """Stand in for `MeasuringProcess` in the same way."""

    def __init__(self, threads=None, *, returns_memory=True):
        super().__init__()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None
