"""Tensors in which a layer may count what it sees: its second evaluation must not count the same batch again.

`Evidence` is about what autograd saves, this about what a layer leaves behind. Buffers that the forward pass is seen to
write to are refused there. What else it writes to may be a place for notes, which a second evaluation fills with the
same numbers. So the backward pass looks at what became of it.
"""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor, nn

from revformers.activations.evidence import SMALL_WEIGHT, checksum_of_all
from revformers.activations.saved_bytes import is_plain, parts_in_memory
from revformers.activations.situation import Situation


class Statistic(NamedTuple):
    """A tensor in which a layer may have counted.

    Attributes:
        module: the module that holds it.
        name: what the module calls it.
        reference: the tensor.
        counted: its checksum when the forward pass was over.

    """

    module: nn.Module
    name: str
    reference: "weakref.ref[Tensor]"
    counted: Tensor


def statistics_of(before: Situation) -> list[Statistic]:
    """Return what a layer wrote to in the forward pass, and small tensors that it may have written to unseen.

    Args:
        before: the modules as they were before the layer was evaluated.

    """
    return [
        Statistic(module, name, weakref.ref(tensor), checksum_of_all(tensor))
        for module, name, tensor, is_written in before.tensors_besides_weights()
        if (is_written or _is_small(tensor)) and _is_there(tensor)
    ]


class SecondCount:
    """What is found in statistics before and after a second evaluation; made before it."""

    def __init__(self, statistics: list[Statistic]) -> None:
        self._before = [
            (statistic, tensor, checksum_of_all(tensor))
            for statistic in statistics
            if (tensor := statistic.reference()) is not None and _is_there(tensor)
        ]

    def verdicts(self) -> Tensor | None:
        """Return whether each was left alone, or filled with what the forward pass filled it with.

        bool[statistics] on the device of the first; None of nothing.
        """
        if not self._before:
            return None
        device = self._before[0][2].device
        now, before, counted = (
            torch.stack([number.to(device) for number in numbers])
            for numbers in zip(
                *(
                    (checksum_of_all(tensor) if _is_there(tensor) else before, before, one.counted)
                    for one, tensor, before in self._before
                ),
                strict=True,
            )
        )
        return (now == before) | (now == counted)

    def first_of(self, verdicts: Tensor) -> Statistic:
        """Return the first statistic for which a verdict is false."""
        return self._before[verdicts.tolist().index(False)][0]


def _is_small(tensor: Tensor) -> bool:
    """Whether a tensor is looked at though no write to it was seen, as a write through `.data` is not."""
    return is_plain(tensor) and 0 < tensor.numel() <= SMALL_WEIGHT


def _is_there(tensor: Tensor) -> bool:
    """Whether a tensor can be read: workspaces, and weights that are brought for their forward, may be freed."""
    if tensor.is_quantized or tensor.is_mkldnn or (tensor.is_nested and tensor.layout is torch.strided):
        return False
    return not any(
        part.is_meta or (part.numel() and not part.untyped_storage().nbytes()) for part in parts_in_memory(tensor)
    )
