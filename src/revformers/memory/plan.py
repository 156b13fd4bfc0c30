"""The plan: what every way of training a model takes, the largest batch and the longest context, and which to choose.

A step is run without numbers at two depths (see `revformers.memory.saved`), and what each further layer adds is carried
on to the model's depth. Stacks whose layers differ are therefore planned by their first three.

Against peaks that were counted on a CPU (`revformers bench`) the plan of the activations is 1 to 8 % too large
(docs/plan.md has the table, and what is not known). It leaves out what a device's allocator and libraries keep for
themselves.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig

from revformers.dynamics import BlendedMidpoint, Midpoint
from revformers.errors import NotReversibleError
from revformers.hf.head import HeadLoss, set_head_loss
from revformers.hf.reversible import make_reversible
from revformers.memory.model_size import ModelSize, Optimizer, Training, meta_model, model_size, with_adapter
from revformers.memory.saved import floating_point_operations, peak_bytes

Head = Literal["chunked", "own"]

SHALLOW, DEEP = 2, 3
"""Depths at which a step is run."""

CONTEXT_UNIT = 256
"""Tokens to which the longest context is found."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What is trained.

    Attributes:
        config: a configuration of transformers, with num_hidden_layers.
        training: all weights, or a LoRA adapter.
        optimizer: whose states are counted.
        dtype: of the weights and of the computation.
        head: the loss from the logits of a few tokens at a time (`revformers.hf.head`), or the model's own.
        rank: of the adapter.

    """

    config: PreTrainedConfig
    training: Training = "full"
    optimizer: Optimizer = "adamw"
    dtype: torch.dtype = torch.bfloat16
    head: Head = "chunked"
    rank: int = 16


@dataclass(frozen=True)
class Step:
    """The memory of one step beyond weights, gradients and optimizer, in bytes.

    Attributes:
        kept: what is kept of all layers: activations, checkpoints, or side information.
        states: the two fixed-point states.
        working: the rest of the peak: gradients of the stream, what the backward pass of one layer needs, the head.
        host: what lies in host memory.

    """

    kept: int
    states: int
    working: int
    host: int = 0

    @property
    def total(self) -> int:
        """All on the device together."""
        return self.kept + self.states + self.working


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        name: "store", "checkpoint", "offload" or "rebuild".
        bits: side information an element a layer, of "rebuild".
        step: the memory of a step of one sequence.
        largest_batch: sequences that fit; 0 where not one does.
        longest_context: tokens of a single sequence that fit, a multiple of 256.
        operations: floating-point operations of a step, relative to "store".

    """

    name: str
    bits: int | None
    step: Step
    largest_batch: int
    longest_context: int
    operations: float

    @property
    def title(self) -> str:
        """The name, with the bits."""
        return self.name if self.bits is None else f"{self.name}, {self.bits} bits"


@dataclass(frozen=True)
class Plan:
    """All ways to train a model within a budget.

    Attributes:
        memory: the budget in bytes.
        sequence_length: tokens.
        size: weights, gradients and optimizer states.
        ways: in the order of the table.
        refusal: why the model cannot be rebuilt, or nothing.
        recommendation: one sentence.

    """

    memory: int
    sequence_length: int
    size: ModelSize
    ways: list[Way]
    refusal: str | None
    recommendation: str


def make_plan(workload: Workload, memory: int, sequence_length: int, bits: Sequence[int] = (0, 2, 4)) -> Plan:
    """Plan the training of a model within `memory` bytes.

    Args:
        workload: what is trained.
        memory: of the device, bytes.
        sequence_length: tokens of a sequence.
        bits: budgets of side information, each from 0 to 8 bits an element a layer.

    Raises:
        ImportError: for LoRA without PEFT.

    """
    model = meta_model(workload.config, workload.config.num_hidden_layers, workload.dtype)
    size = model_size(with_adapter(model, workload.rank) if workload.training == "lora" else model, workload.optimizer)
    room = memory - size.total
    choices: list[tuple[str, int | None]] = [("store", None), ("checkpoint", None), ("offload", None)]
    refusal = None
    try:
        _run(workload, SHALLOW, "rebuild", 0, 1, 8, peak_bytes)
        choices += [("rebuild", number) for number in bits]
    except NotReversibleError as error:
        refusal = str(error)
    stored = step_operations(workload, "store", sequence_length)
    ways = []
    for name, number in choices:

        def of_batch(batch: int, name: str = name, number: int | None = number) -> int:
            return step_memory(workload, name, number, batch, sequence_length).total

        def of_context(units: int, name: str = name, number: int | None = number) -> int:
            return step_memory(workload, name, number, 1, CONTEXT_UNIT * units).total

        ways.append(
            Way(
                name,
                number,
                step_memory(workload, name, number, 1, sequence_length),
                _largest(of_batch, room),
                CONTEXT_UNIT * _largest(of_context, room),
                step_operations(workload, name, sequence_length) / stored,
            )
        )
    return Plan(memory, sequence_length, size, ways, refusal, _recommend(ways, size, memory, refusal))


def step_memory(workload: Workload, name: str, bits: int | None, batch: int, tokens: int) -> Step:
    """Return what one step takes beyond weights, gradients and optimizer states."""
    kind = "checkpoint" if name == "offload" else name
    shallow = _run(workload, SHALLOW, kind, bits, batch, tokens, peak_bytes)
    deep = _run(workload, DEEP, kind, bits, batch, tokens, peak_bytes)
    layers = workload.config.num_hidden_layers
    growth = (deep - shallow) // (DEEP - SHALLOW)
    kept, rest = layers * growth, shallow - SHALLOW * growth
    if name == "offload":
        # One layer's input is on the device at a time.
        return Step(growth, 0, rest, host=kept)
    states = 16 * batch * tokens * workload.config.hidden_size if name == "rebuild" else 0
    return Step(kept, states, rest - states)


def step_operations(workload: Workload, name: str, tokens: int) -> int:
    """Return the floating-point operations of one step of one sequence."""
    name = "checkpoint" if name == "offload" else name
    shallow = _run(workload, SHALLOW, name, None, 1, tokens, floating_point_operations)
    deep = _run(workload, DEEP, name, None, 1, tokens, floating_point_operations)
    return shallow + (workload.config.num_hidden_layers - SHALLOW) * (deep - shallow) // (DEEP - SHALLOW)


@lru_cache(maxsize=1024)
def _run(
    workload: Workload,
    layers: int,
    name: str,
    bits: int | None,
    batch: int,
    tokens: int,
    measure: Callable[..., int],
) -> int:
    """Measure one step at a depth: the ordinary network stored or checkpointed, or the reversible one rebuilt."""
    model: Any = meta_model(workload.config, layers, workload.dtype)
    if name == "rebuild":
        make_reversible(model, BlendedMidpoint(f"1/{2**bits}") if bits else Midpoint())
    elif name != "store":
        # The name that every transformers 5 has; later ones call it deprecated.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if workload.head == "chunked":
        set_head_loss(model, HeadLoss())
    if workload.training == "lora":
        model = with_adapter(model, workload.rank)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Gradients that are kept are counted with the model, new ones only until they are added.
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    ids = torch.empty(batch, tokens, dtype=torch.int64, device="meta")

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    return measure(step, [*model.parameters(), *model.buffers(), ids])


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _largest(cost: Callable[[int], int], room: int) -> int:
    """Return the largest number whose cost, convex and increasing, is within `room`; 0 where that of 1 is not."""
    best, spent = 1, cost(1)
    if spent > room:
        return 0
    slope = cost(2) - spent
    above: int | None = None
    # The chord between two points lies above a convex cost, so the last guess fits; of an affine one it is the largest.
    while step := min((room - spent) // max(1, slope), above - 1 - best if above else room):
        price = cost(best + step)
        slope = -(-(price - spent) // step)
        if price > room:
            above = best + step
        else:
            best, spent = best + step, price
    return best


def _recommend(ways: Sequence[Way], size: ModelSize, memory: int, refusal: str | None) -> str:
    """Return what to train with, and why."""
    if size.total > memory:
        return "Weights, gradients and optimizer states alone do not fit: train an adapter, or take more memory."
    fitting = [way for way in ways if way.largest_batch]
    if not fitting:
        return "No way fits one sequence: shorten it, or take more memory."
    if fitting[0].name == "store":
        return f"Store activations: up to {fitting[0].largest_batch} sequences fit, and nothing is recomputed."
    on_device = [way for way in fitting if way.name in ("checkpoint", "rebuild")]
    if not on_device:
        return "Offload the checkpoints to host memory: nothing else fits one sequence."
    best = max(on_device, key=lambda way: (way.largest_batch, way.longest_context, -way.operations))
    if best.name == "checkpoint":
        reason = "the model cannot be reversed" if refusal else "two 64-bit states take no less than its checkpoints"
        return f"Use checkpointing (up to {best.largest_batch} sequences): {reason}."
    other = next(way for way in ways if way.name == "checkpoint")
    return (
        f"Rebuild with {best.bits} bits: up to {best.largest_batch} sequences and {best.longest_context:,} tokens fit, "
        f"where checkpointing fits {other.largest_batch} and {other.longest_context:,}."
    )
