"""Measures the planner's error: planned against measured peaks and largest batches, on small networks of four families.

    python -m lab.studies.plan_accuracy --output RESULT.json

Peaks are measured on the CPU by the allocator's own events (`lab.bench.meter`), in fresh processes. Both they and the
plan leave out weights, gradients, optimizer states and the batch. A budget is a third of the planned memory of storing.
The largest batch is searched for in a memory that holds the planned `BATCH` sequences and half a sequence more.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lab.bench.environment import output_file, write_result
from lab.bench.memory import PeakMemory, Task
from lab.bench.process import measure_side_by_side
from lab.bench.workload import MeasuredWorkload, llama_config
from lab.command import as_command
from revformers.engine.state_format import StateFormat
from revformers.head.loss import Head
from revformers.models.update_predictor import PredictorForm
from revformers.planning.search import largest_within
from revformers.planning.setups import budgeted, rebuild, title_of
from revformers.planning.step import step_memory
from revformers.setup import CHECKPOINT, STORE, Precision, Setup
from revformers.training.console import command_console

WIDTH, VOCABULARY = 128, 256
SHAPES = ((4, 128), (1, 384))
"""Numbers of sequences and of their tokens."""

BATCH, BATCH_TOKENS = 40, 32
"""Numbers of sequences, and of their tokens, that determine the memory for the largest batch."""

AROUND = (-1, 0, 1)
"""Distances from the planned batch at which the measured one is searched for; beyond them, the limit is written."""

HEAD: Head = "chunked"
"""Head of the plan and of the measurements: the default of every command."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

SETUPS = (STORE, CHECKPOINT, rebuild(0), rebuild(2))

TILE = 128
"""Tokens of a tile: a quarter of one batch, a third of the other."""

FURTHER = {
    f"checkpoint, tiles of {TILE}": replace(CHECKPOINT, mlp_tile=TILE),
    f"rebuild, 2 bits, tiles of {TILE}": replace(rebuild(2), mlp_tile=TILE),
    "rebuild, 0 bits, by branch": rebuild(0, "branch"),
    "rebuild, 2 bits, update predictors": replace(rebuild(2), predictors=PredictorForm()),
    "rebuild, 2 bits, 32-bit states": replace(rebuild(2), states=StateFormat("int32")),
    "rebuild, 2 bits, 64-bit states": replace(rebuild(2), states=StateFormat("int64")),
}
"""Further setups, which are measured on the first network of `models`."""


def models() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the configuration of every network."""
    for layers in (6, 16):
        yield f"Llama, {layers} layers", llama_config(layers, WIDTH, VOCABULARY, 1024)
    llama = llama_config(8, WIDTH, VOCABULARY, 1024)
    yield (
        "GPT-2, 8 layers",
        {
            "model_type": "gpt2",
            "n_layer": 8,
            "n_embd": WIDTH,
            "n_head": 2,
            "vocab_size": VOCABULARY,
            "bos_token_id": None,
            "eos_token_id": None,
            **dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), 0.0),
        },
    )
    grouped = {"num_key_value_heads": 1, "head_dim": 64}
    yield "Qwen3, 8 layers", llama | grouped | {"model_type": "qwen3"}
    yield "Gemma 2, 8 layers", llama | grouped | {"model_type": "gemma2", "sliding_window": 64}


@dataclass(frozen=True)
class Study:
    """The figures of one network: the plan, and the tasks that measure it, in the same order."""

    rows: list[dict[str, Any]]
    batches: list[dict[str, Any]]
    tasks: list[Task]

    def add(self, name: str, setup: Setup, measured: MeasuredWorkload, arm: str | None = None) -> None:
        """Add a point: its plan, and the task that measures it. `arm` names the setup; by default its title does."""
        batch, tokens = measured.batch_size, measured.sequence_length
        peak = step_memory(measured, setup, batch, tokens).device.total
        point = {"batch": batch, "tokens": tokens, "planned": peak}
        self.rows.append({"model": name, "precision": measured.precision, "arm": arm or title_of(setup), **point})
        self.tasks.append((measured, setup))

    def add_measured(self, measured: Sequence[PeakMemory]) -> None:
        """Add the measurements to the rows."""
        peaks = iter(one.peak for one in measured)
        for row in self.rows:
            row["measured"] = next(peaks)
        for row in self.batches:
            fitting = [row["planned"] + more for more in AROUND if next(peaks) <= row["memory"]]
            row["measured"] = max(fitting, default=None)


def study(name: str, config: dict[str, Any], further: Mapping[str, Setup]) -> Study:
    """Return the plan of a network for every precision, arm and shape, and its largest batches.

    Args:
        name: the network's name.
        config: its configuration.
        further: arms beside `SETUPS` and the budget, by name; their largest batches are not searched for.

    """
    result = Study([], [], [])
    for precision in PRECISIONS:
        workload = MeasuredWorkload(config, precision=precision, head=HEAD)
        for setup in SETUPS:
            for batch, tokens in SHAPES:
                result.add(name, setup, MeasuredWorkload(config, batch, tokens, precision, head=HEAD))
        for batch, tokens in SHAPES:
            budget = step_memory(workload, STORE, batch, tokens).device.total // 3
            result.add(name, budgeted(budget), MeasuredWorkload(config, batch, tokens, precision, head=HEAD))
        for arm, setup in further.items():
            for batch, tokens in SHAPES:
                result.add(name, setup, MeasuredWorkload(config, batch, tokens, precision, head=HEAD), arm)
    workload = MeasuredWorkload(config, head=HEAD)
    for setup in SETUPS:

        def cost(batch: int, setup: Setup = setup) -> int:
            return step_memory(workload, setup, batch, BATCH_TOKENS).device.total

        room = (cost(BATCH) + cost(BATCH + 1)) // 2
        largest = largest_within(cost, room)
        point = {"tokens": BATCH_TOKENS, "memory": room, "planned": largest}
        result.batches.append({"model": name, "arm": title_of(setup), **point})
        result.tasks.extend(
            (MeasuredWorkload(config, largest + more, BATCH_TOKENS, head=HEAD), setup) for more in AROUND
        )
    return result


def main() -> None:
    """Measure every point, print the error of the plan, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=output_file, required=True)
    parser.add_argument("--processes", type=int, default=1, help="networks measured at once")
    options = parser.parse_args()
    studies = [study(name, config, {} if place else FURTHER) for place, (name, config) in enumerate(models())]
    measured = measure_side_by_side([one.tasks for one in studies], options.processes)
    for one, peaks in zip(studies, measured, strict=True):
        one.add_measured(peaks)
        errors = [row["planned"] / row["measured"] - 1 for row in one.rows]
        command_console().print(f"{one.rows[0]['model']}: {min(errors):+.2%} to {max(errors):+.2%}")
    rows, batches = ([row for one in studies for row in getattr(one, name)] for name in ("rows", "batches"))
    write_result(
        options.output,
        {"width": WIDTH, "vocabulary": VOCABULARY, "rows": rows, "largest_batches": batches},
        sys.argv[1:],
        program="python -m lab.studies.plan_accuracy",
    )


if __name__ == "__main__":
    as_command(main)
