"""A stand-in for a stream of copies, as late as a stream may be, so that a missing wait shows on a CPU."""

import weakref
from collections import deque

import torch

from revformers.activations.overlapped import Copy


class LateCopies:
    """Copies in the order of the calls, but only when somebody waits; until then the copies hold NaN.

    The memory of a tensor that is gone when it is copied belongs to others: NaN is copied.

    Attributes:
        events: what was called, in words; inputs are numbered as they were copied to the host.
        most_on_device: the most tensors that were on the device at once for the sake of copies.

    """

    def __init__(self):
        self.events = []
        self.most_on_device = 0
        self._queue = deque()
        self._on_device = []

    def to_host(self, tensor):
        on_host = torch.full_like(tensor, float("nan"))
        on_host.number = sum(event.startswith("to host") for event in self.events)
        return self._begin("to host", on_host.number, tensor, on_host, tensor)

    def to_device(self, tensor):
        on_device = torch.full_like(tensor, float("nan"))
        return self._begin("to device", tensor.number, tensor, on_device, on_device)

    def wait(self, copy):
        what, begun = copy.finished
        self.events.append(f"wait {what}")
        while self._queue and self._queue[0][0] <= begun:
            _, source, target = self._queue.popleft()
            if target() is not None:
                target().copy_(torch.tensor(float("nan")) if source() is None else source())
        return copy.tensor

    def _begin(self, direction, number, source, target, on_device):
        self.events.append(f"{direction} {number}")
        self._queue.append((len(self.events), weakref.ref(source), weakref.ref(target)))
        self._on_device = [other for other in self._on_device if other() is not None] + [weakref.ref(on_device)]
        self.most_on_device = max(self.most_on_device, len(self._on_device))
        return Copy(target, (self.events[-1], len(self.events)))
