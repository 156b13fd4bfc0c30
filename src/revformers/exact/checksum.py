"""One number by which tensors are held to be the same bits in the same places.

A tensor is taken as words of eight bytes, in the order in which they lie in memory. Every word is multiplied by an odd
number that depends on its place, and all are added up modulo 2**64. So one changed bit always shows, and so do words
that trade places and errors that would cancel in a plain sum.

To read large tensors about as fast as a plain sum does, 16 rows of 2,053 words are added up first, block by block, and
the sums of their columns are multiplied. Words that lie a multiple of 2,053 apart within such a block have one number:
that is a prime, so that no tokens or heads of 16 words or more are so far apart.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 16
COLUMNS = 2053
BLOCK = ROWS * COLUMNS
SMALL = 2**11
"""Words up to which PyTorch multiplies integers faster one by one than it makes room for the products."""


def checksum(*tensors: Tensor) -> Tensor:
    """Return the checksum of tensors of any dtype on one device, in this order: int64[], not waited for."""
    checksums = [_checksum(_words(tensor.detach())) for tensor in tensors]
    return checksums[0] if len(checksums) == 1 else combined(checksums)


def combined(checksums: list[Tensor]) -> Tensor:
    """Return one checksum, int64[], of one or more on one device, whose order counts."""
    return _weighted(torch.stack(checksums))


def layout_of(tensor: Tensor) -> int:
    """Return a number that tells the order in which the elements of a tensor lie in memory from other orders."""
    return 0 if tensor.is_contiguous() else hash((_repeated(tensor), _order(tensor)))


def _checksum(words: Tensor) -> Tensor:
    blocks = words.numel() // BLOCK
    if words.is_meta or not blocks:
        return _weighted(words)
    factors = _factors(words.device)
    columns = words[: blocks * BLOCK].view(blocks, ROWS, COLUMNS).sum(1)
    of_blocks = columns.mul_(factors[:COLUMNS]).sum(1)
    return _checksum(torch.cat([of_blocks, words[blocks * BLOCK :]]))


def _weighted(words: Tensor) -> Tensor:
    """Return the sum of fewer than `BLOCK` words times their numbers."""
    if words.is_meta:
        return words.new_empty(())
    factors = _factors(words.device)[: words.numel()]
    # The dot product of integers makes no temporary; there is one for CPUs alone.
    if words.is_cpu and words.numel() <= SMALL:
        return torch.dot(words, factors)
    return (words * factors).sum()


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
    """Return an odd number without a pattern for every word that is multiplied."""
    generator = torch.Generator().manual_seed(2512_02056)
    return 2 * torch.randint(-(2**62), 2**62, (BLOCK,), dtype=torch.int64, generator=generator) + 1


_FACTORS = _odd_numbers()


def constant_storage() -> torch.UntypedStorage:
    """Return the memory of the odd numbers on the CPU, which was there before any step."""
    return _FACTORS.untyped_storage()


@lru_cache(maxsize=16)
def _factors(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _FACTORS.to(device)
