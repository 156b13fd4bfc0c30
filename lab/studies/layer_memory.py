"""Measures the memory of one layer and of all gradients, for methods that lower the peak independently of depth.

    python -m lab.studies.layer_memory --output RESULT.json

Every arm runs whole steps of AdamW whose gradients are freed afterwards. The peak is the memory of a step above weights
and optimizer states, so it includes gradients. Times are ratios to rebuilding, with the arms in turns.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import revformers as rf
from lab.bench.environment import write_result
from lab.bench.meter import peak_allocated_bytes
from lab.bench.step_time import measure_step_times
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers.models.tiles import set_mlp_tiles
from revformers.setup import CHECKPOINT
from revformers.training.step_in_backward import step_in_backward

REFERENCE = "rebuild"


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        granularity: steps of the midpoint rule, "block" or "branch"; None checkpoints the ordinary network.
        tiled: whether the MLPs are evaluated in tiles.
        optimizer_in_backward: whether the optimizer updates every weight as soon as its gradient is complete.

    """

    granularity: str | None
    tiled: bool = False
    optimizer_in_backward: bool = False


WAYS = {
    "checkpoint": Way(None),
    REFERENCE: Way("block"),
    "MLP in tiles": Way("block", tiled=True),
    "by branch": Way("branch"),
    "by branch, MLP in tiles": Way("branch", tiled=True),
    "optimizer in backward": Way("block", optimizer_in_backward=True),
    "all three": Way("branch", tiled=True, optimizer_in_backward=True),
}


def step_of(way: Way, workload: MeasuredWorkload, tile: int) -> Callable[[int], float]:
    """Return a function from the number of a batch to its loss, which runs a training step."""
    model: Any = workload.build_model()
    if way.granularity is None:
        CHECKPOINT.apply(model)
    else:
        rf.make_reversible(model, rf.Midpoint(granularity=way.granularity))  # type: ignore[arg-type]
    if way.tiled:
        set_mlp_tiles(model, tile)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if way.optimizer_in_backward:
        step_in_backward(optimizer)

    def step(number: int) -> float:
        loss = workload.forward_backward(model, workload.build_batch(number))
        if not way.optimizer_in_backward:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return step


def main() -> None:
    """Measure all ways, print a table and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--tile", type=int, default=512, help="tokens in a tile of an MLP")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of every arm")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    config = llama_config(options.layers, options.width, options.vocabulary, options.sequence_length)
    workload = MeasuredWorkload(config, batch_size=1, sequence_length=options.sequence_length)
    steps = {name: step_of(way, workload, options.tile) for name, way in WAYS.items()}
    losses = {name: step(0) for name, step in steps.items()}  # this also creates the optimizers' states
    peaks = {name: peak_allocated_bytes(partial(step, 0), torch.device("cpu")) for name, step in steps.items()}
    times = measure_step_times(steps, options.rounds, warm_up_rounds=0)
    table = Table("way", "peak MiB", "of rebuild", "time over rebuild", "loss")
    rows: list[dict[str, Any]] = []
    for name in WAYS:
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
        table.add_row(
            name,
            f"{peaks[name] / 2**20:,.1f}",
            f"{peaks[name] / peaks[REFERENCE]:.2f}",
            f"{ratio.median:.2f} ({ratio.lower:.2f} to {ratio.upper:.2f})",
            f"{losses[name]:.6f}",
        )
    Console().print(table)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(options.output, {**settings, "rows": rows}, sys.argv[1:], program="python -m lab.studies.layer_memory")


if __name__ == "__main__":
    main()
