"""The range of the states of all forward passes of a stack."""

import torch
from torch import Tensor

from revformers.engine.range_check import RangeCheck
from revformers.private_api import without_dispatch_modes

MOST_WAITING = 4
"""Passes whose states may be out of range without an error until one of them has a backward pass."""


class RangeWatch:
    """Remembers the largest magnitude of all passes, and the passes that nobody has looked at."""

    def __init__(self) -> None:
        self._largest: Tensor | float = 0.0
        self._waiting: list[RangeCheck] = []

    @property
    def largest(self) -> float:
        """Of a state or an update, over all forward passes since this was last set to 0; waits for the device."""
        return float(self._largest)

    @largest.setter
    def largest(self, value: float) -> None:
        self._largest = value

    def add(self, check: RangeCheck) -> None:
        """Note the magnitudes of a finished forward pass, which stay on its device."""
        if check.is_unseen:
            self._waiting.append(check)
        largest = check.largest()
        with without_dispatch_modes():  # the first pass takes another operator than later ones
            if isinstance(self._largest, Tensor):
                self._largest = torch.maximum(largest, self._largest.to(largest.device))
            else:
                self._largest = largest.clamp(min=self._largest)

    def raise_for_abandoned(self) -> None:
        """Raise StateRangeError for earlier passes that were to do so in a backward pass, and had none.

        A few may wait, because a loss may read several forward passes.
        """
        self._waiting = [check for check in self._waiting if check.is_unseen]
        if len(self._waiting) >= MOST_WAITING:
            for check in self._waiting:
                check.raise_if_exceeded()
