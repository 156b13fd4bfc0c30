"""The steps of two states in PyTorch's own operations, for every device; the reference for all other kernels.

A step is several operations, each a pass over the states. On a CPU they run block by block, so that each operation
finds its input in the processor's cache and no temporary has the size of a state. Large temporaries cost more than the
arithmetic, because the C library requests every one above 32 MB from the operating system.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from revformers.dynamics.base import Coefficients
from revformers.engine.fixed_point import quantise, read_into
from revformers.engine.packing import GROUP, pack, packed_size, unpack
from revformers.engine.rational import divide_, multiply_


def advance(
    previous: Tensor, current: Tensor, coefficients: Coefficients, update: Tensor, side_information: Tensor | None
) -> None:
    """Replace X[l-1] by X[l+1]; see `ops.advance`."""
    bits = coefficients.side_information_bits if side_information is not None else 0
    previous, current, update = previous.view(-1), current.view(-1), update.reshape(-1)
    for block in _blocks(previous):
        successor = previous[block]
        if coefficients.previous:
            remainder = multiply_(successor, coefficients.previous, keep_remainder=side_information is not None)
            if remainder is not None:
                assert side_information is not None
                pack(remainder, bits, _packed(side_information, bits, block))
        else:
            successor.zero_()
        _add_current(successor, coefficients, current[block], sign=1)
        successor.add_(quantise(update[block], coefficients.update))


def retreat(
    successor: Tensor, current: Tensor, coefficients: Coefficients, update: Tensor, side_information: Tensor | None
) -> Tensor | None:
    """Replace X[l+1] by X[l-1]; see `ops.retreat`."""
    possible = []
    bits = coefficients.side_information_bits
    successor, current, update = successor.view(-1), current.view(-1), update.reshape(-1)
    for block in _blocks(successor):
        predecessor = successor[block]
        predecessor.sub_(quantise(update[block], coefficients.update))
        _add_current(predecessor, coefficients, current[block], sign=-1)
        remainder = None
        if side_information is not None:
            remainder = unpack(_packed(side_information, bits, block), bits, predecessor.shape)
        possible.append(divide_(predecessor, coefficients.previous, remainder))
    known = [value for value in possible if value is not None]
    return torch.stack(known).all() if known else None


def read(states: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that `states` (int64, contiguous) holds, rounded to `dtype`."""
    values = torch.empty(states.shape, dtype=dtype, device=states.device)
    flat, flat_values = states.view(-1), values.view(-1)
    for block in _blocks(flat):
        read_into(flat[block], flat_values[block])
    return values


def _blocks(flat: Tensor) -> Iterator[slice]:
    """Yield the parts of a flat tensor, whole groups of packing each, that are taken at a time."""
    size = flat.numel()
    if flat.is_cpu:
        # A group of int64 takes 1 MB and fits into a core's cache; an operation divides its block among the threads.
        size = GROUP * torch.get_num_threads()
    for start in range(0, flat.numel(), max(size, 1)):
        yield slice(start, min(start + size, flat.numel()))


def _packed(side_information: Tensor, bits: int, block: slice) -> Tensor:
    """Return the bytes of a block."""
    start = packed_size(block.start, bits)
    return side_information[start : start + packed_size(block.stop - block.start, bits)]


def _add_current(target: Tensor, coefficients: Coefficients, current: Tensor, *, sign: int) -> None:
    """Add sign * round(b X[l]) to `target`."""
    factor = coefficients.current
    if factor.denominator == 1:
        if factor:
            target.add_(current, alpha=sign * factor.numerator)
        return
    product = current.clone()
    multiply_(product, factor, keep_remainder=False)
    target.add_(product, alpha=sign)
