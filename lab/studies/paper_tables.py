"""Plans the largest batches of two tables of arXiv 2512.02056, whose GPUs are not at hand: predictions only.

    python -m lab.studies.paper_tables --output RESULT.json

The networks are those of recipes/bench/table3.yaml and recipes/bench/table4.yaml, which measure the same on a GPU. The
paper's precision, head and length could not be read, so both heads are planned. Weights, gradients, the states of AdamW
and the computation are in bfloat16, because steps under autocast cannot be planned. Times are those of the roofline
model by the data sheet of an H100, in which a step takes a time proportional to its batch.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from lab import REPOSITORY
from lab.bench.environment import output_file, write_result
from lab.command import as_command
from revformers.byte_size import parse_size
from revformers.head.loss import Head
from revformers.planning.devices import DEVICES
from revformers.planning.model_size import size_in
from revformers.planning.search import largest_within
from revformers.planning.setups import rebuild
from revformers.planning.step import step_memory, step_time
from revformers.setup import CHECKPOINT, STORE, Setup, Workload
from revformers.training.console import command_console

WAYS = {"store": STORE, "checkpoint": CHECKPOINT, "rebuild": rebuild(0)}
"""Storing and checkpointing the ordinary network, and rebuilding the midpoint rule."""

HEADS: tuple[Head, ...] = ("chunked", "own")
TIMED_BATCH = 8
TABLE_4_MEMORY = "80GB"


@dataclass(frozen=True)
class Case:
    """A network of one of the tables, with one of the heads.

    Attributes:
        table: number of the table in the paper.
        config: the network.
        length: tokens in a sequence.
        head: "chunked", or "own": the logits of all tokens at once.
        memory: memories of the device, as text.

    """

    table: int
    config: dict[str, Any]
    length: int
    head: Head
    memory: tuple[str, ...]

    def workload(self) -> Workload:
        """Return the network and its training."""
        return Workload(
            self.config,
            sequence_length=self.length,
            precision="bfloat16",
            head=self.head,
            optimizer="adamw",
            training="full",
        )


def cases() -> Iterator[Case]:
    """Yield the networks of the recipes."""
    for table in (3, 4):
        recipe = yaml.safe_load((REPOSITORY / f"recipes/bench/table{table}.yaml").read_text(encoding="utf-8"))
        config = {"model_type": recipe["model"]["architecture"], **recipe["model"]["config"]}
        memory = tuple(recipe["memory"]) if table == 3 else (TABLE_4_MEMORY,)
        for layers in recipe.get("depths", [config.get("n_layer")]):
            for head in HEADS:
                yield Case(table, {**config, "n_layer": layers}, recipe["sequence_length"], head, memory)


def largest_batch(workload: Workload, setup: Setup, memory: int) -> int:
    """Return the most sequences whose step fits, with weights, gradients and optimizer states; `memory` in bytes."""
    return largest_within(
        lambda batch: step_memory(workload, setup, batch, workload.sequence_length, fused=True).device.total,
        memory - size_in(workload, setup.predictors).total,
    )


def planned(case: Case) -> dict[str, Any]:
    """Return the largest batches of a case by way and memory, and the time of a step of every way over storing."""
    workload = case.workload()
    seconds = {name: step_time(workload, way, TIMED_BATCH, case.length, DEVICES["h100"]) for name, way in WAYS.items()}
    return {
        "table": case.table,
        "layers": workload.layers,
        "width": workload.width,
        "length": case.length,
        "vocabulary": workload.config.vocab_size,
        "head": case.head,
        "model_bytes": size_in(workload, None).total,
        "largest_batch": {
            name: {memory: largest_batch(workload, way, parse_size(memory)) for memory in case.memory}
            for name, way in WAYS.items()
        },
        "time_over_store": {name: time / seconds["store"] for name, time in seconds.items()},
    }


def main() -> None:
    """Plan every case, print it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    rows = []
    for case in cases():
        row = planned(case)
        command_console().print(f"table {case.table}, {row['layers']} layers, {case.head}: {row['largest_batch']}")
        rows.append(row)
    write_result(options.output, {"rows": rows}, sys.argv[1:], program="python -m lab.studies.paper_tables")


if __name__ == "__main__":
    as_command(main)
