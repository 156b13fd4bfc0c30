"""Counts the operations of a training step that launch kernels, per layer, under several ways to hold activations.

    python -m lab.studies.kernel_launches --output RESULT.json

A step of narrow layers or of few tokens may take as long on a GPU as the launches of its kernels. They are estimated on
a CPU: every operation that PyTorch dispatches counts once, unless it returns a view or memory that nothing is written
to, or converts the words of a checksum, which a GPU does as it multiplies them. A step of the states is one operation,
as it is one kernel on a GPU. Some operations launch other kernels there, several or none, and some of what attention
saves is not compared. The figures of one layer are those of a deeper
network less those of a shallower one, divided by the layers between.
"""

import argparse
import sys
from collections import Counter
from typing import Any, get_args

import torch

from lab.bench.arm_names import ORDINARY_CHECKPOINT
from lab.bench.environment import output_file, write_result
from lab.bench.workload import MeasuredWorkload, llama_config
from lab.command import as_command
from lab.studies.evidence_cost import ARMS, step_of
from revformers.private_api import TorchDispatchMode
from revformers.setup import Precision
from revformers.training.console import command_console
from revformers.training.titled_table import TitledTable

DEPTHS = (2, 4)
LAUNCH_NOTHING = {"aten::_unsafe_view", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}


class Launches(TorchDispatchMode):
    """Counts the operations in its block that launch kernels, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Count and run one operation."""
        name = operation.name().partition(".")[0]
        of_checksum = name == "aten::_to_copy" and arguments[0].dtype == torch.int32
        if not (operation.is_view or name in LAUNCH_NOTHING or of_checksum):
            self.counts[name] += 1
        return operation(*arguments, **(keywords or {}))


def launches_per_layer(arm: str, width: int, batch: int, tokens: int, precision: Precision) -> dict[str, float]:
    """Return how often every operation is launched in a step, per layer, most frequent first."""
    counts = []
    for layers in DEPTHS:
        config = llama_config(layers, width, 256, tokens)
        workload = MeasuredWorkload(config, batch_size=batch, sequence_length=tokens, precision=precision)
        step = step_of(arm, workload)
        step(0)  # what is made once is not of a step
        with Launches() as launches:
            step(1)
        counts.append(launches.counts)
    fewer, more = counts
    between = DEPTHS[1] - DEPTHS[0]
    per_layer = {name: (count - fewer[name]) / between for name, count in more.most_common()}
    return {name: count for name, count in per_layer.items() if count}


def main() -> None:
    """Count all arms, print a table and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--tokens", type=int, default=512, help="of a sequence")
    parser.add_argument("--precision", choices=get_args(Precision), default="bfloat16")
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    table = TitledTable(left=("arm",), right=("launches per layer", "over checkpointing"))
    for arm in (ORDINARY_CHECKPOINT, *(arm for arm in ARMS if arm != ORDINARY_CHECKPOINT)):
        counts = launches_per_layer(arm, options.width, options.batch, options.tokens, options.precision)
        rows.append({"arm": arm, "launches_per_layer": sum(counts.values()), "by_operation": counts})
        ratio = rows[-1]["launches_per_layer"] / rows[0]["launches_per_layer"]
        table.add(arm, f"{rows[-1]['launches_per_layer']:.0f}", f"{ratio:.2f}")
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(
        options.output, {**settings, "rows": rows}, sys.argv[1:], program="python -m lab.studies.kernel_launches"
    )
    command_console().print(table)


if __name__ == "__main__":
    as_command(main)
