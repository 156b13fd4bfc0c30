"""What one evaluation of a field saved for its gradient, to hold a later evaluation to it.

A gradient is a function of the graph, of the tensors that autograd saved in it, and of nothing else. The graph is that
of the forward pass in any case. So a backward pass is right to the bit where every tensor that it is handed has the
bits of the one that was saved. Two kinds are told apart:

* Leaves, which are weights in the main, are compared by their memory and their version, which PyTorch counts up
  whenever a tensor is written to. That is what stored activations are held to as well. Where a later evaluation uses
  another tensor in the place of a leaf, as `torch.func.functional_call` does, the bits of the two are compared.
* Of all others one `checksum` is taken, in both evaluations, but for those that follow from others (`Determined`).

So nothing rests on what the layer returned: errors that a zero multiplies are seen where they are saved.
"""

import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from revformers.activations.determined import Determined
from revformers.activations.saved_bytes import plain_parts
from revformers.activations.version import version_of
from revformers.exact.checksum import checksum, checksum_of_parts, layout_of, parts_of


class Leaf:
    """A leaf of autograd that an evaluation saved, or a view of one.

    Attributes:
        reference: the leaf itself, not the view of it.
        trains: whether it requires a gradient.

    """

    __slots__ = ("_place", "_storages", "_version", "reference", "trains")

    def __init__(self, tensor: Tensor, leaf: Tensor) -> None:
        self.reference = weakref.ref(leaf)
        self.trains = leaf.requires_grad
        self._version = version_of(leaf)
        # A weak reference, like a strong one, keeps the number of a block from being given to another.
        self._storages = [StorageWeakRef(part.untyped_storage()) for part in _parts(leaf)]
        self._place = _place_in_memory(tensor)

    def is_unchanged(self) -> bool:
        """Whether the leaf has its memory and was not written to since; one that is gone counts as unchanged."""
        leaf = self.reference()
        return leaf is None or (
            version_of(leaf) == self._version
            and [part.untyped_storage()._cdata for part in _parts(leaf)] == [known.cdata for known in self._storages]
        )

    def equals(self, tensor: Tensor) -> bool | Tensor:
        """Whether `tensor` is what was saved, or another tensor with the same bits: bool, or bool[] on its device."""
        leaf = self.reference()
        if leaf is None:
            # Frozen weights may be brought to the device for every evaluation anew. Then the results have to tell.
            return not self.trains
        if not self.is_unchanged():
            return False
        if _leaf_of(tensor) is leaf and leaf.requires_grad == self.trains and _place_in_memory(tensor) == self._place:
            return True
        if isinstance(leaf, nn.Parameter) and _leaf_of(tensor) is leaf:
            return False
        saved = leaf.detach()
        if self._place is not None:
            shape, stride, offset = self._place
            saved = saved.as_strided(shape, stride, offset)
        return _checksum(saved) == _checksum(tensor).to(saved.device)


class Evidence:
    """What the first evaluation of a field saved, in order.

    Args:
        hidden: the input of the field.

    """

    def __init__(self, hidden: Tensor) -> None:
        self._saved: list[Leaf | bool] = []
        """For every saved tensor what it is held to: a leaf; True: the checksum of all; False: what it follows from."""
        self._determined: Determined | None = Determined(hidden)
        self._words = _Words()
        self._held: list[int] = []
        self._checksum: tuple[Tensor, int] | None = None

    def add(self, tensor: Tensor, *, held: bool) -> None:
        """Take note of the next tensor that autograd saves; one that is held stays, and is read later if at all."""
        assert self._determined is not None
        leaf = _leaf_of(tensor)
        if leaf is not None:
            self._saved.append(Leaf(tensor, leaf))
            return
        is_compared = not self._determined.is_so(tensor)
        self._saved.append(is_compared)
        if is_compared and held:
            self._held.append(len(self._saved) - 1)
        elif is_compared:
            self._words.add(len(self._saved) - 1, tensor)

    def finish(self, unwritten: Collection[int] = ()) -> None:
        """End the first evaluation: keep numbers alone, and nothing of the tensors with these numbers."""
        self._determined = None
        for number in unwritten:
            self._saved[number] = False
            self._words.leave_out(number)
        self._held = [number for number in self._held if number not in unwritten]
        self._checksum = self._words.checksum()
        self._words = _Words()

    def read_held(self, held: Mapping[int, Tensor]) -> None:
        """Read the tensors that were held, by their number, before they are let go of."""
        for number in self._held:
            self._saved[number] = number in held
            if number in held:
                self._words.add(number, held[number])
        self._held.clear()
        self._checksum = self._checksum or self._words.checksum()
        self._words = _Words()

    def leaves(self) -> Iterator[Leaf]:
        """Yield the leaves that were saved."""
        return (saved for saved in self._saved if isinstance(saved, Leaf))

    def again(self) -> "LaterEvidence":
        """Return what a later evaluation is compared by."""
        return LaterEvidence(self._saved, self._checksum)


class LaterEvidence:
    """What a later evaluation saves, held against the first.

    Args:
        first: what every saved tensor is held to; see `Evidence`.
        expected: the checksum of all that the first evaluation read.

    Attributes:
        other_leaf: the first tensor that was used in the place of another leaf.

    """

    def __init__(self, first: list[Leaf | bool], expected: tuple[Tensor, int] | None) -> None:
        self._first = first
        self._expected = expected
        self._number = 0
        self._words = _Words()
        self._equal: list[Tensor] = []
        self.other_leaf: Tensor | None = None

    def add(self, tensor: Tensor) -> None:
        """Compare the next tensor that autograd would save."""
        first = self._first[self._number] if self._number < len(self._first) else False
        self._number += 1
        if isinstance(first, Leaf):
            equal = first.equals(tensor)
            if isinstance(equal, Tensor):
                self._equal.append(equal)
            elif not equal and self.other_leaf is None:
                self.other_leaf = tensor
        elif first:
            self._words.add(self._number, tensor)

    def equal(self) -> Tensor | None:
        """Return whether all that was read is the same, bool[] on the device of the tensors; None if nothing was."""
        found = self._words.checksum()
        if found is not None and self._expected is not None:
            same = found[0] == self._expected[0]
            self._equal.append(same if found[1] == self._expected[1] else torch.zeros_like(same))
        if len(self._equal) < 2:
            return self._equal[0] if self._equal else None
        return torch.stack([equal.to(self._equal[0].device) for equal in self._equal]).all()


class _Words:
    """What is read of many tensors, in order, when they are added.

    Holds no large tensor: autograd frees activations while a layer runs.
    """

    def __init__(self) -> None:
        self._parts: dict[int, list[Tensor]] = {}
        self._layouts: dict[int, tuple[int, ...]] = {}

    def add(self, number: int, tensor: Tensor) -> None:
        parts = list(_parts(tensor))
        self._parts[number] = [words for part in parts for words in parts_of(part)]
        self._layouts[number] = tuple(map(layout_of, parts))

    def leave_out(self, number: int) -> None:
        self._parts.pop(number, None)
        self._layouts.pop(number, None)

    def checksum(self) -> tuple[Tensor, int] | None:
        """Return the checksum of all that was added, int64[], and a number for its layout; None of nothing."""
        parts = [words for some in self._parts.values() for words in some]
        return (checksum_of_parts(parts), hash(tuple(self._layouts.values()))) if parts else None


def _leaf_of(tensor: Tensor) -> Tensor | None:
    """Return the leaf of autograd that a saved tensor is, or is a view of; None for what was computed."""
    base = tensor._base
    origin = tensor if base is None else base
    return origin if isinstance(origin, nn.Parameter) or (origin.requires_grad and origin.is_leaf) else None


def _place_in_memory(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return where in its memory a view lies; None for what is no view."""
    return None if tensor._base is None else (tensor.shape, tensor.stride(), tensor.storage_offset())


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    return iter((tensor,)) if type(tensor) in (Tensor, nn.Parameter) else plain_parts(tensor)


def _checksum(tensor: Tensor) -> Tensor:
    return checksum(*_parts(tensor))
