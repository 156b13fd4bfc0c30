"""The budget policy: how many bytes a forward pass may keep, and how the rest is recomputed."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch

from revformers.activations.base import ActivationPolicy
from revformers.activations.budget.budgeted import BudgetedPass
from revformers.activations.budget.observation import Observations
from revformers.byte_size import parse_size
from revformers.dynamics.base import Coefficients
from revformers.engine.forward_pass import BeginPass
from revformers.engine.states import StatePair
from revformers.errors import require_package

Recompute = Literal["rebuild", "checkpoint"]

_TEXT = re.compile(r"([^:]+?)(?::(\w+))?")


@dataclass(frozen=True)
class Budget(ActivationPolicy):
    """Keep as much as fits into a number of bytes, so that the backward pass repeats as little as possible.

    The budget covers everything that is kept between the passes and grows with the number of layers, and the states:
    stored activations, kept attention outputs, side information, kept inputs of layers, and the pair of fixed-point
    states. It does not cover weights, gradients and the optimizer; the working set of the one layer that is being
    computed (while layers are stored in a forward pass, that includes a second pair of states); what the head and the
    embedding keep; and masks and position tables that all layers share.

    Attributes:
        size: bytes, a size such as ``"20GiB"``, or a share of the device's free memory, a float from above 0 to 1 (on
            a CPU, of the memory that the system calls available). A share is taken when a forward pass begins.
        recompute: how layers that do not fit are computed again: ``"rebuild"`` inverts the recurrence, or keeps the
            inputs of layers if these need less memory than two states; ``"checkpoint"`` keeps all inputs, for a fair
            comparison, and for dynamics without an inverse.

    Raises:
        ValueError: if the size or the way to recompute is not valid.

    """

    size: int | float | str
    recompute: Recompute = "rebuild"

    name = "budget"
    keeps = "as many layers as fit the budget"
    observes = True

    def __post_init__(self) -> None:
        if self.recompute not in get_args(Recompute):
            raise ValueError(
                f"A Budget recomputes by {' or '.join(map(repr, get_args(Recompute)))}, not by {self.recompute!r}."
            )
        if isinstance(self.size, str):
            parse_size(self.size)
        elif isinstance(self.size, float):
            if not 0 < self.size <= 1:
                raise ValueError(
                    f"A Budget given as a float is a share of the free memory, above 0 and up to 1, not {self.size}; "
                    f'give bytes as an int or as a size such as "20GiB".'
                )
        elif isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f'A Budget takes bytes, a size such as "20GiB" or a share of free memory, not {self.size!r}.'
            )

    @classmethod
    def from_text(cls, options: str) -> Self:
        """Read what follows "budget:", such as "20GiB", "0.5" or "20GiB:checkpoint".

        Raises:
            ValueError: for any other text.

        """
        match = _TEXT.fullmatch(options)
        if match is None:
            raise ValueError(
                f'A budget is written as "budget:20GiB", "budget:0.5" or "budget:20GiB:checkpoint", not '
                f'"budget:{options}".'
            )
        return cls(_number(match[1]), match[2] or "rebuild")  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Return the budget as text, as in recipes, commands and saved models, e.g. "budget:20GiB"."""
        return f"budget:{self.size}" + ("" if self.recompute == "rebuild" else f":{self.recompute}")

    @property
    def needs_inverse(self) -> bool:
        """Whether layers may be rebuilt, which requires dynamics with an inverse."""
        return self.recompute == "rebuild"

    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return a function that begins a forward pass within the budget and remembers the costs by batch shape."""
        observations = Observations()

        def begin(states: StatePair, steps: Sequence[Coefficients]) -> BudgetedPass:
            return BudgetedPass(
                states,
                room=self.bytes_on(states.current.device),
                may_rebuild=self.needs_inverse,
                steps=steps,
                steps_per_layer=steps_per_layer,
                observations=observations,
            )

        return begin

    def bytes_on(self, device: torch.device) -> int:
        """Return the budget in bytes on `device`, whose free memory is read if the budget is a share of it."""
        if isinstance(self.size, str):
            return parse_size(self.size)
        if isinstance(self.size, int):
            return self.size
        return int(self.size * _free_bytes(device))


def _number(text: str) -> int | float | str:
    """Read a whole number, a float, or else the text itself."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        # Memory that PyTorch's allocator has reserved but not allocated is free as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        psutil = require_package("psutil", "train", "The free memory of the CPU")
        return int(psutil.virtual_memory().available)
    raise ValueError(f'The free memory of {device.type} devices is not known; give the Budget a size such as "20GiB".')
