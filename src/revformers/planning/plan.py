"""The plan: what every way of training a model takes, the largest batch and the longest context, and which to choose.

Peaks are counted on a real step without numbers (`revformers.planning.step`); docs/appendix/plan-accuracy.md compares
them with measured ones. They leave out what a device's allocator, libraries and kernels keep for themselves. Times are
predictions of the roofline model, relative to storing.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from revformers.errors import NotReversibleError
from revformers.planning.devices import Device
from revformers.planning.methods import STORE, Method, budgeted, methods, rebuild
from revformers.planning.model_size import ModelSize, model_size
from revformers.planning.recommend import recommend
from revformers.planning.search import largest_within
from revformers.planning.step import Workload, step_memory, step_operations, step_time
from revformers.planning.timeline import MemoryByCategory

CONTEXT_UNIT = 256
"""Tokens of which the longest context is a multiple."""

CONTEXT_TOLERANCE = 0.01
"""By which share the longest context may be too short."""


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        name: "store", "checkpoint", "offload", "rebuild" or "budget".
        bits: side information an element a layer, of "rebuild" and "budget".
        memory: of a step of one sequence, bytes by category.
        host: what lies in host memory meanwhile, bytes.
        largest_batch: sequences that fit; 0 where not one does.
        host_of_largest_batch: bytes.
        longest_context: tokens of a single sequence that fit, a multiple of 256, found to one percent.
        operations: floating-point operations of a step, relative to "store".
        time: of a step as predicted, relative to "store".

    """

    name: str
    bits: int | None
    memory: MemoryByCategory
    host: int
    largest_batch: int
    host_of_largest_batch: int
    longest_context: int
    operations: float
    time: float

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


def make_plan(
    workload: Workload, memory: int, sequence_length: int, device: Device, bits: Sequence[int] = (0, 2, 4)
) -> Plan:
    """Plan the training of a model within `memory` bytes.

    Args:
        workload: what is trained.
        memory: of the device, bytes.
        sequence_length: tokens of a sequence.
        device: whose speeds the predicted times are for.
        bits: budgets of side information, each from 0 to 8 bits an element a layer.

    Raises:
        MissingPackageError: for an adapter, without the package peft.

    """
    size = model_size(workload.build(workload.layers), workload.optimizer)
    choices, refusal = methods(bits), _refusal(workload, sequence_length)
    if refusal:
        choices = [method for method in choices if not method.reversible]
    ways = [_way(workload, method, size, memory, sequence_length, device) for method in choices]
    if mixed := _budgeted_way(workload, size, memory, sequence_length, device, ways):
        ways.append(mixed)
    recommendation = recommend(ways, size.total, memory, refusal)
    return Plan(memory, sequence_length, size, ways, refusal, recommendation)


def with_model(size: ModelSize, step: MemoryByCategory) -> MemoryByCategory:
    """Return the memory of a step together with that of the model that it trains."""
    return dataclasses.replace(step, weights=size.weights, gradients=size.gradients, optimizer=size.optimizer)


def _refusal(workload: Workload, tokens: int) -> str | None:
    """Return why the model cannot be reversed, which some show in their first forward pass only, or nothing."""
    try:
        step_operations(workload, rebuild(0), tokens)
    except NotReversibleError as error:
        return str(error)
    return None


def _way(workload: Workload, method: Method, size: ModelSize, memory: int, tokens: int, device: Device) -> Way:
    room = memory - size.total
    # The runs for the operations of a step tell its memory as well; those for its memory tell nothing else.
    step_operations(workload, method, tokens)
    one = step_memory(workload, method, 1, tokens)
    batch = largest_within(lambda number: step_memory(workload, method, number, tokens).device.total, room)
    units = largest_within(
        lambda number: step_memory(workload, method, 1, CONTEXT_UNIT * number).device.total,
        room,
        start=max(1, tokens // CONTEXT_UNIT),
        tolerance=CONTEXT_TOLERANCE,
    )
    return Way(
        method.name,
        method.bits,
        with_model(size, one.device),
        one.host,
        batch,
        step_memory(workload, method, max(1, batch), tokens).host if batch else 0,
        CONTEXT_UNIT * units,
        *_work_over_store(workload, method, tokens, device, one.host),
    )


def _budgeted_way(
    workload: Workload, size: ModelSize, memory: int, tokens: int, device: Device, ways: Sequence[Way]
) -> Way | None:
    """Return rebuilding that spends what it leaves of the memory, at the largest batch of checkpointing.

    None where there is nothing to gain or to spend: all that is stored fits, checkpointing fits nothing, or rebuilding
    needs more.
    """
    by_name = {(way.name, way.bits): way for way in ways}
    store, checkpoint, rebuilt = (by_name.get(key) for key in (("store", None), ("checkpoint", None), ("rebuild", 0)))
    if store is None or checkpoint is None or rebuilt is None or store.largest_batch >= checkpoint.largest_batch:
        return None
    # Of one sequence: what a step takes grows with the batch in proportion, and so does what the budget has room for.
    room = (memory - size.total) // checkpoint.largest_batch
    least = step_memory(workload, rebuild(0), 1, tokens).device
    budget = least.states + room - least.total
    while budget >= least.states:
        method = budgeted(budget, workload.layers)
        work = _work_over_store(workload, method, tokens, device, 0)
        one = step_memory(workload, method, 1, tokens)
        if one.device.total <= room:
            batch, context = checkpoint.largest_batch, rebuilt.longest_context
            return Way(method.name, method.bits, with_model(size, one.device), 0, batch, 0, context, *work)
        # The working set is larger than that of rebuilding alone, by a second pair of states for one.
        budget -= one.device.total - room
    return None


def _work_over_store(workload: Workload, method: Method, tokens: int, device: Device, host: int) -> tuple[float, float]:
    """Return the floating-point operations and the predicted time of a step, relative to storing."""
    operations = device.operations(workload.dtype)
    per_byte = operations / device.memory
    # Copies to the host and back wait for the computation and it for them, as PyTorch makes them.
    copies = 2 * host * operations / device.link
    return (
        step_operations(workload, method, tokens) / step_operations(workload, STORE, tokens),
        (step_time(workload, method, tokens, per_byte) + copies) / step_time(workload, STORE, tokens, per_byte),
    )
