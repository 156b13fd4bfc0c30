"""A checksum that shows whether tensors have the same bits in the same places.

The memory of a tensor is read as numbers of four bytes. Each is multiplied by an odd number of eight bytes that depends
on its place, and the products are added modulo 2**64. So a change of one number all but certainly changes the checksum,
and numbers that change places, or errors that would cancel in a plain sum, change it as well.

Large tensors are condensed first, so that they are read about as fast as a plain sum reads them: their words of eight
bytes lie in blocks of 129 rows of 2,053 words, and the sums of the columns represent a block. Within a block, changes
cancel if words that are a multiple of 2,053 apart change places, or change by the same amount up and down. Of the
highest bits of the words, which are the signs of a float64, of every second float32 and of every fourth bfloat16, an
even number of changes cancels in a column. Two choices make such changes unlikely. 2,053 is a prime, so tokens or heads
are a multiple of it apart only if 2,053 of them lie between, and if each has 129 words or more, no block holds so many.
And 129 is odd, so nothing cancels if all words change alike, as they do when a tensor is negated.
"""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from revformers.engine.tensors import parts_in_memory

ROWS = 129
COLUMNS = 2053
BLOCK = ROWS * COLUMNS
FEW = 2**6
"""Largest number of words of a tensor that is not condensed, so that many small tensors are multiplied at once."""
_MANY = 2**13
"""Largest number of words whose halves all have factors of their own."""


def checksum(*tensors: Tensor) -> Tensor:
    """Return the checksum of tensors of any dtype on one device, in this order: int64[], without synchronising it."""
    return checksum_of(condensed(tensor) for tensor in tensors)


def checksum_of_all(tensor: Tensor) -> Tensor:
    """Return the checksum of a tensor of any kind, such as a sparse one, int64[], without synchronising the device."""
    return checksum(*parts_in_memory(tensor))


def condensed(tensor: Tensor, few: int = FEW) -> Tensor:
    """Return a copy of the words that represent a tensor of any dtype in a checksum: int64, one for every block.

    A tensor of at most `few` words represents itself.
    """
    words = _words(tensor.detach())
    if words.is_meta:
        return words[:1]
    if words.numel() <= few:
        return words.clone()
    return _weighted(_sums_of_columns(words) if words.numel() > _MANY else words.view(1, -1))


def checksum_of(parts: Iterable[Tensor]) -> Tensor:
    """Return the checksum of what `condensed` returned for tensors on one device, in this order: int64[]."""
    words = _joined(list(parts))
    while words.numel() > _MANY and not words.is_meta:
        words = _weighted(_sums_of_columns(words))
    return _weighted(words)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def layout_of(tensor: Tensor) -> int:
    """Return a number that identifies the order of a tensor's elements in memory; 0 if it is contiguous."""
    return 0 if tensor.is_contiguous() else hash((_repeated(tensor), _order(tensor)))


def _sums_of_columns(words: Tensor) -> Tensor:
    """Return the sums of the columns of all blocks of more than `_MANY` words: int64[blocks, `COLUMNS`].

    After the blocks of `ROWS` rows come one of fewer rows, an odd number, and two of one row each, which reach the last
    word and may begin in the block before.
    """
    sums = []
    whole, rest = divmod(words.numel(), BLOCK)
    if whole:
        sums.append(words[: whole * BLOCK].view(whole, ROWS, COLUMNS).sum(1))
    if rest >= COLUMNS:
        rows = (rest // COLUMNS - 1) | 1
        sums.append(words[whole * BLOCK :][: rows * COLUMNS].view(1, rows, COLUMNS).sum(1))
    if rest:
        sums.append(words[-2 * COLUMNS :].view(2, COLUMNS))
    return _joined(sums)


def _weighted(words: Tensor) -> Tensor:
    """Return the sums of the last dimension, of which each half of a word is multiplied by a number of its own."""
    if words.is_meta:
        return words.sum(-1)
    halves = words.view(torch.int32)
    factors = _factors(words.device)[: halves.shape[-1]]
    if words.is_cpu:  # where a product of two dtypes first makes a copy of the narrower in memory of its own
        return halves.to(torch.int64).mul_(factors).sum(-1)
    return (halves * factors).sum(-1)


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
    if tensor.numel() == 1:  # it is contiguous with any strides, but a view of another dtype needs a stride of 1
        tensor = tensor.as_strided((1,), (1,))
    # Narrow dtypes are viewed as words only where they begin and end with one.
    if tensor.nbytes % 8 or tensor.storage_offset() * tensor.itemsize % 8:
        octets = tensor.view(-1).view(torch.uint8)
        return functional.pad(octets, (0, -octets.numel() % 8)).view(torch.int64)
    return tensor.view(-1).view(torch.int64)


def _repeated(tensor: Tensor) -> tuple[bool, ...]:
    return tuple(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _order(tensor: Tensor) -> tuple[int, ...]:
    return tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def _odd_numbers() -> Tensor:
    """Return an odd number without a pattern for every half of a word."""
    generator = torch.Generator().manual_seed(2512_02056)
    return 2 * torch.randint(-(2**62), 2**62, (2 * _MANY,), dtype=torch.int64, generator=generator) + 1


_FACTORS = _odd_numbers()


def constant_storage() -> torch.UntypedStorage:
    """Return the memory of the odd numbers on the CPU, which is allocated before any step."""
    return _FACTORS.untyped_storage()


@lru_cache(maxsize=16)
def _factors(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _FACTORS.to(device)
