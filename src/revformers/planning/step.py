"""Peak memory, operations and time of a training step of any depth, batch and length, computed on the meta device.

The step runs at two depths, and the difference per layer is extrapolated to the model's depth. This assumes that later
layers are like the first ones. Of a chunked loss only a few chunks run, and the operations of the others are added.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from revformers.activations import Checkpoint
from revformers.head.loss import chunk_of
from revformers.models.tiles import set_mlp_tiles
from revformers.planning.devices import Device
from revformers.planning.meta import without_numbers
from revformers.planning.meter import timeline_of
from revformers.planning.model_size import trained_model
from revformers.planning.timeline import CATEGORIES, MemoryByCategory, Timeline, between
from revformers.planning.work import Work, work_of
from revformers.setup import STORE, Setup, Workload

CHUNKS = 3
"""Most chunks of a chunked loss that run. The first is special, as it begins the sums of gradients."""

TILES = 4
"""Number of tiles of an MLP that are run where a step has more and its peak does not lie in a tile."""

MOST_TILES = 32
"""Number of tiles that are run at most. More would lower a peak by a share of about 1/32 at most, which is left out."""

SAME = 0.005
"""Share by which two peaks may differ and count as one."""

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


@dataclass(frozen=True)
class Tiles:
    """How a step that runs cuts its batch for the MLPs.

    Attributes:
        tokens: tokens in a tile; None for all.
        number: number of equal tiles, in a step that stands for one with more.

    """

    tokens: int | None = None
    number: int | None = None

    def size(self, tokens: int) -> int | None:
        """Return the tokens of a tile of a batch of `tokens` tokens; None without tiles."""
        return self.tokens if self.number is None else -(-tokens // self.number)


WHOLE = Tiles()


def step_memory(workload: Workload, setup: Setup, batch: int, tokens: int, *, fused: bool = False) -> StepMemory:
    """Return the memory of one step without weights, gradients and optimizer states.

    Gradients count with the model because they stay in memory when steps accumulate them.

    Args:
        workload: the model and its training.
        setup: the way to train.
        batch: number of sequences.
        tokens: number of tokens in a sequence.
        fused: whether the engine's operators are fused kernels without temporary tensors, as on CUDA.

    """
    runs, tiles = _runs_as(setup), _tiles_that_run(workload, setup, batch, tokens, fused=fused)

    def part(name: str) -> int:
        return max(0, round(_over_depth(workload, setup, lambda depth: run(depth)[name])))

    def run(depth: int) -> dict[str, int]:
        return _memory(workload, runs, depth, batch, tokens, tiles, fused)

    whole = {name: part(name) for name in CATEGORIES}
    if not setup.activations.on_host:
        return StepMemory(MemoryByCategory(**whole))
    if setup.ordinary:
        # The input of the first layer was made before the layers and counts as other. It stands for the one input of a
        # layer that is on the device at a time.
        whole["activations"] = 0
    return StepMemory(MemoryByCategory(**whole), host_memory(workload, setup, batch, tokens))


def host_memory(workload: Workload, setup: Setup, batch: int, tokens: int) -> int:
    """Return the bytes of host memory that a step holds, whose sizes PyTorch rounds up to powers of two."""
    if not setup.activations.on_host:
        return 0
    return _inputs(workload, setup) * 2 ** (_layer_input(workload, batch, tokens) - 1).bit_length()


def step_time(workload: Workload, setup: Setup, batch: int, tokens: int, device: Device) -> float:
    """Return the time of a step in seconds by the roofline model: a lower bound, which serves to compare setups.

    Inputs of layers that go to the host are copied there in the forward pass and back in the backward pass. With
    transformers, copies and computation take turns. In this library's passes they run at the same time, so that the
    slower of the two gives the time of a pass.
    """
    speed = device.operations(workload.dtype)
    per_byte = speed / device.memory
    passes = (
        _over_work(workload, setup, batch, tokens, lambda work: work.forward.time(per_byte)) / speed,
        _over_work(workload, setup, batch, tokens, lambda work: work.backward.time(per_byte)) / speed,
    )
    if not setup.activations.on_host:
        return sum(passes)
    copies = _inputs(workload, setup) * _layer_input(workload, batch, tokens) / device.link
    return sum((one + copies) if setup.ordinary else max(one, copies) for one in passes)


def step_operations(workload: Workload, setup: Setup, batch: int, tokens: int) -> int:
    """Return the floating-point operations of a step."""
    return round(_over_work(workload, setup, batch, tokens, lambda work: work.operations))


def _inputs(workload: Workload, setup: Setup) -> int:
    """Return the number of inputs of steps that are kept for the backward pass."""
    return workload.layers * setup.steps_per_layer


def _layer_input(workload: Workload, batch: int, tokens: int) -> int:
    """Return the bytes of the input of a layer."""
    return batch * tokens * workload.width * workload.dtype.itemsize


def _runs_as(setup: Setup) -> Setup:
    """Return the setup whose steps are run and counted: checkpointing for transformers' offloading.

    The tiles are set before each step.
    """
    serial = setup.ordinary and setup.activations.on_host
    return replace(setup, activations=Checkpoint() if serial else setup.activations, mlp_tile=None)


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


def _over_work(workload: Workload, setup: Setup, batch: int, tokens: int, value: Callable[[Work], float]) -> float:
    """Return a value of the work of a step, from steps with few layers, few tiles and few chunks of the head.

    All layers, tiles and chunks are alike.
    """
    runs, all_tiles = _runs_as(setup), _number_of_tiles(setup, batch * tokens)

    def of_tiles(depth: int, tiles: Tiles) -> float:
        return value(_work(workload, runs, depth, batch, tokens, tiles, CHUNKS))

    def of_depth(depth: int) -> float:
        if all_tiles <= 2 * TILES:
            return of_tiles(depth, _own_tiles(setup, batch * tokens))
        few, more = (of_tiles(depth, Tiles(number=number)) for number in (TILES, 2 * TILES))
        return few + (all_tiles - TILES) * (more - few) / TILES

    whole = _over_depth(workload, setup, of_depth)
    further = batch * tokens / chunk_of(workload.width) - CHUNKS
    if workload.head == "own" or further <= 0:
        return whole
    # Every way computes the head in the same way.
    layers = min(workload.layers, ORDINARY_STEADY_FROM)
    few, fewer = (
        value(_work(workload, STORE, layers, batch, tokens, WHOLE, chunks)) for chunks in (CHUNKS, CHUNKS - 1)
    )
    return whole + further * (few - fewer)


def _number_of_tiles(setup: Setup, tokens: int) -> int:
    """Return the number of tiles of an MLP on a batch of this many tokens; 0 without tiles."""
    return 0 if setup.mlp_tile is None else -(-tokens // setup.mlp_tile)


def _tiles_that_run(workload: Workload, setup: Setup, batch: int, tokens: int, *, fused: bool) -> Tiles:
    """Return the tiles to run, fewer than a step has if the peak does not lie in a tile.

    A run takes time for every tile. If twice as many lower the peak no further, then neither do more.
    """
    few = TILES
    while few < _number_of_tiles(setup, batch * tokens):
        if few == MOST_TILES or _peaks_outside_tiles(workload, _runs_as(setup), batch, tokens, few, fused):
            return Tiles(number=few)
        few *= 2
    return _own_tiles(setup, batch * tokens)


def _own_tiles(setup: Setup, tokens: int) -> Tiles:
    """Return all tiles of a batch; steps with the same number of equal tiles are interpolated from one another."""
    even = setup.mlp_tile is not None and tokens % setup.mlp_tile == 0
    return Tiles(number=_number_of_tiles(setup, tokens)) if even else Tiles(setup.mlp_tile)


@lru_cache(maxsize=4096)
def _peaks_outside_tiles(workload: Workload, setup: Setup, batch: int, tokens: int, tiles: int, fused: bool) -> bool:
    depth = min(workload.layers, _steady_from(setup) or workload.layers)
    few, more = (
        sum(_memory(workload, setup, depth, batch, tokens, Tiles(number=number), fused).values())
        for number in (tiles, 2 * tiles)
    )
    return more >= (1 - SAME) * few


_STEPS: dict[tuple[Workload, Setup, int, Tiles], dict[tuple[int, int], Timeline]] = {}
"""The steps that ran, by workload, setup, layers and tiles, and then by batch and tokens."""


@lru_cache(maxsize=4096)
def _memory(
    workload: Workload, setup: Setup, layers: int, batch: int, tokens: int, tiles: Tiles = WHOLE, fused: bool = False
) -> dict[str, int]:
    """Return the peak of a step by category, from a run of it or from runs of smaller and larger steps."""
    known = _STEPS.setdefault((workload, setup, layers, tiles), {})
    counted = {size: step.without_workspaces() if fused else step for size, step in known.items()}
    timeline = counted.get((batch, tokens))
    if timeline is None:
        batches = {other: step for (other, length), step in counted.items() if length == tokens}
        lengths = {other: step for (number, other), step in counted.items() if number == batch}
        timeline = between(batches, batch, degree=1) or between(lengths, tokens, degree=2)
    if timeline is None:
        known[batch, tokens] = _run(workload, setup, layers, batch, tokens, tiles)
        timeline = known[batch, tokens].without_workspaces() if fused else known[batch, tokens]
    peak = timeline.peak()
    return {name: getattr(peak, name) for name in CATEGORIES} | {"weights": 0}


def _run(workload: Workload, setup: Setup, layers: int, batch: int, tokens: int, tiles: Tiles = WHOLE) -> Timeline:
    model = _model(workload, setup, layers)
    step = _step(model, batch, tokens, tiles)
    with without_numbers(CHUNKS):
        _observe(setup, step)
        return timeline_of(step, model)


def _observe(setup: Setup, step: Callable[[], None]) -> None:
    """Let a policy that observes see the batch shape, as only its later steps are those that training repeats."""
    if setup.activations.observes:
        step()


@lru_cache(maxsize=4096)
def _work(workload: Workload, setup: Setup, layers: int, batch: int, tokens: int, tiles: Tiles, chunks: int) -> Work:
    """Return the work of a step; the run for it also counts its memory."""
    model, known = _model(workload, setup, layers), _STEPS.setdefault((workload, setup, layers, tiles), {})
    step = _step(model, batch, tokens, tiles)
    works = []
    with without_numbers(chunks):
        _observe(setup, step)
        if chunks == CHUNKS and (batch, tokens) not in known:
            known[batch, tokens] = timeline_of(lambda: works.append(work_of(step)), model)
        else:
            works.append(work_of(step))
    return works[0]


def _step(model: Any, batch: int, tokens: int, tiles: Tiles) -> Callable[[], None]:
    """Return a step of a model whose MLPs are evaluated in these tiles."""
    set_mlp_tiles(model, tiles.size(batch * tokens))
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
