"""One number by which tensors are held to be the same bits in the same places.

Tensors are taken as words of eight bytes, in the order in which they lie in memory. Every word is multiplied by an odd
number that depends on its place, and all are added up modulo 2**64. So one changed bit always shows, and so do words
that trade places and errors that would cancel in a plain sum.

To read large tensors no slower than a plain sum does, their words are first added up in columns: 128 rows or more of
521 words at a time. Two changes could cancel only in one such column, where words lie a multiple of 521 apart, a prime
that is no distance between tokens or heads.
"""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 128
COLUMNS = 521
FACTORS = 2**11
"""Words that are multiplied one by one."""


def checksum(*tensors: Tensor) -> Tensor:
    """Return the checksum of tensors of any dtype on one device, in this order: int64[], not waited for."""
    return checksum_of_parts([part for tensor in tensors for part in parts_of(tensor)])


def parts_of(tensor: Tensor) -> list[Tensor]:
    """Return what a checksum reads of a tensor: few words, in memory of their own unless the tensor is small."""
    words = _words(tensor.detach())
    if words.is_meta:
        return [words.new_empty(1)]  # sums of columns are too small to be planned for
    if words.numel() <= FACTORS:
        return [words]
    columns, rest = _columns(words)
    return [columns, rest.clone()]


def checksum_of_parts(parts: Iterable[Tensor]) -> Tensor:
    """Return the checksum, int64[], of what `parts_of` returned, in this order; there must be some."""
    words = torch.cat(list(parts))
    if words.is_meta:
        return words.new_empty(())
    while words.numel() > FACTORS:
        words = torch.cat(_columns(words))
    words = functional.pad(words, (0, FACTORS - words.numel()))
    factors = _factors(words.device)
    # The dot product of integers makes no temporary; there is one for CPUs alone.
    return torch.dot(words, factors) if words.is_cpu else (words * factors).sum()


def _columns(words: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the columns of more than `FACTORS` words, and a view of the few that fill no row."""
    blocks = max(1, words.numel() // (ROWS * COLUMNS))
    rows = words.numel() // (blocks * COLUMNS)
    whole = blocks * rows * COLUMNS
    return words[:whole].view(blocks, rows, COLUMNS).sum(1).view(-1), words[whole:]


def layout_of(tensor: Tensor) -> int:
    """Return a number that tells the order in which the elements of a tensor lie in memory from other orders."""
    return 0 if tensor.is_contiguous() else hash((_repeated(tensor), _order(tensor)))


def _words(tensor: Tensor) -> Tensor:
    """Return the words of a tensor, flat int64, in the order of its memory."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    tensor = tensor.resolve_neg()
    if not tensor.is_contiguous():
        for dimension, repeated in enumerate(_repeated(tensor)):
            if repeated:  # by `expand`: it is there once
                tensor = tensor.narrow(dimension, 0, 1)
        tensor = tensor.permute(_order(tensor)).contiguous()
    # Narrow dtypes are viewed as words only where they begin and end with one.
    if tensor.nbytes % 8 or tensor.storage_offset() * tensor.itemsize % 8:
        octets = tensor.clone().reshape(-1).view(torch.uint8)
        return functional.pad(octets, (0, -octets.numel() % 8)).view(torch.int64)
    return tensor.view(-1).view(torch.int64)


def _repeated(tensor: Tensor) -> tuple[bool, ...]:
    return tuple(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _order(tensor: Tensor) -> tuple[int, ...]:
    return tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def _odd_numbers() -> Tensor:
    """Return `FACTORS` odd numbers without a pattern."""
    generator = torch.Generator().manual_seed(2512_02056)
    return 2 * torch.randint(-(2**62), 2**62, (FACTORS,), dtype=torch.int64, generator=generator) + 1


_FACTORS = _odd_numbers()


@lru_cache(maxsize=16)
def _factors(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _FACTORS.to(device)
