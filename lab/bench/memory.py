"""Measures training steps in this process: peak memory, and the times of several arms in turns."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from lab.bench.meter import peak_allocated_bytes, peak_resident_bytes
from lab.bench.step_time import measure_step_times
from lab.bench.workload import MeasuredWorkload
from revformers.activations import Budget
from revformers.setup import Setup

Task = tuple[MeasuredWorkload, Setup]

FEW_TOKENS = 16
"""Number of tokens of a step whose time and memory do not matter."""


@dataclass(frozen=True)
class PeakMemory:
    """Memory of one training step whose gradients already exist; all in bytes.

    Attributes:
        peak: the most memory that tensors held in addition to the next two fields and the batch.
        weights_and_gradients: parameters, buffers and gradients, which exist before, during and after the step.
        resident_peak: increase of the process's resident memory, a cross-check of `peak` on Linux CPUs, else None.
        optimizer_states: state that the optimizer keeps from step to step.

    """

    peak: int
    weights_and_gradients: int
    resident_peak: int | None
    optimizer_states: int = 0

    @property
    def constant(self) -> int:
        """Memory that is always in use, whatever the batch."""
        return self.weights_and_gradients + self.optimizer_states

    @property
    def total(self) -> int:
        """All memory at the peak."""
        return self.peak + self.constant


@dataclass(frozen=True)
class TurnTimes:
    """Times and losses of arms that took turns.

    Attributes:
        seconds: for each arm that fits in memory, one figure per timed round.
        losses: for each such arm, nats per token, warm-up rounds included.
        out_of_memory: the arms that do not fit.

    """

    seconds: dict[str, list[float]]
    losses: dict[str, list[float]] = field(default_factory=dict)
    out_of_memory: list[str] = field(default_factory=list)


class Measurer:
    """Measures in this process on one model, which is changed to the setup of every arm.

    The model is kept between measurements of the same network, because building it may take longer than a step.
    """

    def __init__(self) -> None:
        self._network: Any = None
        self._model: PreTrainedModel | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def device_memory(self, device: str) -> tuple[int, int]:
        """Return the free and the total memory of `device` in bytes."""
        if torch.device(device).type == "cuda":
            return torch.cuda.mem_get_info(device)
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def peak(
        self, workload: MeasuredWorkload, arm: Setup, *, memory: int | None = None, resident: bool = False
    ) -> PeakMemory:
        """Measure the memory of one step.

        Args:
            workload: the network and its batch.
            arm: the way to train it.
            memory: bytes that tensors may occupy. A GPU's allocator refuses more; on a CPU the bytes are only counted.
            resident: also measure the cross-check, which is unreliable if other measurements ran in this process.

        Raises:
            MemoryError: if the step does not fit.

        """
        with self._limited(workload.device, memory):
            model, optimizer = self._prepare(workload)
            arm.apply(model)
            batch = workload.build_batch()
            device = torch.device(workload.device)

            def step() -> None:
                workload.train_step(model, optimizer, batch)

            # A short step first allocates everything that persists: gradients, optimizer states, workspaces.
            few = min(FEW_TOKENS, workload.sequence_length)
            short = dataclasses.replace(workload, batch_size=1, sequence_length=few)
            short.train_step(model, optimizer, short.build_batch())
            _observe(workload, arm, model, batch)
            resident_peak = peak_resident_bytes(step) if resident and device.type == "cpu" else None
            peak = peak_allocated_bytes(step, device)
        states = (
            [] if optimizer is None else [state for of_one in optimizer.state.values() for state in of_one.values()]
        )
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return PeakMemory(
            peak, _bytes([*model.parameters(), *model.buffers(), *gradients]), resident_peak, _bytes(states)
        )

    def times(
        self, tasks: Mapping[str, Task], rounds: int, warm_up_rounds: int, *, memory: int | None = None
    ) -> TurnTimes:
        """Time the steps of several arms in turns.

        All arms have the same weights and, in the same round, batches of the same seed. With `memory`, each arm may use
        all of it: before an arm's turn the memory of the others is freed, and an untimed step allocates it again.

        Args:
            tasks: a workload and an arm, by the name of the arm; the workloads differ only in their batches.
            rounds: number of timed rounds.
            warm_up_rounds: number of rounds before them.
            memory: as for `peak`.

        """
        workloads = {name: workload for name, (workload, _) in tasks.items()}
        arms = {name: arm for name, (_, arm) in tasks.items()}
        batches: dict[str, dict[str, torch.Tensor]] = {}
        losses: dict[str, list[float]] = {name: [] for name in tasks}

        def step(name: str) -> float:
            model, optimizer = self._prepare(workloads[name])
            return workloads[name].train_step(model, optimizer, batches[name])

        def prepare(name: str, number: int) -> None:
            arms[name].apply(self._prepare(workloads[name])[0])
            batches.clear()
            batches[name] = workloads[name].build_batch(number)
            _observe(workloads[name], arms[name], self._prepare(workloads[name])[0], batches[name])
            if memory is not None and torch.device(workloads[name].device).type == "cuda":
                _give_back()
                step(name)

        out_of_memory = []
        for name, workload in workloads.items():
            try:
                with self._limited(workload.device, memory):
                    prepare(name, 0)
                    step(name)
            except MemoryError:
                out_of_memory.append(name)

        def timed(name: str) -> Callable[[int], None]:
            return lambda _: losses[name].append(step(name))

        fitting = {name: timed(name) for name in tasks if name not in out_of_memory}
        if not fitting:
            return TurnTimes({}, {}, out_of_memory)
        device = next(iter(workloads.values())).device
        with self._limited(device, memory):
            times = measure_step_times(fitting, rounds, warm_up_rounds, device=device, before_step=prepare)
        return TurnTimes(times.seconds, {name: losses[name] for name in fitting}, out_of_memory)

    def _prepare(self, workload: MeasuredWorkload) -> tuple[PreTrainedModel, torch.optim.Optimizer | None]:
        """Return the model of `workload` and its optimizer, reusing the last ones if they are the same."""
        if self._model is None or self._network != workload.network:
            self._model = self._optimizer = None
            _give_back()
            self._model = workload.build_model()
            self._optimizer = workload.build_optimizer(self._model)
            self._network = workload.network
        return self._model, self._optimizer

    @contextlib.contextmanager
    def _limited(self, device: str, memory: int | None) -> Iterator[None]:
        """Limit tensors on a GPU to `memory` bytes, and raise MemoryError if they need more."""
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            _give_back()
            all_of_it = torch.cuda.get_device_properties(device).total_memory
            share = 1.0 if memory is None else min(1.0, memory / all_of_it)
            torch.cuda.set_per_process_memory_fraction(share, torch.device(device).index or 0)
        refused = None
        try:
            yield
        except RuntimeError as error:
            # A GPU raises torch.OutOfMemoryError. The host's allocators, including pinned memory, and libraries that
            # allocate on a GPU themselves (CUBLAS_STATUS_ALLOC_FAILED) report it only in their messages.
            if not isinstance(error, torch.OutOfMemoryError) and not _says_out_of_memory(error):
                raise
            refused = " ".join(str(error).split())[:300]
        if refused is not None:
            # Raised outside the except block, whose traceback would keep the tensors of the step alive.
            _give_back()
            raise MemoryError(refused)


def _says_out_of_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED"))


def _observe(workload: MeasuredWorkload, arm: Setup, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    """Let a budget see the batch shape: it stores layers from the second forward pass of a shape on."""
    if isinstance(arm.activations, Budget):
        with workload.autocast():
            model(**batch)


def _give_back() -> None:
    """Free unreferenced objects, and let a GPU's allocator return their memory."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _bytes(tensors: list[torch.Tensor]) -> int:
    """Return the bytes of the storages of `tensors`, counting shared ones once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
