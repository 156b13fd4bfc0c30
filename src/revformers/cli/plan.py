"""``revformers plan MODEL --memory 24GiB``."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from revformers.byte_size import parse_size
from revformers.training.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

    from revformers.memory.plan import Plan


@dataclass(frozen=True)
class PlanOptions:
    """Say what every way of training a model takes, from its configuration alone: no weights, no GPU."""

    model: tyro.conf.Positional[str]
    """A directory, a hub id, or a config.json."""

    memory: str
    """Memory of the device, such as 24GiB."""

    sequence_length: int = 2048
    """Tokens in a sequence."""

    train: Literal["full", "lora"] = "full"
    """All weights, or a LoRA adapter of rank 16 on all linear layers but the head."""

    optimizer: Literal["adamw", "adamw8bit", "sgd"] = "adamw"
    """Whose states are counted."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the weights and of the computation."""

    head: Literal["chunked", "own"] = "chunked"
    """chunked computes the loss from the logits of 1024 tokens at a time, as revformers finetune does; own is the
    model's own loss, with all logits at once."""

    bits: tuple[int, ...] = (0, 2, 4)
    """Side information to plan for, bits an element a layer."""

    json: Path | None = None
    """File to write the plan to as well, in bytes."""


def run(arguments: Sequence[str]) -> int:
    """Print the plan and return 0.

    Raises:
        RecipeError: for options or a model that cannot be planned.

    """
    options = tyro.cli(PlanOptions, prog="revformers plan", args=list(arguments), use_underscores=True)
    memory = parse_memory(options.memory)
    if options.sequence_length < 2:
        raise RecipeError(f"A sequence has at least two tokens; raise --sequence_length {options.sequence_length}.")
    if not options.bits or not all(0 <= number <= 8 for number in options.bits):
        raise RecipeError("--bits takes numbers from 0 to 8.")
    # imported here, so that the help does not wait for PyTorch
    import torch
    from rich.console import Console

    from revformers.cli.quiet import quiet_libraries
    from revformers.memory.plan import Workload, make_plan

    quiet_libraries()
    config = _config(options.model)
    longest = getattr(config, "max_position_embeddings", None) or math.inf
    if options.sequence_length > longest:
        print(f"The model reads at most {longest} tokens; {options.sequence_length} were asked for.", file=sys.stderr)
    workload = Workload(config, options.train, options.optimizer, getattr(torch, options.dtype), options.head)
    try:
        plan = make_plan(workload, memory, options.sequence_length, options.bits)
    except ImportError as error:
        raise RecipeError('--train lora needs PEFT: pip install "revformers[finetune]".') from error
    except ValueError as error:
        raise RecipeError(f"No step of {options.model} can be planned: {error}") from error
    console = Console()
    console.print(_table(plan), highlight=False)
    if plan.refusal:
        console.print(f"Not rebuilt: {plan.refusal}", highlight=False, soft_wrap=True)
    console.print(plan.recommendation, highlight=False, soft_wrap=True)
    if options.json:
        options.json.write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n", encoding="utf-8")
    return 0


def parse_memory(text: str) -> int:
    """Return the bytes that `text` spells, such as "24GiB" or "80 GB"; raise RecipeError where it spells none."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise RecipeError(f"--memory: {error}") from error


def _config(name: str) -> Any:
    """Return the configuration that `name` names; raise RecipeError where there is none of a language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise RecipeError(f"There is no directory or file {name!r} to read a configuration from.")
    try:
        config = AutoConfig.from_pretrained(Path(name).expanduser() if Path(name).expanduser().exists() else name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"No configuration of a model can be read from {name!r}: {reason}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "num_hidden_layers", None) is None:
        raise RecipeError(f"{name!r} describes no causal language model whose layers can be counted.")
    return config


def _table(plan: "Plan") -> "Table":
    from rich.table import Table

    size = plan.size
    table = Table(
        title=f"{size.parameters:,} parameters, {size.trained:,} trained: weights {_gib(size.weights)}, "
        f"gradients {_gib(size.gradients)}, optimizer {_gib(size.optimizer)} of {_gib(plan.memory)} GiB",
        caption=f"GiB; one sequence of {plan.sequence_length:,} tokens. Time: operations, relative to store.",
    )
    headings = ("kept", "states", "working", "total", "host", "batch", "context", "time")
    table.add_column("activations", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    for way in plan.ways:
        step = way.step
        table.add_row(
            way.title,
            *map(_gib, (step.kept, step.states, step.working, step.total + size.total, step.host)),
            f"{way.largest_batch:,}",
            f"{way.longest_context:,}",
            f"{way.operations:.2f}",
        )
    return table


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f}"
