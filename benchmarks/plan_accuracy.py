"""How far the planner is off: planned against measured peaks and largest batches, on small networks of four families.

    python benchmarks/plan_accuracy.py --output RESULT.json

Peaks are measured on the CPU by the allocator's own events (`revformers.benchmark.meter`), in fresh processes. They and
the plan leave out weights, gradients, optimizer states and the batch. The largest batch is searched for in a memory
that holds what `BATCH` sequences were planned to take and half a sequence more.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig

from revformers.benchmark.environment import write_result
from revformers.benchmark.memory import measure_peak_memory
from revformers.benchmark.workload import PLAIN_CHECKPOINT, PLAIN_STORE, Arm, Precision, Workload, llama_config
from revformers.dynamics import BlendedMidpoint, Midpoint
from revformers.memory.methods import CHECKPOINT, STORE, Method, rebuild
from revformers.memory.search import largest_within
from revformers.memory.step import Workload as Planned
from revformers.memory.step import step_memory

WIDTH, VOCABULARY = 128, 256
SHAPES = ((4, 128), (1, 384))
"""Sequences and their tokens."""

BATCH, BATCH_TOKENS = 40, 32
"""Sequences, and their tokens, that the memory for the largest batch is chosen for."""

AROUND = (-2, -1, 0, 1, 2)
"""How far from the planned largest batch the measured one is looked for."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

ARMS: list[tuple[Method, Arm]] = [
    (STORE, Arm(PLAIN_STORE)),
    (CHECKPOINT, Arm(PLAIN_CHECKPOINT)),
    (rebuild(0), Arm("rebuild", Midpoint().to_dict())),
    (rebuild(2), Arm("rebuild", BlendedMidpoint("1/4").to_dict())),
]


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


def peaks(name: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the planned and the measured peak of every precision, arm and shape, bytes."""
    points = [(precision, method, arm, *shape) for precision in PRECISIONS for method, arm in ARMS for shape in SHAPES]
    measured = measure_peak_memory(
        [(Workload(config, batch, tokens, precision), arm) for precision, _, arm, batch, tokens in points], threads=1
    )
    workloads = {precision: planned_workload(config, precision) for precision in PRECISIONS}
    return [
        {
            "model": name,
            "precision": precision,
            "arm": method.title,
            "batch": batch,
            "tokens": tokens,
            "measured": one.peak,
            "planned": step_memory(workloads[precision], method, batch, tokens).device.total,
        }
        for (precision, method, _, batch, tokens), one in zip(points, measured, strict=True)
    ]


def largest_batches(name: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the planned and the measured largest batch of every arm, in a memory that half a sequence is left of."""
    workload, rows, tasks = planned_workload(config, "float32"), [], []
    for method, arm in ARMS:

        def cost(batch: int, method: Method = method) -> int:
            return step_memory(workload, method, batch, BATCH_TOKENS).device.total

        room = (cost(BATCH) + cost(BATCH + 1)) // 2
        planned = largest_within(cost, room)
        rows.append({"model": name, "arm": method.title, "tokens": BATCH_TOKENS, "memory": room, "planned": planned})
        tasks += [(Workload(config, planned + more, BATCH_TOKENS), arm) for more in AROUND]
    measured = iter(measure_peak_memory(tasks, threads=1))
    for row in rows:
        fitting = [
            row["planned"] + more
            for more, one in zip(AROUND, [next(measured) for _ in AROUND], strict=True)
            if one.peak <= row["memory"]
        ]
        if not fitting or fitting[-1] == row["planned"] + AROUND[-1]:
            raise SystemExit(
                f"{name}, {row['arm']}: the measured largest batch is not near the planned {row['planned']}."
            )
        row["measured"] = fitting[-1]
    return rows


def planned_workload(config: dict[str, Any], precision: Precision) -> Planned:
    """Return what the planner is told."""
    return Planned(AutoConfig.for_model(**config), dtype=getattr(torch, precision), head="own")


def main() -> None:
    """Measure every point, print how far the plan is off, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    console, rows, batches = Console(), [], []
    for name, config in models():
        rows += peaks(name, config)
        errors = [row["planned"] / row["measured"] - 1 for row in rows if row["model"] == name]
        console.print(f"{name}: {min(errors):+.2%} to {max(errors):+.2%}", highlight=False)
        batches += largest_batches(name, config)
        console.print({row["arm"]: (row["planned"], row["measured"]) for row in batches if row["model"] == name})
    write_result(
        options.output,
        {"width": WIDTH, "vocabulary": VOCABULARY, "rows": rows, "largest_batches": batches},
        sys.argv[1:],
        program="python benchmarks/plan_accuracy.py",
    )


if __name__ == "__main__":
    main()
