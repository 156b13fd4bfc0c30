"""The steps of two states in PyTorch's own operations, for every device; the reference for all other kernels.

A step is several operations, each a pass over the states. On a CPU they run block by block, so that each operation
finds its input in the processor's cache and no temporary has the size of a state. Large temporaries cost more than the
arithmetic, because the C library requests every one above 32 MB from the operating system.
"""

from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor

from revformers.dynamics.base import Coefficients
from revformers.engine.fixed_point import FixedPoint, read_into
from revformers.engine.packing import GROUP, pack, packed_size, unpack
from revformers.engine.rational import divide_, multiply_, whole_and_rest


def advance(
    previous: Tensor,
    current: Tensor,
    coefficients: Coefficients,
    update: Tensor,
    side_information: Tensor | None,
    fraction_bits: int,
) -> None:
    """Replace X[l-1] by X[l+1]; see `ops.advance`."""
    bits = coefficients.side_information_bits if side_information is not None else 0
    fixed_point = FixedPoint(previous.dtype, fraction_bits)
    previous, current, update = previous.view(-1), current.view(-1), update.reshape(-1)
    for block in _blocks(previous):
        states = previous[block]
        successor = _wide_enough(states, coefficients.previous)
        if coefficients.previous:
            remainder = multiply_(successor, coefficients.previous, keep_remainder=side_information is not None)
            if remainder is not None:
                assert side_information is not None
                pack(remainder, bits, _packed(side_information, bits, block))
        else:
            successor.zero_()
        _add_current(successor, coefficients.current, current[block], sign=1)
        successor.add_(fixed_point.quantise(update[block], coefficients.update))
        if successor is not states:
            states.copy_(successor)


def retreat(
    successor: Tensor,
    current: Tensor,
    coefficients: Coefficients,
    update: Tensor,
    side_information: Tensor | None,
    fraction_bits: int,
) -> Tensor | None:
    """Replace X[l+1] by X[l-1]; see `ops.retreat`."""
    possible = []
    bits = coefficients.side_information_bits
    fixed_point = FixedPoint(successor.dtype, fraction_bits)
    successor, current, update = successor.view(-1), current.view(-1), update.reshape(-1)
    for block in _blocks(successor):
        states = successor[block]
        predecessor = _wide_enough(states, coefficients.previous)
        predecessor.sub_(fixed_point.quantise(update[block], coefficients.update))
        _add_current(predecessor, coefficients.current, current[block], sign=-1)
        remainder = None
        if side_information is not None:
            remainder = unpack(_packed(side_information, bits, block), bits, predecessor.shape)
        possible.append(divide_(predecessor, coefficients.previous, remainder))
        if predecessor is not states:
            states.copy_(predecessor)
    known = [value for value in possible if value is not None]
    return torch.stack(known).all() if known else None


def read(states: Tensor, dtype: torch.dtype, fraction_bits: int) -> Tensor:
    """Return the numbers that `states` (integers, contiguous) hold, rounded to `dtype`."""
    values = torch.empty(states.shape, dtype=dtype, device=states.device)
    flat, flat_values = states.view(-1), values.view(-1)
    for block in _blocks(flat):
        read_into(flat[block], flat_values[block], fraction_bits)
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


def _wide_enough(states: Tensor, factor: Fraction) -> Tensor:
    """Return `states`, or a copy in 64 bits if the products by `factor` may not fit into 32.

    Whole multiples are added to other terms before anything is divided, so they may wrap: the sum is right modulo 2**32
    if it is within the range. n X is divided by d, and must not.
    """
    if states.dtype == torch.int64 or factor.denominator == 1 or abs(factor.numerator) == 1:
        return states
    return states.to(torch.int64)


def _add_current(target: Tensor, factor: Fraction, current: Tensor, *, sign: int) -> None:
    """Add sign * round(b X[l]) to `target`."""
    whole, rest = whole_and_rest(factor)
    if whole:
        target.add_(current, alpha=sign * whole)
    if rest:
        product = _wide_enough(current, rest)
        product = product.clone() if product is current else product
        multiply_(product, rest, keep_remainder=False)
        target.add_(product, alpha=sign)
