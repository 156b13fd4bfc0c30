"""``revformers plan MODEL --memory 24GiB``."""

import dataclasses
import gc
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from revformers.byte_size import parse_size
from revformers.errors import UserError, require_package
from revformers.files import check_place, write_text

PLOT_FORMATS = ("svg", "png", "pdf")


@dataclass(frozen=True)
class PlanOptions:
    """Predict the memory and time of training a model from its configuration alone, without weights or a GPU.

    Attributes:
        model: A directory, a hub id, a config.json or a GGUF file.
        memory: Memory of the device, such as 24GiB.
        sequence_length: Tokens in a sequence.
        train: full trains all weights, lora a LoRA adapter of rank 16 on all linear layers except the head, qlora the
            same on frozen NF4 weights.
        optimizer: Optimizer, for the size of its states.
        dtype: Type of the weights and of the computation.
        head: chunked computes the loss from the logits of a few tokens at a time (a quarter of the width, between 64
            and 1024), as revformers finetune does; own is the model's own loss, from all logits at once.
        bits: Amounts of side information to plan for, in bits per element and layer.
        gpu: GPU whose data sheet gives the predicted times.
        operations_per_byte: Floating-point operations that the device performs while its memory moves one byte; by
            default that of --gpu.
        json: File to also write the plan to, with sizes in bytes; - prints it instead of the table.
        plot: File for a plot of the memory, such as plan.svg or plan.png.
        plot_axis: Horizontal axis of the plot: the tokens of one sequence, or the number of sequences, of
            the length that --sequence_length gives.

    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    memory: str
    sequence_length: int = 2048
    train: Literal["full", "lora", "qlora"] = "full"
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "lion", "sgd"] = "adamw"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    head: Literal["chunked", "own"] = "chunked"
    bits: tuple[int, ...] = (0, 2, 4)
    gpu: Literal["a100", "h100", "h200", "l4", "rtx4090"] = "h100"
    operations_per_byte: float | None = None
    json: str | None = None
    plot: Path | None = None
    plot_axis: Literal["length", "batch"] = "length"


def run(arguments: Sequence[str]) -> int:
    """Print the plan and return 0.

    Raises:
        UserError: for options or a model that cannot be planned.

    """
    options = tyro.cli(PlanOptions, prog="revformers plan", args=list(arguments), use_underscores=True)
    memory = parse_memory(options.memory)
    if options.sequence_length < 2:
        raise UserError(f"A sequence has at least two tokens; raise --sequence_length {options.sequence_length}.")
    if not options.bits or not all(0 <= number <= 8 for number in options.bits):
        raise UserError("--bits takes numbers from 0 to 8.")
    if options.operations_per_byte is not None and not 0 < options.operations_per_byte < math.inf:
        raise UserError(f"--operations_per_byte takes a positive number, not {options.operations_per_byte}.")
    if options.plot and options.plot.suffix.lstrip(".") not in PLOT_FORMATS:
        raise UserError(
            f"No plot can be written to {options.plot}; name a file ending in .{' or .'.join(PLOT_FORMATS)}."
        )
    if options.plot:
        require_package("matplotlib", "plot", "--plot")
        check_place(options.plot)
    if options.json and options.json != "-":
        check_place(Path(options.json))
    # imported here, so that the help does not wait for PyTorch
    from revformers.cli.plan_table import plan_table
    from revformers.cli.quiet import quiet_libraries
    from revformers.planning.devices import DEVICES
    from revformers.planning.plan import make_plan
    from revformers.setup import Workload
    from revformers.training.console import command_console, say

    quiet_libraries()
    gc.freeze()  # the objects of the libraries stay, and searching them for garbage takes long
    workload = Workload(
        _config(options.model),
        sequence_length=options.sequence_length,
        precision=options.dtype,
        head=options.head,
        optimizer=options.optimizer,
        training=options.train,
    )
    longest = workload.longest_sequence or math.inf
    if options.sequence_length > longest:
        print(f"The model reads at most {longest} tokens; {options.sequence_length} were asked for.", file=sys.stderr)
    device, named = DEVICES[options.gpu], str(options.gpu)
    if options.operations_per_byte is not None:
        device = dataclasses.replace(device, memory=device.operations(workload.dtype) / options.operations_per_byte)
        named = f"{options.operations_per_byte:g} operations a byte"
    try:
        plan = make_plan(workload, memory, device, options.bits)
    except ValueError as error:
        raise UserError(f"No step of {options.model} can be planned: {error}") from error
    if options.json and options.json != "-":
        write_text(Path(options.json), _json(plan))
    if options.plot:
        from revformers.cli.plan_plot import draw

        draw(workload, plan, options.plot_axis, options.plot)
    if options.json == "-":
        print(_json(plan), end="")
        return 0
    console = command_console()
    console.print(plan_table(plan, named))
    if plan.refusal:
        say(console, f"Not rebuilt: {plan.refusal}")
    say(console, plan.recommendation)
    return 0


def _json(plan: Any) -> str:
    values = {**vars(plan), "size": dataclasses.asdict(plan.size), "setups": [row.to_dict() for row in plan.setups]}
    return json.dumps(values, indent=2) + "\n"


def parse_memory(text: str) -> int:
    """Return the number of bytes in `text`, such as "24GiB" or "80 GB"; raise UserError if it is not a size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise UserError(f"--memory: {error}") from error


def _config(name: str) -> Any:
    """Return the configuration called `name`; raise UserError if it is not that of a causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from revformers.checkpoints.load import load_config

    config = load_config(name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "num_hidden_layers", None) is None:
        raise UserError(f"{name!r} does not describe a causal language model whose layers can be counted.")
    return config
