"""By what a second evaluation of a layer is compared with the first, where its result does not tell.

Rebuilding compares the states, which hold every bit that the layers returned. But a layer that is computed again from
its kept input is not evaluated to its end, as with checkpointing, and returns nothing; and a kept attention output
hides what the kernel was given.
"""

from collections import deque

import torch
from torch import Tensor

from revformers.activations.saved_bytes import is_parameter, plain_parts

LAST = 3
"""How many of the saved activations are compared: the last ones depend on nearly everything before them. Several, as
the very last one may be the noise of dropout, or under autocast a weight in another dtype."""


class Fingerprint:
    """The bits of the last activations that autograd saves of one evaluation.

    Args:
        input_size: elements of the layer's input. Activations below a quarter of it do not count: they may hold what no
            kernel wrote, such as the padding of the log-sum-exps of attention. Narrow ones, such as the heads of Gemma
            together, do.

    """

    def __init__(self, input_size: int) -> None:
        self._least = input_size // 4
        self._last: deque[Tensor] = deque(maxlen=LAST)

    def add(self, tensor: Tensor) -> None:
        """Take note of a tensor that autograd saves."""
        if not is_parameter(tensor) and tensor.is_floating_point() and tensor.numel() >= self._least:
            self._last.append(tensor.detach())

    def sum(self) -> Tensor | None:
        """Return the sum of the bits of the last activations, int64[], and let go of them; None where none is saved."""
        total = sum_of_bits(*self._last) if self._last else None
        self._last.clear()
        return total


def sum_of_bits(*tensors: Tensor) -> Tensor:
    """Return the sum of the bytes of one or more tensors, eight at a time, modulo 2**64: int64[].

    PyTorch adds up integers of eight bytes many times faster on a CPU than narrower ones.
    """
    parts = [_sum_of_bits(part) for tensor in tensors for part in plain_parts(tensor.detach())]
    return torch.stack(parts).sum()


def _sum_of_bits(tensor: Tensor) -> Tensor:
    places = tensor.storage_offset(), *tensor.stride()[:-1], *tensor.shape[-1:]
    if tensor.stride()[-1:] == (1,) and not any(place * tensor.itemsize % 8 for place in places):
        return tensor.view(torch.int64).sum()
    octets = tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)
    whole = octets.numel() // 8 * 8
    return octets[:whole].view(torch.int64).sum() + octets[whole:].sum()
