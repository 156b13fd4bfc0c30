"""Chooses, for a model and a batch, the settings with the shortest step that fits a memory."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from revformers.activations import ActivationPolicy, Budget, Checkpoint, Offload, Rebuild, Store
from revformers.byte_size import parse_size, size_in_words
from revformers.dynamics.base import Dynamics
from revformers.errors import UserError
from revformers.head.loss import apply_head, head_loss
from revformers.models.attach import check, set_activations
from revformers.models.discovery import unwrap
from revformers.models.identity import Identity
from revformers.models.parts import require_reversible
from revformers.models.tiles import mlps_for_tiles, set_mlp_tiles
from revformers.planning.devices import DEVICES, Machine, speeds_of
from revformers.planning.model_size import ModelSize, model_size
from revformers.planning.model_workload import workload_of
from revformers.planning.prediction import Prediction, predict
from revformers.reversible import make_reversible
from revformers.setup import Optimizer, Setup, Workload
from revformers.training.fitted import Fitted, Settings

SHARES = (4, 16)
"""Numbers of tiles into which the tokens of a batch are cut."""

SMALLEST_TILE = 256
"""Tokens below which a tile's products no longer fill a device."""

REFINEMENTS = 4
"""How many budgets are tried in search of the largest that fits."""


def fit_to_memory(
    model: nn.Module,
    batch: Mapping[str, Any],
    memory: int | str,
    *,
    optimizer: Optimizer = "adamw",
    host_memory: int | str = 0,
    device: str | None = None,
    may_step_by_branch: bool = False,
    may_step_in_backward: bool = False,
) -> Fitted:
    """Give a reversible model the settings with the shortest step that fits a memory, in place.

    The activation policy, the tiles of the MLPs and a chunked head loss are chosen together, by the count of
    `revformers plan`, without running the model. They replace the model's own policy and tiles; a head loss that the
    model has stays. The network stays the same, unless `may_step_by_branch` is set.

    Args:
        model: a reversible causal language model, or a PEFT model around one.
        batch: a batch as the model gets it, of which ``input_ids``, int64[batch, tokens], gives the shape.
        memory: memory of the device for weights, gradients, optimizer states and the step, in bytes or as a size such
            as ``"20GiB"``. The allocator, libraries and kernels take memory of their own, so leave a tenth or so.
        optimizer: the optimizer, for the size of its states.
        host_memory: memory of the host that may hold inputs of layers; 0 for none, so that nothing is offloaded.
            Without a CUDA device nothing is offloaded either.
        device: the name of the GPU whose data sheet gives the times (`revformers plan --help`); None for that of the
            model, or an H100 if it is not known.
        may_step_by_branch: whether the recurrence may be changed to step by branch, which is another network: for
            training from scratch. The changed model has no provenance, and its layers are no longer compiled.
        may_step_in_backward: whether the optimizer may step inside the backward pass, which the caller then switches
            on (`training.step_in_backward`). It does so only if nothing else fits.

    Returns:
        The choice, whose text says what was chosen, and what else there was.

    Raises:
        UserError: if nothing fits; names the least memory that a step needs.
        ValueError: if the model is not reversible, is not one that can be planned (no causal language model, several
            adapters, a head loss with a teacher), nothing trains, or an argument is not valid.

    """
    if device is not None and device not in DEVICES:
        raise ValueError(f"There is no data sheet of {device!r}; choose one of {', '.join(DEVICES)}.")
    loss = head_loss(model)
    if loss is not None and loss.teacher is not None:
        raise ValueError("A step with a teacher cannot be planned; choose the settings of a distillation yourself.")
    on_host, host_remark = _host_memory(host_memory, next(model.parameters()).device)
    speeds, speed_remark = (DEVICES[device], None) if device else speeds_of(next(model.parameters()).device)
    machine = Machine(speeds, _size(memory), on_host)
    workload, remarks = workload_of(model, batch, optimizer)
    size = model_size(model, optimizer)
    search = _Search(model, workload, size, machine)
    dynamics, branch_remark = _dynamics(model, may_step_by_branch)
    tiles, tile_remark = _tiles(model, workload)
    ways = list(itertools.product(dynamics, tiles))
    rows = [row for way in ways for row in search.rows(*way, in_backward=False)]
    fitting = [row for row in rows if row.fits(machine.memory, on_host)]
    if not fitting and may_step_in_backward:
        rows += [row for way in ways for row in search.rows(*way, in_backward=True)]
        fitting = [row for row in rows if row.fits(machine.memory, on_host)]
    if not fitting:
        least = min(rows, key=lambda row: row.memory)
        held = size.total - (size.gradients if least.optimizer_in_backward else 0)
        raise UserError(
            f"No step on a batch of {workload.batch_size} x {workload.sequence_length} tokens fits "
            f"{size_in_words(machine.memory)}: the least, {least}, takes {size_in_words(least.memory)}, of which "
            f"{size_in_words(held)} are {'weights' if least.optimizer_in_backward else 'weights, gradients'} and "
            f"optimizer states. Take a smaller batch, more memory, an adapter, or an optimizer with smaller states."
        )
    chosen = min(fitting, key=_order)
    if loss is None:
        apply_head(model, "auto")
    if chosen.dynamics != require_reversible(model).dynamics:
        make_reversible(model, chosen.dynamics, chosen.activations, require_reversible(model).states)
    set_activations(model, chosen.activations)
    set_mlp_tiles(model, chosen.mlp_tile)
    others = tuple(row for row in sorted(rows, key=_order) if row is not chosen and not _is_dominated(row, rows))
    chunk_remark = "The loss is counted in chunks of the usual size." if loss is not None and loss.chunk else None
    further = filter(None, (chunk_remark, tile_remark, branch_remark, host_remark, speed_remark))
    return Fitted(chosen, others, machine.memory, on_host, (*remarks, *further))


def _order(row: Settings) -> tuple[float, int]:
    return row.seconds, row.memory


def _is_dominated(row: Settings, rows: Sequence[Settings]) -> bool:
    """Say whether another row takes no more of anything, and less of something."""
    own = row.seconds, row.memory, row.host
    return any(
        all(theirs <= mine for theirs, mine in zip(others, own, strict=True)) and others != own
        for others in ((other.seconds, other.memory, other.host) for other in rows)
    )


@dataclass(frozen=True)
class _Search:
    """Predicts settings of one model on one machine."""

    model: nn.Module
    workload: Workload
    size: ModelSize
    machine: Machine

    def rows(self, dynamics: Dynamics, tile: int | None, *, in_backward: bool) -> Iterator[Settings]:
        """Yield the settings of every policy, and of a budget where storing does not fit."""
        recompute: ActivationPolicy = Rebuild() if dynamics.reversible else Checkpoint()
        stored, least = (self._row(dynamics, policy, tile, in_backward) for policy in (Store(), recompute))
        yield stored
        yield least
        if dynamics.reversible:
            yield self._row(dynamics, Checkpoint(), tile, in_backward)
        if self.machine.host_memory:
            yield self._row(dynamics, Offload(), tile, in_backward)
        if least.memory < self.machine.memory < stored.memory:
            budgeted = self._largest_budget(dynamics, tile, in_backward, least, stored)
            if budgeted:
                yield budgeted

    def _largest_budget(
        self, dynamics: Dynamics, tile: int | None, in_backward: bool, least: Settings, stored: Settings
    ) -> Settings | None:
        """Return the settings of the largest budget that fits, between those that keep the least and everything."""
        how = "rebuild" if dynamics.reversible else "checkpoint"
        kept = self._predict(dynamics, least.activations, tile).memory
        low = kept.states + kept.side_information + (0 if dynamics.reversible else kept.activations)
        high = low + stored.memory - least.memory
        layer = (high - low) / require_reversible(self.model).number_of_layers
        budget, found = low + self.machine.memory - least.memory, None
        for _ in range(REFINEMENTS):
            row = self._row(dynamics, Budget(budget, how), tile, in_backward)  # type: ignore[arg-type]
            left = self.machine.memory - row.memory
            if left >= 0:
                found, low = row, budget
            else:
                high = budget
            # What is kept and the working set are no sum: a kept layer is not computed again, and layers are whole.
            budget = budget + left if low < budget + left < high else (low + high) // 2
            if high - low <= layer:
                break
        return found

    def _row(self, dynamics: Dynamics, policy: ActivationPolicy, tile: int | None, in_backward: bool) -> Settings:
        found = self._predict(dynamics, policy, tile)
        step = dataclasses.replace(found.memory, weights=0, gradients=0, optimizer=0).total
        # A gradient that is used at once was counted with the step that makes it.
        gradients = 0 if in_backward else self.size.gradients
        total = step + self.size.weights + gradients + self.size.optimizer
        return Settings(policy, dynamics, tile, in_backward, total, found.host, found.seconds)

    def _predict(self, dynamics: Dynamics, policy: ActivationPolicy, tile: int | None) -> Prediction:
        stack = require_reversible(self.model)
        setup = Setup(dynamics, policy, states=stack.states, predictors=stack.predictor_form, mlp_tile=tile)
        return predict(self.workload, setup, self.machine)


def _dynamics(model: nn.Module, may_step_by_branch: bool) -> tuple[Sequence[Dynamics], str | None]:
    """Return the recurrences to compare, and a remark if the steps by branch that may be taken cannot be."""
    stack = require_reversible(model)
    own = stack.dynamics
    if not may_step_by_branch or own.granularity == "branch":
        return [own], None
    if stack.predictor_form is not None:
        return [own], "Steps by branch were not compared: the model has update predictors, which step by block."
    try:
        by_branch = dataclasses.replace(own, granularity="branch")
        check(unwrap(model), Identity(dynamics=by_branch, activations=Store(), states=stack.states))
    except ValueError as error:  # also NotReversibleError
        return [own], f"Steps by branch were not compared: {error}"
    return [own, by_branch], None


def _tiles(model: nn.Module, workload: Workload) -> tuple[Sequence[int | None], str | None]:
    """Return the tiles to compare, and a remark if the MLPs cannot be evaluated in tiles."""
    tokens = workload.batch_size * workload.sequence_length
    tiles = [tokens // share for share in SHARES if tokens // share >= SMALLEST_TILE]
    if not tiles:
        return [None], None
    try:
        mlps_for_tiles(model)
    except ValueError as error:  # also NotReversibleError
        return [None], f"Tiles were not compared: {error}"
    return [None, *tiles], None


def _host_memory(size: int | str, device: torch.device) -> tuple[int, str | None]:
    """Return the memory of the host for inputs of layers, and a remark if nothing can be offloaded from a device."""
    if size in (0, "0"):
        return 0, None
    size = _size(size)
    if device.type not in ("cuda", "meta"):
        return 0, f"Nothing is offloaded: the model is on a {device.type.upper()}, and only CUDA devices gain memory."
    return size, None


def _size(size: int | str) -> int:
    if isinstance(size, bool) or not isinstance(size, int | str) or (isinstance(size, int) and size < 1):
        raise ValueError(f'A memory is a number of bytes or a size such as "20GiB", not {size!r}.')
    return parse_size(size) if isinstance(size, str) else size
