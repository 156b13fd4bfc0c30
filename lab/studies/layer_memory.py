"""Measures the memory of one layer and of all gradients, for methods that lower the peak independently of depth.

    python -m lab.studies.layer_memory --output RESULT.json

Every variant runs whole steps of AdamW whose gradients are freed afterwards. The peak is the memory of a step above
weights and optimizer states, so it includes gradients. Times are ratios to rebuilding, with the variants in turns.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import revformers as rf
from lab.bench.environment import output_file, write_result
from lab.bench.meter import peak_allocated_bytes
from lab.bench.step_time import measure_step_times
from lab.bench.workload import MeasuredWorkload, llama_config
from lab.command import as_command
from revformers.models.tiles import set_mlp_tiles
from revformers.setup import CHECKPOINT, Setup
from revformers.training.console import command_console
from revformers.training.step_in_backward import step_in_backward
from revformers.training.titled_table import TitledTable

REFERENCE = "rebuild"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A setup with the other two means that lower the peak.

    Attributes:
        setup: the dynamics and the activation policy.
        tiled: whether the MLPs are evaluated in tiles.
        optimizer_in_backward: whether the optimizer updates every weight as soon as its gradient is complete.

    """

    setup: Setup
    tiled: bool = False
    optimizer_in_backward: bool = False


BY_BLOCK = Setup(rf.Midpoint(), rf.Rebuild())
BY_BRANCH = Setup(rf.Midpoint(granularity="branch"), rf.Rebuild())
VARIANTS = {
    "checkpoint": Variant(CHECKPOINT),
    REFERENCE: Variant(BY_BLOCK),
    "MLP in tiles": Variant(BY_BLOCK, tiled=True),
    "by branch": Variant(BY_BRANCH),
    "by branch, MLP in tiles": Variant(BY_BRANCH, tiled=True),
    "optimizer in backward": Variant(BY_BLOCK, optimizer_in_backward=True),
    "all three": Variant(BY_BRANCH, tiled=True, optimizer_in_backward=True),
}


def step_of(variant: Variant, workload: MeasuredWorkload, tile: int) -> Callable[[int], float]:
    """Return a function from the number of a batch to its loss, which runs a training step."""
    model: Any = variant.setup.apply(workload.build_model())
    if variant.tiled:
        set_mlp_tiles(model, tile)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if variant.optimizer_in_backward:
        step_in_backward(optimizer)

    def step(number: int) -> float:
        loss = workload.forward_backward(model, workload.build_batch(number))
        if not variant.optimizer_in_backward:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return step


def main() -> None:
    """Measure all variants, print a table and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--tile", type=int, default=512, help="tokens in a tile of an MLP")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of every variant")
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    config = llama_config(options.layers, options.width, options.vocabulary, options.sequence_length)
    workload = MeasuredWorkload(config, batch_size=1, sequence_length=options.sequence_length)
    steps = {name: step_of(variant, workload, options.tile) for name, variant in VARIANTS.items()}
    losses = {name: step(0) for name, step in steps.items()}  # this also creates the optimizers' states
    peaks = {name: peak_allocated_bytes(partial(step, 0), torch.device("cpu")) for name, step in steps.items()}
    times = measure_step_times(steps, options.rounds, warm_up_rounds=0)
    table = TitledTable(left=("way",), right=("peak MiB", "of rebuild", "time over rebuild", "loss"))
    rows: list[dict[str, Any]] = []
    for name in VARIANTS:
        ratio = times.ratio(name, REFERENCE)
        rows.append(
            {
                "way": name,
                "peak": peaks[name],
                "peak_over_rebuild": peaks[name] / peaks[REFERENCE],
                "time_over_rebuild": dataclasses.asdict(ratio),
                "first_loss": losses[name],
            }
        )
        table.add(
            name,
            f"{peaks[name] / 2**20:,.1f}",
            f"{peaks[name] / peaks[REFERENCE]:.2f}",
            f"{ratio.median:.2f} ({ratio.lower:.2f} to {ratio.upper:.2f})",
            f"{losses[name]:.6f}",
        )
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(options.output, {**settings, "rows": rows}, sys.argv[1:], program="python -m lab.studies.layer_memory")
    command_console().print(table)


if __name__ == "__main__":
    as_command(main)
