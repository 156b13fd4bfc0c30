"""Plans the training of a model: memory, largest batch and longest context of every way to train, and a recommendation.

Peaks are counted on a step on the meta device (`revformers.planning.step`); docs/appendix/plan-accuracy.md compares
them with measured peaks. They exclude the memory that a device's allocator, libraries and kernels keep for themselves.
Times are predictions of the roofline model, relative to storing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from revformers.errors import NotReversibleError
from revformers.planning.advice import advise
from revformers.planning.choose import candidates, choose
from revformers.planning.cost import SetupCost
from revformers.planning.devices import Machine
from revformers.planning.model_size import ModelSize, longest_readable, size_in, trained_model
from revformers.planning.prediction import with_model
from revformers.planning.search import largest_within
from revformers.planning.setups import Choices
from revformers.planning.step import host_memory, step_memory, step_operations, step_time
from revformers.planning.tiling import can_tile
from revformers.setup import CHECKPOINT, STORE, Setup, Workload

CONTEXT_UNIT = 256
"""The longest context is a multiple of this number of tokens."""

CONTEXT_TOLERANCE = 0.01
"""Largest share by which the longest context may be underestimated."""

FEW_TILES = 4
"""Number of MLP tiles with which a longer context is sought: gradients are summed tile by tile, so few are better."""

SMALLEST_TILE = 1024
"""Tokens of the smallest tile that is chosen without being asked for."""

RESERVE = 0.03
"""Share of the device's memory that steps in a chosen tile leave to what is not counted: allocator and kernels."""


@dataclass(frozen=True)
class Plan:
    """All ways to train a model on a machine.

    Attributes:
        machine: the machine.
        choices: what is compared.
        sequence_length: tokens in a sequence.
        size: weights, gradients and optimizer states, without update predictors.
        setups: what every setup costs, in the order of the table.
        chosen: the place in `setups` of the one that is recommended; None if nothing fits.
        refusal: the reason that the model cannot be reversed, or None.
        recommendation: a few sentences.
        longest_readable: tokens that the model's table of positions allows; None if any number is allowed.

    """

    machine: Machine
    choices: Choices
    sequence_length: int
    size: ModelSize
    setups: list[SetupCost]
    chosen: int | None
    refusal: str | None
    recommendation: str
    longest_readable: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan in types that JSON keeps, with sizes in bytes."""
        machine = dataclasses.asdict(self.machine)
        plan = vars(self) | {
            "choices": dataclasses.asdict(self.choices),
            "size": dataclasses.asdict(self.size),
            "setups": [row.to_dict() for row in self.setups],
        }
        del plan["machine"]
        return {"memory": machine.pop("memory"), "host_memory": machine.pop("host_memory"), **machine, **plan}


def make_plan(workload: Workload, machine: Machine, choices: Choices | None = None) -> Plan:
    """Plan the training of a model on a machine.

    Args:
        workload: the model and its training; the largest batch of its sequences is computed.
        machine: its memory limits what fits, and its speeds determine the predicted times.
        choices: what is compared.

    Raises:
        MissingPackageError: if an adapter needs the package peft and it is not installed.
        ValueError: for a sequence longer than the model's table of positions, or tiles of MLPs that cannot have them.

    """
    choices = choices or Choices()
    tokens = workload.sequence_length
    size = size_in(workload, None)
    limit = longest_readable(trained_model(workload, workload.layers), workload.longest_sequence)
    if limit is not None and tokens > limit:
        raise ValueError(f"the model has positions for {limit} tokens only, and a sequence of {tokens} was asked for.")
    refusal = _refusal(workload, choices.rebuild(0))
    costs = _Costs(workload, machine, limit)
    rows = costs.in_one_tile([costs.of(setup) for setup in (choices.ordinary if refusal else choices.setups)])
    if mixed := costs.of_budget(choices, rows):
        rows.append(mixed)
    may_be_chosen = candidates(rows, pretrained=workload.training != "full")
    chosen = choose(may_be_chosen, host_is_known=machine.host_memory is not None)
    tiled = None if chosen is None or chosen.way == STORE else costs.longest_with_tiles(chosen)
    recommendation = advise(may_be_chosen, chosen, size.total, machine, refusal, tiled, workload.training)
    place = None if chosen is None else rows.index(chosen)
    return Plan(machine, choices, tokens, size, rows, place, refusal, recommendation, limit)


def _refusal(workload: Workload, setup: Setup) -> str | None:
    """Return the reason that the model cannot be reversed, which may show only in its first forward pass, or None."""
    try:
        step_operations(workload, setup, 1, workload.sequence_length)
    except NotReversibleError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class _Costs:
    """Computes rows of a plan.

    Attributes:
        workload: the model and its training.
        machine: the machine.
        limit: the most tokens of a sequence that the model can read; None for no limit.

    """

    workload: Workload
    machine: Machine
    limit: int | None

    @property
    def tokens(self) -> int:
        """Tokens in a sequence."""
        return self.workload.sequence_length

    def room(self, setup: Setup) -> int:
        """Return the bytes that the model leaves to a step."""
        return self.machine.memory - size_in(self.workload, setup.predictors).total

    def in_one_tile(self, rows: Sequence[SetupCost]) -> list[SetupCost]:
        """Return the rows, with those in MLP tiles of which not one sequence fits the device without.

        All have the same tile, so that they can be compared: the largest in which every row fits that fits in any.
        Storing is planned without tiles: MLPs in tiles are computed twice, and what is left to store is large.
        """
        large = [
            row
            for row in rows
            if row.memory.total > self.machine.memory and row.setup.mlp_tile is None and row.setup != STORE
        ]
        if not large or not can_tile(self.workload):
            return list(rows)
        on_host = self.machine.host_memory
        tiles = [self._largest_tile(row) for row in large if on_host is None or row.host <= on_host]
        tile = min(filter(None, tiles), default=None)
        return [self.of(replace(row.setup, mlp_tile=tile)) if tile and row in large else row for row in rows]

    def of(self, setup: Setup) -> SetupCost:
        """Return the row of a setup."""
        # A run that counts the operations of a step also counts its memory, but not the reverse.
        operations, time = self._work_over_store(setup)
        one = step_memory(self.workload, setup, 1, self.tokens, fused=True)
        batch, batch_without_host = self._largest(lambda _: setup, lambda number: (number, self.tokens))
        context, context_without_host = self._longest_context(setup)
        return SetupCost(
            setup,
            memory=with_model(size_in(self.workload, setup.predictors), one.device),
            host=one.host,
            largest_batch=batch,
            host_of_largest_batch=host_memory(self.workload, setup, batch, self.tokens) if batch else 0,
            longest_context=context,
            operations=operations,
            time=time,
            limited_by_host=batch < batch_without_host or context < context_without_host,
        )

    def of_budget(self, choices: Choices, others: Sequence[SetupCost]) -> SetupCost | None:
        """Return the row of a budget that uses the memory left by rebuilding at the largest batch of checkpointing.

        Return None if a budget is useless: all activations fit, checkpointing fits nothing, or rebuilding needs more.
        """
        rows = {row.setup: row for row in others}
        store, checkpoint = (rows.get(replace(setup, mlp_tile=choices.mlp_tile)) for setup in (STORE, CHECKPOINT))
        rebuilt = rows.get(choices.rebuild(0))
        if store is None or checkpoint is None or rebuilt is None or store.largest_batch >= checkpoint.largest_batch:
            return None
        # For one sequence: the memory of a step is proportional to the batch, and so is the room for the budget.
        room = self.room(rebuilt.setup) // checkpoint.largest_batch
        least = step_memory(self.workload, rebuilt.setup, 1, self.tokens, fused=True).device
        budget = least.states + room - least.total
        while budget >= least.states:
            setup = choices.budgeted(budget)
            operations, time = self._work_over_store(setup)
            one = step_memory(self.workload, setup, 1, self.tokens, fused=True)
            if one.device.total <= room:
                return SetupCost(
                    setup,
                    memory=with_model(size_in(self.workload, setup.predictors), one.device),
                    host=0,
                    largest_batch=checkpoint.largest_batch,
                    host_of_largest_batch=0,
                    longest_context=None,
                    operations=operations,
                    time=time,
                )
            # The working set is larger than that of rebuilding alone, e.g. by a second pair of states.
            budget -= one.device.total - room
        return None

    def longest_with_tiles(self, row: SetupCost) -> tuple[int, int] | None:
        """Return the tokens of a tile and of the longest context of a row with few tiles; None without such tiles."""
        if row.setup.mlp_tile is not None or not can_tile(self.workload):
            return None
        tokens, _ = self._longest_context(row.setup, row.longest_context, FEW_TILES)
        return tokens // FEW_TILES, tokens

    def _largest_tile(self, row: SetupCost) -> int | None:
        """Return the largest tile in which one sequence fits and leaves the reserve, or None.

        Args:
            row: a row without tiles, which does not fit.

        """
        model, total = size_in(self.workload, row.setup.predictors).total, row.memory.total
        tile = 2 ** ((self.tokens - 1).bit_length() - 1)
        while tile >= SMALLEST_TILE:
            tiled = replace(row.setup, mlp_tile=tile)
            smaller = model + step_memory(self.workload, tiled, 1, self.tokens, fused=True).device.total
            if smaller <= (1 - RESERVE) * self.machine.memory:
                return tile
            if smaller > 0.99 * total:  # the peak lies elsewhere
                return None
            tile, total = tile // 2, smaller
        return None

    def _longest_context(self, setup: Setup, start: int | None = None, tiles: int = 0) -> tuple[int, int]:
        """Return the tokens of the longest sequence that fits, and those if the host had any memory.

        Args:
            setup: the way to train.
            start: the first number of tokens to try.
            tiles: number of MLP tiles, instead of those of the setup; 0 leaves these.

        """

        def tokens_of(units: int) -> int:
            return CONTEXT_UNIT * units if self.limit is None else min(CONTEXT_UNIT * units, self.limit)

        units, without_host = self._largest(
            lambda number: replace(setup, mlp_tile=-(-tokens_of(number) // tiles)) if tiles else setup,
            lambda number: (1, tokens_of(number)),
            max(1, (start or self.tokens) // CONTEXT_UNIT),
            CONTEXT_TOLERANCE,
        )
        return tokens_of(units), tokens_of(without_host)

    def _largest(
        self,
        setup: Callable[[int], Setup],
        size: Callable[[int], tuple[int, int]],
        start: int = 1,
        tolerance: float = 0.0,
    ) -> tuple[int, int]:
        """Return the largest number for which a step fits, and the one that would fit if the host had any memory.

        Args:
            setup: returns the way to train for a number.
            size: returns the sequences of a step and their tokens for a number.
            start: the first number to try.
            tolerance: share by which the returned number may be too small.

        """
        on_device = largest_within(
            lambda number: step_memory(self.workload, setup(number), *size(number), fused=True).device.total,
            self.room(setup(start)),
            start,
            tolerance,
        )
        if self.machine.host_memory is None:
            return on_device, on_device
        on_host = largest_within(
            lambda number: host_memory(self.workload, setup(number), *size(number)), self.machine.host_memory, start
        )
        return min(on_device, on_host), on_device

    def _work_over_store(self, setup: Setup) -> tuple[float, float]:
        """Return the floating-point operations and the predicted time of a step, relative to storing."""

        def work(setup: Setup) -> tuple[float, float]:
            step = self.workload, setup, 1, self.tokens
            return step_operations(*step), step_time(*step, self.machine.device)

        (operations, time), (all_operations, whole_time) = work(setup), work(STORE)
        return operations / all_operations, time / whole_time
