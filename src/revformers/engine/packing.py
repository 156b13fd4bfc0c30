"""Small integers packed to the bit.

Values of `bits` bits are cut into fields of 8, 4, 2 or 1 bits (3 = 2 + 1), and a byte holds 8 / width of them. The
values that share a byte lie an eighth (a quarter, a half) of a group apart, so that packing is a few operations on
whole rows instead of strided ones, and on eight values at a time where a row holds a multiple of eight: no value
leaves its byte. Groups of fixed size follow one another, the last may be shorter: a tensor can be packed in pieces of
whole groups, in any order and by any kernel.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 2**17
"""Values in a group: eight rows."""


def packed_size(number_of_values: int, bits: int) -> int:
    """Return the bytes that `number_of_values` values of `bits` bits take: bits / 8 each, values padded to eights."""
    return -(-number_of_values // 8) * bits


def pack(values: Tensor, bits: int, out: Tensor) -> None:
    """Pack `values`, uint8 of any shape below 2**bits with bits from 1 to 8, into `out`, uint8[packed_size]."""
    assert values.dtype == torch.uint8
    assert 1 <= bits <= 8
    flat = values.reshape(-1)
    flat = functional.pad(flat, (0, -flat.numel() % 8)) if flat.numel() % 8 else flat
    for rows, packed in _groups(flat, out, bits):
        for width, shift in _fields(bits):
            field = rows if width == bits else (rows >> shift) & _repeated(2**width - 1, rows.dtype)
            target = packed[:, shift : shift + width]
            first, *others = field.unflatten(1, (8 // width, width)).unbind(1)
            target.copy_(first)
            for index, row in enumerate(others, start=1):
                target |= row << (index * width)


def unpack(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """Undo `pack`: return uint8 of the given shape."""
    number_of_values = shape.numel()
    values = torch.empty(-(-number_of_values // 8) * 8, dtype=torch.uint8, device=packed.device)
    for rows, bytes_ in _groups(values, packed, bits):
        for width, shift in _fields(bits):
            field = bytes_[:, shift : shift + width]
            mask = _repeated(2**width - 1, rows.dtype)
            for index, row in enumerate(rows.unflatten(1, (8 // width, width)).unbind(1)):
                if not shift:
                    torch.bitwise_and(field >> (index * width), mask, out=row)
                else:
                    row |= ((field >> (index * width)) & mask) << shift
    return values[:number_of_values].view(shape)


def _groups(flat: Tensor, packed: Tensor, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the whole groups, then the rest: values (groups, 8, lanes) with their bytes (groups, bits, lanes)."""
    whole = flat.numel() // GROUP * GROUP
    for values, lanes, start in ((flat[:whole], GROUP // 8, 0), (flat[whole:], (flat.numel() - whole) // 8, whole)):
        if values.numel():
            bytes_ = packed[start // 8 * bits : (start + values.numel()) // 8 * bits]
            kind = torch.int64 if lanes % 8 == 0 else torch.uint8
            yield values.view(-1, 8, lanes).view(kind), bytes_.view(-1, bits, lanes).view(kind)


def _repeated(byte: int, kind: torch.dtype) -> int:
    """Return the number of dtype uint8 or int64 whose bytes are all `byte`."""
    return int.from_bytes(kind.itemsize * [byte], "little", signed=kind.is_signed)


def _fields(bits: int) -> Iterator[tuple[int, int]]:
    """Yield the width and the position of the fields that `bits` bits are cut into."""
    shift = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            yield width, shift
            shift += width
