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
from revformers.cli.options import read_options
from revformers.errors import UserError, as_user_error, require_package
from revformers.files import check_place, write_text

PLOT_FORMATS = ("svg", "png", "pdf")
DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class PlanOptions:
    """Predict the memory and time of training a model from its configuration alone, without weights or a GPU.

    Attributes:
        model: A directory, a hub id, a config.json or a GGUF file.
        memory: Memory of the device, such as 24GiB.
        sequence_length: Tokens in a sequence; by default 2048, or the model's maximum if that is smaller.
        train: full trains all weights, lora a LoRA adapter of rank 16 on all linear layers except the head, qlora the
            same on frozen NF4 weights.
        optimizer: Optimizer, for the size of its states.
        dtype: Type of the weights and of the computation.
        head: chunked computes the loss from the logits of a few tokens at a time (a quarter of the width, between 64
            and 1024), as revformers finetune does; own is the model's own loss, from all logits at once.
        bits: Amounts of side information to plan for, in bits per element and layer.
        granularity: Whether rebuilt networks step by block or by branch (attention, then MLP).
        predictors: Last input of the update predictors of rebuilt networks; by default those of the model, if it has
            any.
        mlp_tile: Tokens of the batch that an MLP evaluates at a time. By default all, or in rows of which not one
            sequence fits in that way, a power of two with which it does, the same in all of them.
        host_memory: Memory of the host for activations, such as 200GiB, or 0 for none; by default it is not known.
            Divide it by the number of GPUs that share the host.
        link: Bytes a second between host and GPU in one direction, such as 25GB; by default those of the data sheet.
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
    sequence_length: int | None = None
    train: Literal["full", "lora", "qlora"] = "full"
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "lion", "sgd"] = "adamw"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    head: Literal["chunked", "own"] = "chunked"
    bits: tuple[int, ...] = (0, 2, 4)
    granularity: Literal["block", "branch"] = "block"
    predictors: Literal["none", "state", "update", "previous_mlp", "previous_update"] | None = None
    mlp_tile: int | None = None
    host_memory: str | None = None
    link: str | None = None
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
    options = read_options(PlanOptions, "revformers plan", arguments)
    sizes = _sizes(options)
    _check(options)
    # imported here, so that the help does not wait for PyTorch
    from revformers.cli.quiet import quiet_libraries
    from revformers.planning.plan import make_plan
    from revformers.training.console import command_console, signs_of_life

    quiet_libraries()
    gc.freeze()  # the objects of the libraries stay, and searching them for garbage takes long
    config, own_predictors = _config(options.model)
    choices = _choices(options, own_predictors)
    longest = max(0, getattr(config, "max_position_embeddings", None) or 0) or math.inf
    workload = _workload(options, config, options.sequence_length or int(min(DEFAULT_LENGTH, longest)))
    if workload.sequence_length > longest:
        asked = f"{workload.sequence_length:,} were asked for"
        print(f"The model reads at most {longest:,} tokens; {asked}.", file=sys.stderr)
    if (remark := _quantised(config, options.train)) is not None:
        print(f"{options.model}: {remark}", file=sys.stderr)
    machine, named = _machine(options, sizes, workload.dtype)
    with as_user_error(_unplannable(options)), signs_of_life(command_console(stderr=True), "planning"):
        plan = make_plan(workload, machine, choices)
    _write(options, workload, plan)
    if options.json == "-":
        print(_json(plan), end="")
    else:
        _show(plan, named, longest)
    return 0


@dataclass(frozen=True)
class _Sizes:
    """Memory of the device and of the host, bytes, and bytes a second between them; None for what is not given."""

    memory: int
    host_memory: int | None
    link: int | None


def _sizes(options: PlanOptions) -> _Sizes:
    return _Sizes(
        parse_memory(options.memory),
        _parse_host_memory(options.host_memory),
        None if options.link is None else parse_memory(options.link.removesuffix("/s"), "--link"),
    )


def _check(options: PlanOptions) -> None:
    """Raise UserError for numbers out of range, and for files that cannot be written."""
    if options.mlp_tile is not None and options.mlp_tile < 1:
        raise UserError(f"--mlp_tile takes a number of tokens, not {options.mlp_tile}.")
    if options.sequence_length is not None and options.sequence_length < 2:
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


def _unplannable(options: PlanOptions) -> str:
    return f"No step of {options.model} can be planned"


def _choices(options: PlanOptions, own_predictors: Any) -> Any:
    """Return what the plan compares; `own_predictors` is the form of those of the model, or None."""
    from revformers.models.update_predictor import predictor_form_of
    from revformers.planning.setups import Choices

    predictors = own_predictors if options.predictors is None else predictor_form_of(options.predictors)
    if predictors is not None and options.granularity == "branch":
        raise UserError("--granularity branch of a model with update predictors needs --predictors none.")
    return Choices(options.bits, options.granularity, predictors, options.mlp_tile)


def _workload(options: PlanOptions, config: Any, length: int) -> Any:
    """Return the training that is planned, on sequences of `length` tokens."""
    from revformers.setup import Workload

    with as_user_error(_unplannable(options)):
        return Workload(
            config,
            sequence_length=length,
            precision=options.dtype,
            head=options.head,
            optimizer=options.optimizer,
            training=options.train,
        )


def _machine(options: PlanOptions, sizes: _Sizes, dtype: Any) -> tuple[Any, str]:
    """Return the machine, and what its predicted times are called."""
    from revformers.planning.devices import DEVICES, Machine

    device, named = DEVICES[options.gpu], str(options.gpu)
    if options.operations_per_byte is not None:
        device = dataclasses.replace(device, memory=device.operations(dtype) / options.operations_per_byte)
        named = f"{options.operations_per_byte:g} operations a byte"
    if sizes.link is not None:
        device = dataclasses.replace(device, link=sizes.link)
    return Machine(device, sizes.memory, sizes.host_memory), named


def _write(options: PlanOptions, workload: Any, plan: Any) -> None:
    """Write the files that are asked for."""
    if options.json and options.json != "-":
        write_text(Path(options.json), _json(plan))
    if options.plot:
        from revformers.cli.plan_plot import draw

        draw(workload, plan, options.plot_axis, options.plot)


def _show(plan: Any, device: str, longest: float) -> None:
    """Print the table and the sentences of a plan.

    Args:
        plan: the plan.
        device: what the predicted times are called.
        longest: the most tokens that the model reads by its configuration, or infinity.

    """
    from revformers.cli.plan_table import plan_table
    from revformers.training.console import command_console

    console = command_console()
    console.print(plan_table(plan, device))
    if plan.refusal:
        console.print(f"Not rebuilt: {plan.refusal}")
    if limited := [row.title for row in plan.setups if row.limited_by_host]:
        console.print(f"Limited by the memory of the host: {', '.join(limited)}.")
    if plan.sequence_length <= longest < max(row.longest_context or 0 for row in plan.setups):
        console.print(f"The model reads at most {longest:,} tokens; longer contexts only fit the memory.")
    console.print(plan.recommendation)


def _json(plan: Any) -> str:
    return json.dumps(plan.to_dict(), indent=2) + "\n"


def parse_memory(text: str, option: str = "--memory") -> int:
    """Return the number of bytes in `text`, such as "24GiB" or "80 GB"; raise UserError if it is not a size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from error


def _parse_host_memory(text: str | None) -> int | None:
    if text is None or text.strip() == "0":
        return None if text is None else 0
    return parse_memory(text, "--host_memory")


def _config(name: str) -> tuple[Any, Any]:
    """Return the configuration called `name` and the form of its update predictors, or None.

    Raises:
        UserError: if it is not the configuration of a causal language model.

    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    from revformers.checkpoints.load import load_config
    from revformers.checkpoints.model_config import identity_of, unmark_config

    config = load_config(name)
    identity = identity_of(config)
    unmark_config(config)  # a reversible model is planned as the network that it is made of
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if encoder and getattr(config, "is_decoder", None) is False:
        raise UserError(f"{name!r} describes an encoder, which reads in both directions, not a causal language model.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "num_hidden_layers", None) is None:
        raise UserError(f"{name!r} does not describe a causal language model whose layers can be counted.")
    return config, None if identity is None else identity.predictor_form


def _quantised(config: Any, train: str) -> str | None:
    """Return what the plan leaves out of account of quantised weights; None if it counts the weights as they are."""
    given = getattr(config, "quantization_config", None)
    if not given:
        return None
    values = given if isinstance(given, dict) else given.to_dict()
    kind = values.get("bnb_4bit_quant_type") if values.get("load_in_4bit") else None
    if kind == "nf4" and train == "qlora":
        return None
    named = kind or getattr(values.get("quant_method"), "value", values.get("quant_method")) or "a quantisation"
    counted = "in NF4" if train == "qlora" else "dequantised"
    return f"the weights are in {named}, and are planned {counted}; --train qlora plans NF4."
