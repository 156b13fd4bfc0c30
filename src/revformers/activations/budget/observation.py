"""The cost of storing each step of a stack, by batch shape: observed in one forward pass and used in later ones."""

from dataclasses import dataclass, replace
from operator import le

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
        cost: its memory and operations.
        switches: the result of `switches` for its field; with other switches it may need more memory.

    """

    cost: StepCost
    switches: int


@dataclass(frozen=True)
class PassKind:
    """Properties of a pass, with its batch shape, on which the memory of its steps depends."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    autocast: AutocastState

    @classmethod
    def of(cls, embedding: Tensor) -> "PassKind":
        """Return the kind of a pass that begins with `embedding`, (batch, tokens, width)."""
        autocast = AutocastState.of(embedding.device)
        return cls(embedding.shape, embedding.dtype, embedding.device, embedding.requires_grad, autocast)

    def is_within(self, other: "PassKind") -> bool:
        """Whether a pass of this kind needs at most the memory of one of the other kind."""
        return replace(self, shape=other.shape) == other and all(map(le, self.shape, other.shape))


class Observations:
    """The observed passes of one stack."""

    def __init__(self) -> None:
        self._passes: dict[PassKind, tuple[ObservedStep, ...]] = {}

    def find(self, kind: PassKind) -> tuple[ObservedStep, ...] | None:
        """Return the smallest observed pass whose batch was at least as large in every dimension, or None."""
        found = [other for other in self._passes if kind.is_within(other)]
        return self._passes[min(found, key=lambda other: other.shape.numel())] if found else None

    def add(self, kind: PassKind, steps: tuple[ObservedStep, ...]) -> None:
        """Keep an observed pass."""
        self._passes[kind] = steps

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
