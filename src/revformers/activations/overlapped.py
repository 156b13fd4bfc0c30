"""Layer inputs in host memory, which are copied there and back while other layers compute.

In the forward pass the copies of up to two inputs are under way on a stream of their own. The computing stream waits
for the older one before a third begins, and only then is its memory on the device free for others. Waiting on the
device, instead of telling the allocator with `Tensor.record_stream`, bounds the memory: the host issues work long
before the device does it, and until then `record_stream` would hold the memory of every input.

In the backward pass, while one layer is evaluated again, the input of the layer before it is copied to the device. This
is a hint: an input that is asked for in another order is copied when it is asked for, and one that nobody asks for is
dropped. The last two inputs are still on the device when a backward pass begins, and are used from there.

So beyond the input of the layer that computes, at most two are on the device.

Pinned memory needs no pool here. PyTorch's allocator of pinned memory keeps freed blocks for the next step, and hands
none out before the copies that used it are done. By default it rounds sizes up to powers of two.
"""

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from revformers.engine.ticket import InputSource
from revformers.private_api import version_of

LEAVING = 2
"""Most inputs whose copies to the host may be under way."""


@dataclass(frozen=True)
class Copy:
    """A copy that may still be under way.

    Attributes:
        tensor: the copy; its values may be read on the host or the device only after waiting for it.
        finished: what `Copies.wait` waits for.

    """

    tensor: Tensor
    finished: Any


class Copies(Protocol):
    """Copies tensors beside the computation, in the order of the calls."""

    def to_host(self, tensor: Tensor) -> Copy:
        """Begin a copy of a device's tensor, which must stay in memory and unchanged until it is waited for."""

    def to_device(self, tensor: Tensor) -> Copy:
        """Begin a copy of a tensor that `to_host` returned."""

    def wait(self, copy: Copy) -> Tensor:
        """Let the computation that follows wait for a copy, and return it."""


class StreamCopies:
    """Copies on a CUDA stream of their own, beside one stream that computes.

    The tensors that `to_device` returns belong to this stream. If one is dropped, even while its copy is under way, its
    memory goes to a later copy of this stream; that copy waits for everything that the computing stream did before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def to_host(self, tensor: Tensor) -> Copy:
        """Begin a copy into pinned memory."""
        on_host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            on_host.copy_(tensor, non_blocking=True)
        return Copy(on_host, self._stream.record_event())

    def to_device(self, tensor: Tensor) -> Copy:
        """Begin a copy from pinned memory."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            on_device = torch.empty_like(tensor, device=self._device)
            # After the allocation: what used this memory before was issued by now.
            self._stream.wait_stream(computing)
            on_device.copy_(tensor, non_blocking=True)
        return Copy(on_device, self._stream.record_event())

    def wait(self, copy: Copy) -> Tensor:
        """Let the current stream wait for a copy, and return it; the host does not wait."""
        torch.cuda.current_stream(self._device).wait_event(copy.finished)
        return copy.tensor


class MetaCopies:
    """Copies on the meta device, where the planner counts the memory that a device would need, and none of a host."""

    def to_host(self, tensor: Tensor) -> Copy:
        """Return a tensor of the same shape that takes the memory of one number."""
        return Copy(tensor.new_empty(()).expand(tensor.shape), None)

    def to_device(self, tensor: Tensor) -> Copy:
        """Return a new tensor of the same shape."""
        return Copy(tensor.new_empty(tensor.shape), None)

    def wait(self, copy: Copy) -> Tensor:
        """Return the copy."""
        return copy.tensor


Reference = Callable[[], "KeptInput | None"]
"""Returns a kept input, or None if there is none or nothing needs it any more; a weak reference, mostly."""


class KeptInput:
    """The input of one step.

    Attributes:
        on_host: its copy.
        on_device: the input itself until its copy is waited for, then None.
        overwritten: whether it was written to while it was copied.
        before: the kept input of the step before.

    """

    def __init__(self, hidden: Tensor, on_host: Copy, before: Reference) -> None:
        self.on_host = on_host
        self.on_device: Tensor | None = hidden
        self.overwritten = False
        self.before = before
        self._version = version_of(hidden)

    def leave(self, copies: Copies) -> Tensor | None:
        """Let the computation wait for the copy to the host, and return the input that was still on the device."""
        hidden, self.on_device = self.on_device, None
        if hidden is not None:
            copies.wait(self.on_host)
            self.overwritten = version_of(hidden) != self._version
        return hidden


class OverlappedInputs:
    """The inputs of the steps of one forward pass; see the module docstring.

    Only the sources that `keep` returns hold an input, so it is freed with the graph of its step.

    Args:
        copies: makes the copies.

    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._leaving = deque[Reference]()
        self._last: Reference = _nothing
        self._coming: tuple[Reference, Copy] | None = None

    def keep(self, hidden: Tensor) -> InputSource:
        """Begin to copy an input to the host, and return a source of it."""
        self._free(LEAVING - 1)
        kept = KeptInput(hidden, self._copies.to_host(hidden), self._last)
        self._last = weakref.ref(kept)
        self._leaving.append(self._last)
        return partial(self._fetch, kept)

    def _fetch(self, kept: KeptInput) -> Tensor | None:
        """Return an input, or None if it was overwritten while it was copied; begin to copy the one before it."""
        hidden = kept.leave(self._copies)
        if kept.overwritten:
            return None
        if hidden is None:
            self._free(0)
            hidden = self._copies.wait(self._take(kept) or self._copies.to_device(kept.on_host.tensor))
        self._prefetch(kept.before())
        return hidden

    def _free(self, most: int) -> None:
        """Free the memory of inputs whose copies to the host are under way, except that of the last `most`."""
        while len(self._leaving) > most:
            oldest = self._leaving.popleft()()
            if oldest is not None:
                oldest.leave(self._copies)

    def _take(self, kept: KeptInput) -> Copy | None:
        """Return the copy of an input that has begun; drop that of any other, which nobody waits for."""
        coming, self._coming = self._coming, None
        return coming[1] if coming is not None and coming[0]() is kept else None

    def _prefetch(self, kept: KeptInput | None) -> None:
        if kept is None or kept.on_device is not None or (self._coming is not None and self._coming[0]() is kept):
            return
        self._coming = None  # first, so that its memory is free
        self._coming = weakref.ref(kept), self._copies.to_device(kept.on_host.tensor)


def _nothing() -> None:
    return None
