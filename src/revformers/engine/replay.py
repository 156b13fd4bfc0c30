"""The ambient state of a computation, random numbers and autocast, captured and restored for a replay."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states


@dataclass(frozen=True)
class RandomState:
    """The states of the CPU generator and of one accelerator's generator."""

    device_type: str
    cpu: Tensor
    device_ids: list[int]
    device: list[Tensor]

    @classmethod
    def of(cls, device: torch.device) -> "RandomState":
        """Capture the generators that a computation on `device` may draw from."""
        if device.type in ("cpu", "meta"):
            return cls("cpu", torch.get_rng_state(), [], [])
        # The public helper reads the devices off tensors; an empty one names the device.
        device_ids, states = get_device_states(torch.empty(0, device=device))
        return cls(device.type, torch.get_rng_state(), device_ids, states)

    def equals(self, other: "RandomState") -> bool:
        """Whether the same random numbers would be drawn from both."""
        mine, theirs = [self.cpu, *self.device], [other.cpu, *other.device]
        return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Set this state for the duration of the block, and restore the outer one after it."""
        accelerator = {"device_type": self.device_type} if self.device_ids else {}
        with torch.random.fork_rng(devices=self.device_ids, **accelerator):
            torch.set_rng_state(self.cpu)
            if self.device_ids:
                set_device_states(self.device_ids, self.device, device_type=self.device_type)
            yield


class Draws:
    """The random numbers that a computation drew, which a replay draws again.

    Args:
        before: the state before the computation.
        after: the state after it.

    """

    def __init__(self, before: RandomState, after: RandomState) -> None:
        self._before = before
        self._after = after
        self._were_repeated = True

    @contextlib.contextmanager
    def replayed(self, device: torch.device) -> Iterator[None]:
        """Draw the same numbers on `device` in the block, and restore the outer state after it."""
        self._were_repeated = True
        with self._before.restored():
            yield
            self._were_repeated = self._after.equals(RandomState.of(device))

    def were_repeated(self) -> bool:
        """Whether the last replay drew as many numbers as the computation; True if it raised an error."""
        return self._were_repeated


@dataclass(frozen=True)
class AutocastState:
    """Whether autocast is on, in which dtype, and whether it caches weights: for the CPU and one accelerator."""

    settings: tuple[tuple[str, bool, torch.dtype], ...]
    cache_enabled: bool

    @classmethod
    def of(cls, device: torch.device) -> "AutocastState":
        """Capture the autocast settings of the CPU and of `device`."""
        types = dict.fromkeys(("cpu", device.type))
        return cls(
            tuple(
                (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                for kind in types
                if torch.amp.is_autocast_available(kind)
            ),
            torch.is_autocast_cache_enabled(),
        )

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Set this state for the duration of the block."""
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self.settings:
                stack.enter_context(torch.autocast(kind, dtype, enabled, self.cache_enabled))
            yield
