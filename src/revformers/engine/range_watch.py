"""The range of the states of all forward passes of a stack."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from revformers.engine.range_check import RangeCheck
from revformers.private_api import without_dispatch_modes

MOST_WAITING = 4
"""Passes that may begin after one whose states are out of range, and whose backward pass has not said so."""


class RangeWatch:
    """Remembers the largest magnitude of all passes, and the checks of the last ones that nobody looked at."""

    def __init__(self) -> None:
        self._largest: Tensor | float = 0.0
        self._last: deque[RangeCheck] = deque()
        self._lock = threading.Lock()  # passes may run in several threads

    def __reduce__(self) -> tuple[type["RangeWatch"], tuple[()]]:
        """Copy and pickle a watch as one that has met no pass, because passes belong to a model in this process."""
        return RangeWatch, ()

    @property
    def largest(self) -> float:
        """Of a state or an update, over all forward passes since this was last set to 0; waits for the device."""
        return float(self._largest)

    @largest.setter
    def largest(self, value: float) -> None:
        with self._lock:
            self._largest = value

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Set the largest magnitude to 0 for a block that measures, and to what it was after it."""
        before = self._largest  # it may be on a device, for which nothing waits here
        self.largest = 0.0
        try:
            yield
        finally:
            with self._lock:
                self._largest = before

    def add(self, check: RangeCheck) -> None:
        """Note the magnitudes of a forward pass that has ended, which stay on its device."""
        largest = check.largest()
        with self._lock, without_dispatch_modes():  # the first pass takes another operator than later ones
            if check.is_unseen:
                self._last.append(check)
            if isinstance(self._largest, Tensor):
                self._largest = torch.maximum(largest, self._largest.to(largest.device))
            else:
                self._largest = largest.clamp(min=self._largest)

    def raise_for_abandoned(self) -> None:
        """Raise StateRangeError for earlier passes that were to do so in a backward pass, and had none.

        A few may wait, because a loss may read several forward passes.
        """
        with self._lock:
            older = [self._last.popleft() for _ in range(len(self._last) - MOST_WAITING + 1)]
        for check in older:
            if check.is_unseen:
                check.raise_if_exceeded()
