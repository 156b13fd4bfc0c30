"""The ways to train that a plan compares. A new one is one more entry of `methods`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from revformers.activations.budget.budget import Budget
from revformers.dynamics import BlendedMidpoint, Midpoint
from revformers.reversible import make_reversible


@dataclass(frozen=True)
class Method:
    """A way to train; two that run the same step are equal.

    Attributes:
        name: "store", "checkpoint", "offload", "rebuild" or "budget".
        prepare: makes an ordinary model train so, in place.
        bits: side information an element a layer, of "rebuild".
        offloads: whether what the layers keep lies in host memory, one layer's apart.
        steady_from: the depth from which on every further layer adds the same to the peak of a step: the layers at
            either end of a stack are special.

    """

    name: str = field(compare=False)
    prepare: Callable[[Any], object]
    bits: int | None = None
    offloads: bool = field(default=False, compare=False)
    steady_from: int = 2

    @property
    def title(self) -> str:
        """The name, with the bits."""
        return self.name if self.bits is None else f"{self.name}, {self.bits} bits"

    @property
    def reversible(self) -> bool:
        """Whether the model must be made reversible for it."""
        return self.bits is not None


def _store(model: Any) -> None:
    """Leave the model as it is."""


def _checkpoint(model: Any) -> None:
    # The name that every transformers 5 has; later ones call it deprecated.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@cache
def rebuild(bits: int) -> Method:
    """Return the midpoint rule (0 bits) or a blend of 1/2^bits, without update predictors."""
    dynamics = BlendedMidpoint(f"1/{2**bits}") if bits else Midpoint()
    return Method("rebuild", lambda model: make_reversible(model, dynamics), bits, steady_from=4)


def budgeted(size: int, layers: int) -> Method:
    """Return the midpoint rule that keeps what fits in `size` bytes; its layers differ, so all of them are run."""
    return Method("budget", lambda model: make_reversible(model, Midpoint(), Budget(size)), 0, steady_from=layers)


STORE = Method("store", _store)
CHECKPOINT = Method("checkpoint", _checkpoint)
OFFLOAD = Method("offload", _checkpoint, offloads=True)


def methods(bits: Sequence[int]) -> list[Method]:
    """Return the ways to compare, in the order of the table; "rebuild" once for each budget of side information."""
    return [STORE, CHECKPOINT, OFFLOAD, *map(rebuild, bits)]
