"""The cost of storing each step of a stack, by batch shape: observed in one forward pass and used in later ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from revformers.activations.budget.allocation import StepCost
from revformers.engine.field import Field
from revformers.engine.proof.situation import modules_of
from revformers.engine.replay import AutocastState
from revformers.private_api import parameters_of


@dataclass(frozen=True)
class ObservedStep:
    """One step of an observed pass.

    Attributes:
        cost: what it takes and spares.
        switches: of its modules, as `switches` returns them: with others it may take more.

    """

    cost: StepCost
    switches: int


@dataclass(frozen=True)
class Kind:
    """Properties of a pass, apart from its batch shape, on which the memory of its steps depends."""

    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    autocast: AutocastState

    @classmethod
    def of(cls, hidden: Tensor) -> "Kind":
        """Return the kind of a pass that begins with `hidden`, (batch, tokens, width)."""
        return cls(hidden.dtype, hidden.device, hidden.requires_grad, AutocastState.of(hidden.device))


class Observations:
    """The observed passes of one stack."""

    def __init__(self) -> None:
        self._passes: dict[tuple[Kind, tuple[int, ...]], tuple[ObservedStep, ...]] = {}

    def find(self, hidden: Tensor) -> tuple[ObservedStep, ...] | None:
        """Return the smallest observed pass whose batch was at least as large in every dimension, or None."""
        kind = Kind.of(hidden)
        found = [
            (shape, steps)
            for (other, shape), steps in self._passes.items()
            if other == kind and all(own <= size for own, size in zip(hidden.shape, shape, strict=True))
        ]
        return min(found, key=lambda entry: torch.Size(entry[0]).numel())[1] if found else None

    def add(self, hidden: Tensor, steps: tuple[ObservedStep, ...]) -> None:
        """Keep an observed pass that began with a state such as `hidden`."""
        self._passes[Kind.of(hidden), tuple(hidden.shape)] = steps

    def forget(self) -> None:
        """Forget all passes: the modules have changed."""
        self._passes.clear()


def switches(field: Field) -> int:
    """Return a number for what changes how much memory the modules of a field take: flags, and which weights train."""
    return hash(
        tuple(
            (
                tuple(value for value in vars(module).values() if type(value) is bool),
                tuple(weight.requires_grad for weight in parameters_of(module).values() if weight is not None),
            )
            for root in modules_of(field)
            for module in root.modules()
        )
    )
