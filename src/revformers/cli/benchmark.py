"""``revformers benchmark memory`` and ``revformers benchmark time``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
import yaml

from revformers.training.errors import RecipeError
from revformers.training.strict import parse_yaml

if TYPE_CHECKING:
    from revformers.benchmark.workload import Workload
    from revformers.dynamics import Dynamics

ArmName = Literal["plain_store", "plain_checkpoint", "store", "checkpoint", "offload", "rebuild"]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The Llama with random weights, and the batches of random tokens, that both studies measure."""

    dynamics: str = "midpoint"
    """Recurrence: residual, midpoint, blended_midpoint, leapfrog or hamiltonian."""

    dynamics_options: str = "{}"
    """Options of the recurrence as YAML, such as "{blend: 1/4}"."""

    width: int = 256
    """Width of the stream."""

    heads: int | None = None
    """Attention heads; left out, heads of 64 channels."""

    vocabulary: int = 256
    """Entries of the vocabulary: few, so that the layers set the peak and not the head."""

    batch_size: int = 4
    """Sequences in a step."""

    sequence_length: int = 512
    """Tokens in a sequence."""

    precision: Literal["float32", "bfloat16", "bfloat16_autocast"] = "float32"
    """float32; bfloat16 weights; or float32 weights under bfloat16 autocast."""

    device: str = "cpu"
    """Device to measure on, such as cuda."""

    seed: int = 0
    """Seed of weights and tokens."""

    head: Literal["auto", "chunked", "own"] = "auto"
    """The loss of every arm: chunked, from the logits of a few tokens at a time; own, from those of all tokens; auto,
    chunked where the model can be."""

    out: Path | None = None
    """File that the result is written to; left out, benchmarks/results/STUDY-DYNAMICS-PRECISION.json."""


@dataclass(frozen=True, kw_only=True)
class Memory(NetworkOptions):
    """Measure the peak memory of one training step at several depths, each in a fresh process."""

    layers: tuple[int, ...] = (4, 16, 48, 96)
    """Depths to measure."""

    arms: tuple[ArmName, ...] = ("plain_store", "plain_checkpoint", "checkpoint", "rebuild")
    """What to compare: store, checkpoint, offload and rebuild run the network with the given dynamics, plain_store and
    plain_checkpoint the ordinary network as transformers makes it."""


@dataclass(frozen=True, kw_only=True)
class Time(NetworkOptions):
    """Measure the time of a forward and backward pass, all arms in turns in one process."""

    layers: int = 24
    """Depth of the network."""

    arms: tuple[ArmName, ...] = ("plain_store", "plain_checkpoint", "store", "checkpoint", "rebuild")
    """What to compare: store, checkpoint, offload and rebuild run the network with the given dynamics, plain_store and
    plain_checkpoint the ordinary network as transformers makes it."""

    rounds: int = 15
    """Timed rounds; every arm takes one step in each."""

    warm_up_rounds: int = 2
    """Rounds before them that are not timed."""


Options = Annotated[Memory, tyro.conf.subcommand("memory")] | Annotated[Time, tyro.conf.subcommand("time")]


def run(arguments: Sequence[str]) -> int:
    """Run one study, print its table, write its result, and return 0.

    Raises:
        RecipeError: for options that do not describe a network, dynamics or a study.

    """
    options = tyro.cli(Options, prog="revformers benchmark", args=list(arguments), use_underscores=True)
    # imported here, so that the help does not wait for PyTorch
    from rich.console import Console

    from revformers.benchmark.environment import write_result
    from revformers.benchmark.studies import study_memory, study_time
    from revformers.benchmark.terminal import depth_tables, times_tables

    console = Console()
    workload, recurrence = _network(options)
    try:
        if isinstance(options, Memory):
            result = study_memory(
                workload,
                recurrence,
                options.arms,
                options.layers,
                lambda point: console.print(
                    f"{point.arm} at {point.layers} layers: peak {point.memory.peak:,} bytes", highlight=False
                ),
            )
            table = depth_tables(result)
        else:
            result = study_time(
                workload,
                recurrence,
                options.arms,
                options.rounds,
                options.warm_up_rounds,
                lambda number: console.print(f"round {number + 1} done", highlight=False),
            )
            table = times_tables(result)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    study = type(options).__name__.lower()
    path = options.out or Path("benchmarks/results", f"{study}-{recurrence.name}-{workload.precision}.json")
    write_result(path, {"study": study, **result}, ["benchmark", *arguments])
    console.print(table, highlight=False)
    console.print(f"Written to {path}.", highlight=False, soft_wrap=True)
    return 0


def _network(options: Memory | Time) -> "tuple[Workload, Dynamics]":
    """Return what the options describe, or raise RecipeError."""
    from revformers import dynamics
    from revformers.benchmark.workload import Workload, llama_config

    layers = options.layers if isinstance(options, Time) else min(options.layers, default=0)
    try:
        recurrence = dynamics.create(options.dynamics, **_dynamics_options(options.dynamics_options))
        config = llama_config(layers, options.width, options.vocabulary, options.sequence_length, options.heads)
        workload = Workload(
            config,
            options.batch_size,
            options.sequence_length,
            options.precision,
            options.device,
            options.seed,
            options.head,
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return workload, recurrence


def _dynamics_options(text: str) -> dict[str, Any]:
    """Return the options that `text` spells in YAML, or raise ValueError."""
    try:
        values = parse_yaml(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f'--dynamics_options takes YAML such as "{{blend: 1/4}}", not {text!r}.')
    return values
