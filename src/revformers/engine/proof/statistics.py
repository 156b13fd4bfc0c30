"""Tensors and numbers in which a layer may count what it sees: a second evaluation must not count a batch again.

`Evidence` is about what autograd saves, this about what a layer leaves behind. Buffers that the forward pass is seen to
write to are refused there. What else it writes to may be a place for notes, which a second evaluation fills with the
same numbers. So the backward pass looks at what became of it.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from revformers.engine.proof.evidence import SMALL_WEIGHT, checksum_of_all
from revformers.engine.proof.situation import Situation, tensor_attributes
from revformers.engine.tensors import is_plain, parts_in_memory


class Statistic(NamedTuple):
    """A tensor, or a number, in which a layer may have counted.

    Attributes:
        module: the module that holds it.
        name: what the module calls it.
        read: returns the tensor, or one that stands for the number; None where it is gone or cannot be read.
        counted: its checksum when the forward pass was over.

    """

    module: nn.Module
    name: str
    read: Callable[[], Tensor | None]
    counted: Tensor


def statistics_of(before: Situation) -> list[Statistic]:
    """Return what a layer wrote to in the forward pass, and small tensors that it may have written to unseen.

    Args:
        before: the modules as they were before the layer was evaluated.

    """
    found: list[tuple[nn.Module, str, Callable[[], Tensor | None]]] = [
        (module, name, partial(_readable, weakref.ref(tensor)))
        for module, name, tensor, is_written in before.tensors_besides_weights()
        if is_written or _is_small(tensor)
    ]
    found += [(module, name, partial(_attribute, module, name)) for module, name in before.reassigned()]
    return [
        Statistic(module, name, read, checksum_of_all(tensor))
        for module, name, read in found
        if (tensor := read()) is not None
    ]


class SecondCount:
    """Reads statistics before a second evaluation, when it is made, and after it."""

    def __init__(self, statistics: list[Statistic]) -> None:
        self._before = [
            (one, one.counted if (found := one.read()) is None else checksum_of_all(found)) for one in statistics
        ]

    def verdicts(self) -> Tensor | None:
        """Return whether each was left alone, or filled with what the forward pass filled it with.

        bool[statistics] on the device of the first; None of nothing.
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
    """Whether a tensor is looked at though no write to it was seen, as a write through `.data` is not."""
    return is_plain(tensor) and 0 < tensor.numel() <= SMALL_WEIGHT


def _readable(find: Callable[[], Tensor | None]) -> Tensor | None:
    """Return a tensor if it can be read: workspaces, and weights that are brought for their forward, may be freed."""
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
    """Return a tensor among the attributes of a module, or a tensor that stands for a number."""
    value = vars(module).get(name)
    if type(value) in (int, float):
        return torch.tensor(hash(value), device="cpu")  # whatever the default device is
    return _readable(partial(dict(tensor_attributes(module)).get, name))
