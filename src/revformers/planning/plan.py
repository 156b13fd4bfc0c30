"""Plans the training of a model: memory, largest batch and longest context of every way to train, and a recommendation.

Peaks are counted on a step on the meta device (`revformers.planning.step`); docs/appendix/plan-accuracy.md compares
them with measured peaks. They exclude the memory that a device's allocator, libraries and kernels keep for themselves.
Times are predictions of the roofline model, relative to storing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from revformers.errors import NotReversibleError
from revformers.planning.cost import SetupCost
from revformers.planning.devices import Device
from revformers.planning.model_size import ModelSize, longest_readable, model_size, trained_model
from revformers.planning.prediction import with_model
from revformers.planning.recommend import recommend
from revformers.planning.search import largest_within
from revformers.planning.setups import budgeted, rebuild, setups
from revformers.planning.step import step_memory, step_operations, step_time
from revformers.setup import CHECKPOINT, STORE, Setup, Workload

CONTEXT_UNIT = 256
"""The longest context is a multiple of this number of tokens."""

CONTEXT_TOLERANCE = 0.01
"""Largest share by which the longest context may be underestimated."""


@dataclass(frozen=True)
class Plan:
    """All ways to train a model within a memory budget.

    Attributes:
        memory: the budget in bytes.
        sequence_length: tokens in a sequence.
        size: weights, gradients and optimizer states.
        setups: what every setup costs, in the order of the table.
        refusal: the reason that the model cannot be reversed, or None.
        recommendation: a few sentences.
        longest_readable: tokens that the model's table of positions allows; None if any number is allowed.

    """

    memory: int
    sequence_length: int
    size: ModelSize
    setups: list[SetupCost]
    refusal: str | None
    recommendation: str
    longest_readable: int | None


def make_plan(workload: Workload, memory: int, device: Device, bits: Sequence[int] = (0, 2, 4)) -> Plan:
    """Plan the training of a model within `memory` bytes.

    Args:
        workload: the model and its training; the largest batch of its sequences is computed.
        memory: memory of the device, bytes.
        device: the device whose speeds determine the predicted times.
        bits: budgets of side information, each from 0 to 8 bits per element and layer.

    Raises:
        MissingPackageError: if an adapter needs the package peft and it is not installed.
        ValueError: for a sequence longer than the model's table of positions.

    """
    tokens = workload.sequence_length
    model = trained_model(workload, workload.layers)
    size, limit = model_size(model, workload.optimizer), longest_readable(model, workload.longest_sequence)
    if limit is not None and tokens > limit:
        raise ValueError(f"the model has positions for {limit} tokens only, and a sequence of {tokens} was asked for.")
    choices, refusal = setups(bits), _refusal(workload, tokens)
    if refusal:
        choices = [setup for setup in choices if setup.ordinary]
    rows = [_cost(workload, setup, size, memory, tokens, device, limit) for setup in choices]
    if mixed := _budgeted_cost(workload, size, memory, tokens, device, rows):
        rows.append(mixed)
    recommendation = recommend(rows, size.total, memory, refusal, pretrained=workload.training != "full")
    return Plan(memory, tokens, size, rows, refusal, recommendation, limit)


def _refusal(workload: Workload, tokens: int) -> str | None:
    """Return the reason that the model cannot be reversed, which may show only in its first forward pass, or None."""
    try:
        step_operations(workload, rebuild(0), 1, tokens)
    except NotReversibleError as error:
        return str(error)
    return None


def _cost(
    workload: Workload, setup: Setup, size: ModelSize, memory: int, tokens: int, device: Device, limit: int | None
) -> SetupCost:
    def tokens_of(units: int) -> int:
        return CONTEXT_UNIT * units if limit is None else min(CONTEXT_UNIT * units, limit)

    room = memory - size.total
    # A run that counts the operations of a step also counts its memory, but not the reverse.
    step_operations(workload, setup, 1, tokens)
    one = step_memory(workload, setup, 1, tokens, fused=True)
    batch = largest_within(lambda number: step_memory(workload, setup, number, tokens, fused=True).device.total, room)
    units = largest_within(
        lambda number: step_memory(workload, setup, 1, tokens_of(number), fused=True).device.total,
        room,
        start=max(1, tokens // CONTEXT_UNIT),
        tolerance=CONTEXT_TOLERANCE,
    )
    return SetupCost(
        setup,
        with_model(size, one.device),
        one.host,
        batch,
        step_memory(workload, setup, batch, tokens, fused=True).host if batch else 0,
        tokens_of(units),
        *_work_over_store(workload, setup, tokens, device),
    )


def _budgeted_cost(
    workload: Workload, size: ModelSize, memory: int, tokens: int, device: Device, others: Sequence[SetupCost]
) -> SetupCost | None:
    """Return the row of a budget that uses the memory left by rebuilding at the largest batch of checkpointing.

    Return None if a budget is useless: all activations fit, checkpointing fits nothing, or rebuilding needs more.
    """
    rows = {row.setup: row for row in others}
    store, checkpoint, rebuilt = (rows.get(setup) for setup in (STORE, CHECKPOINT, rebuild(0)))
    if store is None or checkpoint is None or rebuilt is None or store.largest_batch >= checkpoint.largest_batch:
        return None
    # For one sequence: the memory of a step is proportional to the batch, and so is the room for the budget.
    room = (memory - size.total) // checkpoint.largest_batch
    least = step_memory(workload, rebuild(0), 1, tokens, fused=True).device
    budget = least.states + room - least.total
    while budget >= least.states:
        setup = budgeted(budget)
        work = _work_over_store(workload, setup, tokens, device)
        one = step_memory(workload, setup, 1, tokens, fused=True)
        if one.device.total <= room:
            batch, context = checkpoint.largest_batch, rebuilt.longest_context
            return SetupCost(setup, with_model(size, one.device), 0, batch, 0, context, *work)
        # The working set is larger than that of rebuilding alone, e.g. by a second pair of states.
        budget -= one.device.total - room
    return None


def _work_over_store(workload: Workload, setup: Setup, tokens: int, device: Device) -> tuple[float, float]:
    """Return the floating-point operations and the predicted time of a step, relative to storing."""
    return (
        step_operations(workload, setup, 1, tokens) / step_operations(workload, STORE, 1, tokens),
        step_time(workload, setup, 1, tokens, device) / step_time(workload, STORE, 1, tokens, device),
    )
