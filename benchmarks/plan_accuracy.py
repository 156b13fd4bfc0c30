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

WIDTH, VOCABULARY = 192, 512
SHAPES = ((4, 256), (1, 768))
"""Sequences and their tokens."""

BATCH, BATCH_TOKENS = 40, 64

ARMS: list[tuple[Method, Arm]] = [
    (STORE, Arm(PLAIN_STORE)),
    (CHECKPOINT, Arm(PLAIN_CHECKPOINT)),
    (rebuild(0), Arm("rebuild", Midpoint().to_dict())),
    (rebuild(2), Arm("rebuild", BlendedMidpoint("1/4").to_dict())),
]


def models() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the configuration of every network."""
    for layers in (6, 24):
        yield f"Llama, {layers} layers", llama_config(layers, WIDTH, VOCABULARY, 1024)
    llama = llama_config(8, WIDTH, VOCABULARY, 1024)
    yield (
        "GPT-2, 8 layers",
        {
            "model_type": "gpt2",
            "n_layer": 8,
            "n_embd": WIDTH,
            "n_head": 3,
            "vocab_size": VOCABULARY,
            "bos_token_id": None,
            "eos_token_id": None,
            **dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), 0.0),
        },
    )
    grouped = {"num_key_value_heads": 1, "head_dim": 64}
    yield "Qwen3, 8 layers", llama | grouped | {"model_type": "qwen3"}
    yield "Gemma 2, 8 layers", llama | grouped | {"model_type": "gemma2", "sliding_window": 128}


def peaks(name: str, config: dict[str, Any], precision: Precision) -> list[dict[str, Any]]:
    """Return the planned and the measured peak of every arm and shape, bytes."""
    points = [(method, arm, *shape) for method, arm in ARMS for shape in SHAPES]
    measured = measure_peak_memory(
        [(Workload(config, batch, tokens, precision), arm) for _, arm, batch, tokens in points], threads=1
    )
    workload = Planned(AutoConfig.for_model(**config), dtype=getattr(torch, precision), head="own")
    return [
        {
            "model": name,
            "precision": precision,
            "arm": method.title,
            "batch": batch,
            "tokens": tokens,
            "measured": one.peak,
            "planned": step_memory(workload, method, batch, tokens).device.total,
        }
        for (method, _, batch, tokens), one in zip(points, measured, strict=True)
    ]


def largest_batch(name: str, config: dict[str, Any], method: Method, arm: Arm) -> dict[str, Any]:
    """Return the planned and the measured largest batch in a memory that half a sequence is left of."""
    workload = Planned(AutoConfig.for_model(**config), dtype=torch.float32, head="own")

    def cost(batch: int) -> int:
        return step_memory(workload, method, batch, BATCH_TOKENS).device.total

    room = (cost(BATCH) + cost(BATCH + 1)) // 2
    planned = largest_within(cost, room)
    candidates = range(planned - 3, planned + 4)
    measured = measure_peak_memory([(Workload(config, batch, BATCH_TOKENS), arm) for batch in candidates], threads=1)
    fitting = [batch for batch, one in zip(candidates, measured, strict=True) if one.peak <= room]
    if not fitting or fitting[-1] == candidates[-1]:
        raise SystemExit(f"{name}, {method.title}: the measured largest batch is not near the planned one, {planned}.")
    return {
        "model": name,
        "arm": method.title,
        "tokens": BATCH_TOKENS,
        "memory": room,
        "planned": planned,
        "measured": max(fitting),
    }


def main() -> None:
    """Measure every point, print how far the plan is off, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    console, rows, batches = Console(), [], []
    for name, config in models():
        for precision in ("float32", "bfloat16"):
            rows += peaks(name, config, precision)
            errors = [row["planned"] / row["measured"] - 1 for row in rows[-len(ARMS) * len(SHAPES) :]]
            console.print(f"{name}, {precision}: {min(errors):+.2%} to {max(errors):+.2%}", highlight=False)
        for method, arm in ARMS:
            batches.append(largest_batch(name, config, method, arm))
            console.print(f"largest batch: {batches[-1]}", highlight=False)
    write_result(
        options.output,
        {"width": WIDTH, "vocabulary": VOCABULARY, "rows": rows, "largest_batches": batches},
        sys.argv[1:],
        program="python benchmarks/plan_accuracy.py",
    )


if __name__ == "__main__":
    main()
