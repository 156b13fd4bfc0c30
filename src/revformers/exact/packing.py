"""Small integers packed to the bit.

Values of `bits` bits are cut into fields of 8, 4, 2 or 1 bits (3 = 2 + 1), and a byte holds 8 / width of them. The
values that share a byte lie an eighth (a quarter, a half) of the tensor apart, so that packing is a few whole-row
operations instead of strided ones.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional


def packed_size(number_of_values: int, bits: int) -> int:
    """Return the bytes that `number_of_values` values of `bits` bits take: bits / 8 each, values padded to eights."""
    return -(-number_of_values // 8) * bits


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack `values`, uint8 of any shape below 2**bits with bits from 1 to 8, into uint8[packed_size]."""
    assert values.dtype == torch.uint8
    assert 1 <= bits <= 8
    flat = values.reshape(-1)
    flat = functional.pad(flat, (0, -flat.numel() % 8))
    return torch.cat([_pack_field(flat, width, shift) for width, shift in _fields(bits)])


def unpack(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """Undo `pack`: return uint8 of the given shape."""
    number_of_values = shape.numel()
    padded = -(-number_of_values // 8) * 8
    values = torch.zeros(padded, dtype=torch.uint8, device=packed.device)
    offset = 0
    for width, shift in _fields(bits):
        rows = values.view(8 // width, -1)
        field = packed[offset : offset + rows.shape[1]]
        offset += rows.shape[1]
        for index, row in enumerate(rows):
            row |= ((field >> (index * width)) & (2**width - 1)) << shift
    return values[:number_of_values].view(shape)


def _fields(bits: int) -> Iterator[tuple[int, int]]:
    """Yield the width and the position of the fields that `bits` bits are cut into."""
    shift = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            yield width, shift
            shift += width


def _pack_field(flat: Tensor, width: int, shift: int) -> Tensor:
    field = ((flat >> shift) & (2**width - 1)).view(8 // width, -1)
    packed = field[0].clone()
    for index, row in enumerate(field[1:], start=1):
        packed |= row << (index * width)
    return packed
