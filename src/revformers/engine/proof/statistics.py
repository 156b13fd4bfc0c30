"""Detection of layers that accumulate statistics, which a second evaluation would count twice.

`Evidence` covers the tensors that autograd saves; this file covers the side effects of a layer. A forward pass that is
seen to write to a buffer is refused at once. Other tensors and numbers that it writes to may be scratch space, which a
second evaluation fills with the same numbers, so the backward pass checks their content.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from revformers.engine.proof.checksum import checksum_of_all
from revformers.engine.proof.evidence import SMALL_WEIGHT
from revformers.engine.proof.situation import Situation, numbers_in, tensor_attributes
from revformers.engine.tensors import is_plain, parts_in_memory


class Statistic(NamedTuple):
    """A tensor, or an attribute with numbers, in which a layer may have counted.

    Attributes:
        module: the module that holds it.
        name: its name in the module.
        read: returns the tensor, or one made of the numbers; None if it no longer exists or cannot be read.
        counted: its checksum at the end of the forward pass.

    """

    module: nn.Module
    name: str
    read: Callable[[], Tensor | None]
    counted: Tensor


def statistics_of(before: Situation) -> list[Statistic]:
    """Return what a layer wrote to in the forward pass, and small tensors that it may have written to unnoticed.

    Args:
        before: the record of the modules before the layer was evaluated.

    """
    found: list[tuple[nn.Module, str, Callable[[], Tensor | None]]] = [
        (module, name, partial(_readable, weakref.ref(tensor)))
        for module, name, tensor, is_written in before.tensors_besides_weights()
        if is_written or _is_small(tensor)
    ]
    found += [(module, name, partial(_attribute, module, name)) for module, name in before.reassigned_tensors()]
    found += [(module, name, partial(_numbers, module, name)) for module, name in before.reassigned_numbers()]
    return [
        Statistic(module, name, read, checksum_of_all(tensor))
        for module, name, read in found
        if (tensor := read()) is not None
    ]


class SecondCount:
    """Reads statistics before a second evaluation, when it is created, and after it."""

    def __init__(self, statistics: list[Statistic]) -> None:
        self._before = [
            (one, one.counted if (found := one.read()) is None else checksum_of_all(found)) for one in statistics
        ]

    def verdicts(self) -> Tensor | None:
        """Return whether each is unchanged, or has the content that the forward pass gave it.

        bool[statistics] on the device of the first; None without statistics.
        """
        if not self._before:
            return None
        now = [one.counted if (found := one.read()) is None else checksum_of_all(found) for one, _ in self._before]
        after, before, counted = (
            torch.stack([number.to(now[0].device) for number in numbers])
            for numbers in (now, [before for _, before in self._before], [one.counted for one, _ in self._before])
        )
        return (after == before) | (after == counted)

    def first_of(self, verdicts: Tensor) -> Statistic:
        """Return the first statistic for which a verdict is false."""
        return self._before[verdicts.tolist().index(False)][0]


def _is_small(tensor: Tensor) -> bool:
    """Whether to check a tensor although no write to it was seen, because writes through `.data` are not seen."""
    return is_plain(tensor) and 0 < tensor.numel() <= SMALL_WEIGHT


def _readable(find: Callable[[], Tensor | None]) -> Tensor | None:
    """Return a tensor if it can be read; the memory of workspaces and offloaded weights may be freed."""
    tensor = find()
    if tensor is None or tensor.is_quantized or tensor.is_mkldnn:
        return None
    if tensor.is_nested and tensor.layout is torch.strided:
        return None
    empty = any(
        part.is_meta or (part.numel() and not part.untyped_storage().nbytes()) for part in parts_in_memory(tensor)
    )
    return None if empty else tensor


def _attribute(module: nn.Module, name: str) -> Tensor | None:
    """Return a tensor among the attributes of a module."""
    return _readable(partial(dict(tensor_attributes(module)).get, name))


def _numbers(module: nn.Module, name: str) -> Tensor:
    """Return a tensor that identifies the numbers in an attribute of a module."""
    # The hash of a text, because -1 and -2 have the same one, and each NaN another.
    numbers = repr([(key, _in_hexadecimal(number)) for key, number in numbers_in(vars(module).get(name))])
    return torch.tensor(hash(numbers), device="cpu")  # regardless of the default device


def _in_hexadecimal(number: float | None) -> str:
    """Return a number as text; Python refuses to write one of very many digits in decimal."""
    if number is None:
        return ""
    return number.hex() if isinstance(number, float) else hex(number)
