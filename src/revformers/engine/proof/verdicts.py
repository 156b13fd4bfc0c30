"""The results of comparisons in a backward pass, which are looked at in it or at its end."""

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from revformers.private_api import at_end_of_backward_pass, current_backward_pass

Result = tuple[Tensor, Callable[[], Exception]]
"""The result of a comparison, bool[], and the function that makes the error for a false one."""


@dataclass
class Verdicts:
    """Comparisons whose results may still be on a device.

    On a CPU each result is checked at once, before any gradient of a wrong layer is returned. On other devices the
    results of all comparisons in a backward pass, whole or partial, are checked together at its end, so that it waits
    for the device once.

    Attributes:
        at_once: whether each result is checked at once.

    """

    at_once: bool
    _waiting: list[Result] = field(default_factory=list)
    # One thread's pass may end, and look, while another adds.
    _lock: AbstractContextManager[Any] = field(default_factory=threading.Lock)

    def add(self, equal: Tensor, error: Callable[[], Exception]) -> None:
        """Add a `Result`.

        Raises:
            Exception: the error, if the result is checked at once and false.

        """
        with self._lock:
            self._waiting.append((equal, error))
        this_pass = current_backward_pass()
        if self.at_once or this_pass is None:  # outside of one, as when a debugger asks a node for its tensors
            self.look()
        else:
            _look_at_end_of(this_pass, self)

    @property
    def are_waiting(self) -> bool:
        """Whether there are results that nobody has looked at."""
        return bool(self._waiting)

    def look(self) -> None:
        """Wait for all results; raise the error of the first that is false."""
        _raise_first(self.take())

    def take(self) -> list[Result]:
        """Return the results that nobody has looked at, which are then no longer waiting."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        return waiting


class _EndOfPass:
    """What the end of one backward pass looks at."""

    def __init__(self) -> None:
        self.verdicts: list[Verdicts] = []

    def look(self) -> None:
        _raise_first([result for verdicts in self.verdicts for result in verdicts.take()])


# Only the callback of a pass holds its entry, so PyTorch drops that of a pass that fails.
_ENDS: "weakref.WeakValueDictionary[int, _EndOfPass]" = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def _look_at_end_of(backward_pass: int, verdicts: Verdicts) -> None:
    with _LOCK:
        end = _ENDS.get(backward_pass)
        if end is None:
            end = _ENDS[backward_pass] = _EndOfPass()
            at_end_of_backward_pass(end.look)
        if not any(known is verdicts for known in end.verdicts):
            end.verdicts.append(verdicts)


def _raise_first(results: Sequence[Result]) -> None:
    if not results:
        return
    device = results[0][0].device
    equal = torch.stack([result.to(device) for result, _ in results])
    if not torch.equal(equal, torch.ones_like(equal)):
        raise results[equal.tolist().index(False)][1]()
