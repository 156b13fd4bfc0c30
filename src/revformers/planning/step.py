"""Peak memory and operations of one training step of any depth, batch and length, computed on the meta device.

The step runs at two depths, and the difference per layer is extrapolated to the model's depth. This assumes that later
layers are like the first ones. In a long batch only the first tokens count in a chunked loss; this leaves out the other
tokens' share of two tensors of the stream's size, less than a percent of the memory of the layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from revformers.activations import Checkpoint
from revformers.planning.meta import without_numbers
from revformers.planning.meter import timeline_of
from revformers.planning.model_size import trained_model
from revformers.planning.timeline import CATEGORIES, MemoryByCategory, Timeline, between
from revformers.planning.work import Work, work_of
from revformers.setup import STORE, Setup, Workload

COUNTED = 16384
"""Most tokens of a batch that count in a chunked loss, which has only one chunk in memory at a time."""

ORDINARY_STEADY_FROM = 2
"""Depth from which every further layer of the ordinary network adds the same memory."""


@dataclass(frozen=True)
class StepMemory:
    """The peak memory of one step.

    Attributes:
        device: bytes by category, without weights, gradients and optimizer states.
        host: bytes in host memory.

    """

    device: MemoryByCategory
    host: int = 0


def step_memory(workload: Workload, setup: Setup, batch: int, tokens: int) -> StepMemory:
    """Return the memory of one step without weights, gradients and optimizer states.

    Gradients count with the model because they stay in memory when steps accumulate them.

    Args:
        workload: the model and its training.
        setup: the way to train.
        batch: number of sequences.
        tokens: number of tokens in a sequence.

    """

    def part(name: str) -> int:
        return max(0, round(_over_depth(workload, setup, lambda depth: run(depth)[name])))

    def run(depth: int) -> dict[str, int]:
        return _memory(workload, _runs_as(setup), depth, batch, tokens)

    whole = {name: part(name) for name in CATEGORIES}
    host = 0
    if setup.activations.on_host:
        # The input of the first layer was made before the layers and counts as other. It stands for the one input of a
        # layer that is on the device at a time.
        host = whole["activations"] * workload.layers // max(1, workload.layers - 1)
        whole["activations"] = 0
    return StepMemory(MemoryByCategory(**whole), host)


def step_time(workload: Workload, setup: Setup, tokens: int, operations_per_byte: float) -> float:
    """Return the time of a step on one sequence by the roofline model, in operations at the device's peak."""
    return _over_work(workload, setup, tokens, lambda work: work.time(operations_per_byte))


def step_operations(workload: Workload, setup: Setup, tokens: int) -> int:
    """Return the floating-point operations of a step on one sequence."""
    return round(_over_work(workload, setup, tokens, lambda work: work.operations))


def _runs_as(setup: Setup) -> Setup:
    """Return the setup whose steps are run and counted: checkpointing for offloading, which fits other batches."""
    return replace(setup, activations=Checkpoint()) if setup.activations.on_host else setup


def _over_depth(workload: Workload, setup: Setup, value: Callable[[int], float]) -> float:
    """Return the value at the model's depth, extrapolated from two depths beyond which it grows linearly.

    A model that is not deeper runs at its own depth, as does one whose policy treats layers differently.
    """
    layers, shallow = workload.layers, _steady_from(setup)
    if shallow is None or layers <= shallow:
        return value(layers)
    least = value(shallow)
    return least + (layers - shallow) * (value(shallow + 1) - least)


def _steady_from(setup: Setup) -> int | None:
    """Return the depth from which every further layer adds the same to a peak, or None; end layers are special."""
    if setup.activations.observes:
        return None
    return ORDINARY_STEADY_FROM if setup.ordinary else 4


def _over_work(workload: Workload, setup: Setup, tokens: int, value: Callable[[Work], float]) -> float:
    """Return a value of the work of a step, from steps with few layers and few chunks of the head, which are equal."""
    whole = _over_depth(workload, setup, lambda depth: value(_work(workload, _runs_as(setup), depth, tokens, COUNTED)))
    if tokens <= COUNTED:
        return whole
    # Every way computes the head in the same way.
    layers = min(workload.layers, ORDINARY_STEADY_FROM)
    most, half = (value(_work(workload, STORE, layers, tokens, counted)) for counted in (COUNTED, COUNTED // 2))
    return whole + (tokens - COUNTED) * (most - half) / (COUNTED - COUNTED // 2)


_STEPS: dict[tuple[Workload, Setup, int], dict[tuple[int, int], Timeline]] = {}
"""The steps that ran, by workload, setup and layers, and then by batch and tokens."""


@lru_cache(maxsize=4096)
def _memory(workload: Workload, setup: Setup, layers: int, batch: int, tokens: int) -> dict[str, int]:
    """Return the peak of a step by category, from a run of it or from runs of smaller and larger steps."""
    known = _STEPS.setdefault((workload, setup, layers), {})
    timeline = known.get((batch, tokens))
    if timeline is None:
        batches = {other: step for (other, length), step in known.items() if length == tokens}
        lengths = {other: step for (number, other), step in known.items() if number == batch}
        timeline = between(batches, batch, degree=1) or between(lengths, tokens, degree=2)
    if timeline is None:
        timeline = known[batch, tokens] = _run(workload, setup, layers, batch, tokens)
    peak = timeline.peak()
    return {name: getattr(peak, name) for name in CATEGORIES} | {"weights": 0}


def _run(workload: Workload, setup: Setup, layers: int, batch: int, tokens: int) -> Timeline:
    model = _model(workload, setup, layers)
    step = _step(model, batch, tokens)
    with without_numbers(COUNTED):
        _observe(setup, step)
        return timeline_of(step, model)


def _observe(setup: Setup, step: Callable[[], None]) -> None:
    """Let a policy that observes see the batch shape, as only its later steps are those that training repeats."""
    if setup.activations.observes:
        step()


@lru_cache(maxsize=4096)
def _work(workload: Workload, setup: Setup, layers: int, tokens: int, counted: int) -> Work:
    """Return the work of a step on one sequence; the run for it also counts its memory."""
    model, known = _model(workload, setup, layers), _STEPS.setdefault((workload, setup, layers), {})
    step = _step(model, 1, tokens)
    works = []
    with without_numbers(counted):
        _observe(setup, step)
        if counted == COUNTED and (1, tokens) not in known:
            known[1, tokens] = timeline_of(lambda: works.append(work_of(step)), model)
        else:
            works.append(work_of(step))
    return works[0]


def _step(model: Any, batch: int, tokens: int) -> Callable[[], None]:
    ids = torch.empty(batch, tokens, dtype=torch.int64, device="meta")
    return lambda: model(input_ids=ids, labels=ids).loss.backward()


@lru_cache(maxsize=64)
def _model(workload: Workload, setup: Setup, layers: int) -> Any:
    model = trained_model(workload, layers, setup)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Accumulated gradients count with the model; new ones count only until they are added.
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    return model


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None
