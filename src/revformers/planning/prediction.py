"""Predicts the memory and the time of one training step: what one setup of one workload takes on one machine."""

import dataclasses
from dataclasses import dataclass

from revformers.planning.devices import Machine
from revformers.planning.model_size import ModelSize, size_in
from revformers.planning.step import step_memory, step_time
from revformers.planning.timeline import MemoryByCategory
from revformers.setup import Setup, Workload


@dataclass(frozen=True)
class Prediction:
    """The cost of one training step.

    Attributes:
        memory: the peak of the device's memory with weights, gradients and optimizer states, bytes by category.
        host: memory of the host that the step holds, bytes.
        seconds: time by the roofline model; a lower bound, which serves to compare setups.

    """

    memory: MemoryByCategory
    host: int
    seconds: float


def predict(workload: Workload, setup: Setup, machine: Machine) -> Prediction:
    """Predict a step of `setup` on the batch of `workload`, without running it; takes seconds.

    The same step on other batches and lengths is interpolated where that is exact, so further predictions take less.

    Args:
        workload: the model, its training, its batch size and the tokens of its sequences.
        setup: the way to train.
        machine: whose speeds give the time. Its memory is not read.

    Raises:
        MissingPackageError: if an adapter needs the package peft and it is not installed.
        NotReversibleError: if the model cannot be trained in this way.
        ValueError: if the MLPs cannot be evaluated in tiles; under autocast, which cannot be planned.

    """
    batch, tokens = workload.batch_size, workload.sequence_length
    step = step_memory(workload, setup, batch, tokens, fused=True)
    return Prediction(
        with_model(size_in(workload, setup.predictors), step.device),
        step.host,
        step_time(workload, setup, batch, tokens, machine.device),
    )


def with_model(size: ModelSize, step: MemoryByCategory) -> MemoryByCategory:
    """Return the memory of a step plus that of the model that it trains."""
    return dataclasses.replace(step, weights=size.weights, gradients=size.gradients, optimizer=size.optimizer)
