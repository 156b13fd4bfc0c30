"""Chooses, for a model and a batch, the settings with the shortest step that fits a memory."""

import copy
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from revformers.activations import ActivationPolicy, Budget, Checkpoint, Offload, Rebuild, Store
from revformers.byte_size import parse_size, size_in_words
from revformers.checkpoints.model_config import unmark_config
from revformers.dynamics.base import Dynamics
from revformers.errors import UserError, counted
from revformers.head.loss import apply_head
from revformers.models.attach import set_activations
from revformers.models.batch import inputs_of
from revformers.models.discovery import unwrap
from revformers.models.parts import require_reversible
from revformers.models.tiles import set_mlp_tiles
from revformers.planning.devices import DEVICES, Device, Machine
from revformers.planning.model_size import ModelSize, model_size
from revformers.planning.prediction import Prediction, predict
from revformers.reversible import make_reversible
from revformers.setup import Optimizer, Setup, Training, Workload

SHARES = (4, 16)
"""Numbers of tiles into which the tokens of a batch are cut."""

SMALLEST_TILE = 256
"""Tokens below which a tile's products no longer fill a device."""

REFINEMENTS = 4
"""How often a budget is lowered whose step takes more than was left for it."""


@dataclass(frozen=True)
class Settings:
    """One way to train, and what it is predicted to take.

    Attributes:
        activations: the activation policy.
        dynamics: the recurrence.
        mlp_tile: tokens of the batch that an MLP evaluates at a time; None for all at once.
        optimizer_in_backward: whether the optimizer steps inside the backward pass.
        memory: the peak of the device's memory with weights, gradients and optimizer states, bytes.
        host: memory of the host that the step holds, bytes.
        seconds: time of a step by the roofline model, which serves to compare settings.

    """

    activations: ActivationPolicy
    dynamics: Dynamics
    mlp_tile: int | None
    optimizer_in_backward: bool
    memory: int
    host: int
    seconds: float

    def fits(self, memory: int, host_memory: int) -> bool:
        """Say whether the step fits these bytes of the device and of the host."""
        return self.memory <= memory and self.host <= host_memory

    def __str__(self) -> str:
        """Return the settings in words."""
        policy = self.activations
        parts = [f"budget of {size_in_words(int(policy.size))}" if isinstance(policy, Budget) else str(policy)]
        if self.dynamics.granularity == "branch":
            parts.append("steps by branch")
        if self.mlp_tile is not None:
            parts.append(f"MLPs in tiles of {counted(self.mlp_tile, 'token')}")
        if self.optimizer_in_backward:
            parts.append("the optimizer inside the backward pass")
        return ", ".join(parts)


@dataclass(frozen=True)
class Fitted:
    """What `fit_to_memory` chose.

    Attributes:
        chosen: the settings that the model has now.
        others: what else was predicted and takes less time, memory or host memory than all that is shorter, the
            shortest steps first.
        memory: the memory to fit, bytes.
        host_memory: the host's memory for activations, bytes.
        remarks: what the prediction leaves out of account.

    """

    chosen: Settings
    others: tuple[Settings, ...]
    memory: int
    host_memory: int
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """Return the choice and the reason as a few lines of text."""
        lines = [
            f"{self.chosen}: a predicted peak of {size_in_words(self.chosen.memory)} of {size_in_words(self.memory)}"
        ]
        if self.chosen.optimizer_in_backward:
            lines.append(
                "Call revformers.training.step_in_backward.step_in_backward(optimizer), and neither accumulate nor "
                "clip gradients."
            )
        for row in self.others:
            verdict = "" if row.fits(self.memory, self.host_memory) else ", does not fit"
            host = f" and {size_in_words(row.host)} of the host" if row.host else ""
            lines.append(
                f"  {row}: {row.seconds / self.chosen.seconds:.2f} times as long, {size_in_words(row.memory)}{host}"
                f"{verdict}"
            )
        return "\n".join([*lines, *self.remarks])


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
    `revformers plan`, without running the model. The network stays the same, unless
    `may_step_by_branch` is set.

    Args:
        model: a reversible model, or a PEFT model around one.
        batch: a batch as the model gets it, of which ``input_ids``, int64[batch, tokens], gives the shape.
        memory: memory of the device for weights, gradients, optimizer states and the step, in bytes or as a size such
            as ``"20GiB"``. The allocator, libraries and kernels take memory of their own, so leave a tenth or so.
        optimizer: the optimizer, for the size of its states.
        host_memory: memory of the host that may hold inputs of layers; 0 for none, so that nothing is offloaded.
        device: the name of the GPU whose data sheet gives the times (`revformers plan --help`); None for that of the
            model, or an H100 if it is not known.
        may_step_by_branch: whether the recurrence may be changed to step by branch, which is another network: for
            training from scratch.
        may_step_in_backward: whether the optimizer may step inside the backward pass, which the caller then switches
            on (`training.step_in_backward`). It does so only if nothing else fits.

    Returns:
        The choice, whose text says what was chosen, and what else there was.

    Raises:
        UserError: if nothing fits; names the least memory that a step needs.
        ValueError: if the model is not reversible, is not one that can be planned, or an argument is not valid.

    """
    speeds, remark = _device(model, device)
    machine = Machine(speeds, _size(memory), _size(host_memory) if host_memory else 0)
    workload, remarks = _workload(model, batch, optimizer)
    size = model_size(model, optimizer)
    search = _Search(model, workload, size, machine)
    ways = list(itertools.product(_dynamics(model, may_step_by_branch), _tiles(workload)))
    rows = [row for way in ways for row in search.rows(*way, in_backward=False)]
    fitting = [row for row in rows if row.fits(machine.memory, machine.host_memory or 0)]
    if not fitting and may_step_in_backward:
        rows += [row for way in ways for row in search.rows(*way, in_backward=True)]
        fitting = [row for row in rows if row.fits(machine.memory, machine.host_memory or 0)]
    if not fitting:
        least = min(rows, key=lambda row: row.memory)
        raise UserError(
            f"No step on a batch of {workload.batch_size} x {workload.sequence_length} tokens fits "
            f"{size_in_words(machine.memory)}: the least, {least}, takes {size_in_words(least.memory)}, of which "
            f"{size_in_words(size.total)} are weights, gradients and optimizer states. Take a smaller batch, more "
            f"memory, an adapter, or an optimizer with smaller states."
        )
    chosen = min(fitting, key=_order)
    if chosen.dynamics != require_reversible(model).dynamics:
        make_reversible(model, chosen.dynamics, chosen.activations, require_reversible(model).states)
    set_activations(model, chosen.activations)
    set_mlp_tiles(model, chosen.mlp_tile)
    apply_head(model, "auto")
    others = tuple(row for row in sorted(rows, key=_order) if row is not chosen and not _is_dominated(row, rows))
    return Fitted(chosen, others, machine.memory, machine.host_memory or 0, (*remarks, *filter(None, [remark])))


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
        if least.memory <= self.machine.memory < stored.memory:
            yield from self._budget(dynamics, tile, in_backward, least)

    def _budget(self, dynamics: Dynamics, tile: int | None, in_backward: bool, least: Settings) -> Iterator[Settings]:
        """Yield the settings of the largest budget that fits, starting from what `least` leaves."""
        how = "rebuild" if dynamics.reversible else "checkpoint"
        kept = self._predict(dynamics, least.activations, tile).memory
        smallest = kept.states + kept.side_information + (0 if dynamics.reversible else kept.activations)
        budget = smallest + self.machine.memory - least.memory
        for _ in range(REFINEMENTS):
            if budget <= smallest:
                return
            row = self._row(dynamics, Budget(budget, how), tile, in_backward)  # type: ignore[arg-type]
            if row.memory <= self.machine.memory:
                yield row
                return
            # The working set is larger than that of the least, e.g. by a second pair of states.
            budget -= row.memory - self.machine.memory

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


def _workload(model: nn.Module, batch: Mapping[str, Any], optimizer: Optimizer) -> tuple[Workload, tuple[str, ...]]:
    """Return the training of `model` on batches of this shape, as the planner describes it, and what that leaves out.

    Raises:
        ValueError: if the planner has no description of it.

    """
    ids = inputs_of(batch, torch.device("meta")).get("input_ids")
    if ids is None or ids.dim() != 2 or not ids.numel():
        raise ValueError('A batch holds "input_ids", int64[batch, tokens], whose shape is planned for.')
    dtype = next(value.dtype for value in unwrap(model).parameters() if value.is_floating_point())
    if dtype not in (torch.float32, torch.bfloat16) or torch.is_autocast_enabled(next(model.parameters()).device.type):
        raise ValueError(
            f"Only steps in float32 or in bfloat16 without autocast can be planned, not in "
            f"{str(dtype).removeprefix('torch.')}; load the model with dtype=torch.bfloat16."
        )
    trained = [parameter.requires_grad for parameter in model.parameters()]
    adapters = list(getattr(model, "peft_config", {}).values())
    remarks: list[str] = []
    rank = next((adapter.r for adapter in adapters if getattr(adapter, "r", None)), 16)
    if adapters:
        remarks.append(f"Activations and time are those of LoRA of rank {rank} on all linear layers.")
    if not adapters and not all(trained):
        remarks.append("The time and the activations are those of training all weights, also the frozen ones.")
    config = unwrap(model).config
    workload = Workload(
        _ordinary(config),
        batch_size=ids.shape[0],
        sequence_length=ids.shape[1],
        precision="float32" if dtype == torch.float32 else "bfloat16",
        head="auto",
        optimizer=optimizer,
        training=_training(model) if adapters else "full",
        rank=rank,
    )
    return workload, tuple(remarks)


def _ordinary(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of the configuration of a reversible model for the ordinary network."""
    result = copy.deepcopy(config)
    unmark_config(result)
    return result


def _training(model: nn.Module) -> Training:
    return "qlora" if any(type(value).__name__ == "Params4bit" for value in model.parameters()) else "lora"


def _dynamics(model: nn.Module, may_step_by_branch: bool) -> Sequence[Dynamics]:
    own = require_reversible(model).dynamics
    if not may_step_by_branch or own.granularity == "branch":
        return [own]
    return [own, dataclasses.replace(own, granularity="branch")]


def _tiles(workload: Workload) -> list[int | None]:
    tokens = workload.batch_size * workload.sequence_length
    return [None, *(tokens // share for share in SHARES if tokens // share >= SMALLEST_TILE)]


def _size(size: int | str) -> int:
    if isinstance(size, bool) or not isinstance(size, int | str) or (isinstance(size, int) and size < 1):
        raise ValueError(f'A memory is a number of bytes or a size such as "20GiB", not {size!r}.')
    return parse_size(size) if isinstance(size, str) else size


def _device(model: nn.Module, name: str | None) -> tuple[Device, str | None]:
    """Return the speeds of the GPU called `name`, or of the model's own; and a remark where an H100 stands for it."""
    if name is not None and name not in DEVICES:
        raise ValueError(f"There is no data sheet of {name!r}; choose one of {', '.join(DEVICES)}.")
    if name is not None:
        return DEVICES[name], None
    device = next(model.parameters()).device
    full = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a {device.type.upper()}"
    words = re.findall(r"[a-z0-9]+", full.lower().replace("rtx ", "rtx"))
    name = next((known for known in DEVICES if known in words), None)
    if name is None:
        return DEVICES[
            "h100"
        ], f"Times are those of an H100, as there is no data sheet of {full}; name one with device=."
    return DEVICES[name], None
