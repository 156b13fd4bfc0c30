"""What one evaluation of a field saved for its gradient, to hold a later evaluation to it.

A gradient is a function of the graph, of the tensors that autograd saved in it, and of nothing else. The graph is that
of the forward pass in any case. So a backward pass is right to the bit where every tensor that it is handed has the
bits of the one that was saved. Two kinds are told apart:

* Leaves, which are weights in the main, are compared by their memory and their version, which PyTorch counts up
  whenever a tensor is written to. That is what stored activations are held to as well. Where a later evaluation uses
  another tensor in the place of a leaf, as `torch.func.functional_call` does, the bits of the two are compared.
* Of all others one `checksum` is taken, in both evaluations, but for those that follow from others (`Determined`).
  Small weights, from which others follow, and frozen ones that belong to no module, and may be gone by then, are among
  them.

So nothing rests on what the layer returned: errors that a zero multiplies are seen where they are saved.
"""

import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from revformers.activations.determined import SMALL_WEIGHT, Determined, Recipe
from revformers.activations.saved_bytes import plain_parts
from revformers.activations.situation import Situation
from revformers.activations.version import version_of
from revformers.exact.checksum import checksum, combined, layout_of


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
        if leaf is None or not self.is_unchanged():
            return False
        if _leaf_of(tensor) is leaf:
            # A weight that was frozen, or another view of it, is another part of the graph.
            return leaf.requires_grad == self.trains and _place_in_memory(tensor) == self._place
        saved = leaf.detach()
        if self._place is not None:
            shape, stride, offset = self._place
            saved = saved.as_strided(shape, stride, offset)
        if (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype) or layout_of(saved) != layout_of(tensor):
            return False
        return _checksum(saved) == _checksum(tensor).to(saved.device)


@dataclass(frozen=True)
class Saved:
    """What one saved tensor is held to.

    Attributes:
        leaf: the leaf that it is.
        recipe: how it follows from others.
        is_read: whether it is part of the checksum.

    """

    leaf: Leaf | None = None
    recipe: Recipe | None = None
    is_read: bool = False


class Evidence:
    """What the first evaluation of a field saved, in order.

    Args:
        hidden: the input of the field.
        situation: the modules of the field.

    """

    def __init__(self, hidden: Tensor, situation: Situation) -> None:
        self._situation = situation
        self._saved: list[Saved] = []
        self._determined = Determined(hidden)
        self._order: list[int] = []
        self._words = _Words()
        self._held: list[int] = []
        self._checksum: tuple[Tensor, int] | None = None

    def add(self, tensor: Tensor, *, held: bool) -> None:
        """Take note of the next tensor that autograd saves; one that is held stays, and is read later if at all."""
        leaf = _leaf_of(tensor)
        # Frozen weights may be brought to the device for every evaluation anew.
        if leaf is not None and not leaf.requires_grad and not self._situation.holds(leaf):
            leaf = None
        recipe = self._determined.recipe(tensor) if leaf is None else None
        is_read = recipe is None and (leaf is None or leaf.numel() <= SMALL_WEIGHT)
        number = len(self._saved)
        self._saved.append(Saved(None if leaf is None else Leaf(tensor, leaf), recipe, is_read))
        if is_read and held:
            self._held.append(number)
        elif is_read:
            self._words.add(number, tensor)

    def finish(self, unwritten: Collection[int] = ()) -> None:
        """End the first evaluation: keep numbers alone, and nothing of the tensors with these numbers."""
        self._order = self._determined.order
        self._determined.forget()
        for number in unwritten:
            self._saved[number] = Saved()
            self._words.leave_out(number)
        self._held = [number for number in self._held if number not in unwritten]
        del self._situation
        if not self._held:
            self._read_all()

    def read_held(self, held: Mapping[int, Tensor]) -> None:
        """Read the tensors that were held, by their number, before they are let go of."""
        for number in self._held:
            if number in held:
                self._words.add(number, held[number])
            else:
                self._saved[number] = replace(self._saved[number], is_read=False)
        if self._held:
            self._held.clear()
            self._read_all()

    def _read_all(self) -> None:
        self._checksum = self._words.checksum()
        self._words = _Words()

    def leaves(self) -> Iterator[Leaf]:
        """Yield the leaves that were saved."""
        return (saved.leaf for saved in self._saved if saved.leaf is not None)

    def again(self, hidden: Tensor) -> "LaterEvidence":
        """Return what a later evaluation at `hidden` is compared by."""
        return LaterEvidence(self._saved, self._order, self._checksum, hidden)


class LaterEvidence:
    """What a later evaluation saves, held against the first; made when the evaluation begins.

    Args:
        first: what every saved tensor is held to.
        order: in which order the operations ran that tensors follow from.
        expected: the checksum of all that the first evaluation read.
        hidden: the input of the field.

    Attributes:
        other_leaf: the first tensor that was used in the place of another leaf.
        is_made_otherwise: whether a tensor that follows from others was made in another way, or in another order.

    """

    def __init__(
        self, first: list[Saved], order: list[int], expected: tuple[Tensor, int] | None, hidden: Tensor
    ) -> None:
        self._first = first
        self._order = order
        self._expected = expected
        self._determined = Determined(hidden)
        self._number = 0
        self.is_made_otherwise = False
        self._words = _Words()
        self._equal: list[Tensor] = []
        self.other_leaf: Tensor | None = None

    def add(self, tensor: Tensor) -> None:
        """Compare the next tensor that autograd would save."""
        number, self._number = self._number, self._number + 1
        first = self._first[number] if number < len(self._first) else Saved()
        if first.leaf is not None:
            equal = first.leaf.equals(tensor)
            if isinstance(equal, Tensor):
                self._equal.append(equal)
            elif not equal and self.other_leaf is None:
                self.other_leaf = tensor
        elif self._determined.recipe(tensor) != first.recipe and first.recipe is not None:
            self.is_made_otherwise = True
        if first.is_read:
            self._words.add(number, tensor)

    def finish(self) -> None:
        """End the evaluation. The nodes of its graph keep the hooks, so that these must not keep the nodes."""
        if self._determined.order != self._order:
            self.is_made_otherwise = True
        self._determined.forget()

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
    """The checksum of many tensors, in order. Each is read when it is added: autograd frees it while a layer runs."""

    def __init__(self) -> None:
        self._checksums: dict[int, Tensor] = {}
        self._layouts: dict[int, tuple[int, ...]] = {}

    def add(self, number: int, tensor: Tensor) -> None:
        parts = list(_parts(tensor))
        self._checksums[number] = checksum(*parts)
        self._layouts[number] = tuple(map(layout_of, parts))

    def leave_out(self, number: int) -> None:
        self._checksums.pop(number, None)
        self._layouts.pop(number, None)

    def checksum(self) -> tuple[Tensor, int] | None:
        """Return the checksum of all that was added, int64[], and a number for its layout; None of nothing."""
        if not self._checksums:
            return None
        device = next(iter(self._checksums.values())).device
        together = combined([one.to(device) for one in self._checksums.values()])
        return together, hash(tuple(self._layouts.values()))


def _leaf_of(tensor: Tensor) -> Tensor | None:
    """Return the leaf of autograd that a saved tensor is, or is a view of; None for what was computed."""
    base = tensor._base
    origin = tensor if base is None else base
    return origin if isinstance(origin, nn.Parameter) or (origin.requires_grad and origin.is_leaf) else None


def _place_in_memory(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return where in its memory a view lies; None for what is no view."""
    return None if tensor._base is None else (tensor.shape, tensor.stride(), tensor.storage_offset())


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors with memory of their own that a tensor is made of."""
    for part in (tensor,) if type(tensor) in (Tensor, nn.Parameter) else plain_parts(tensor):
        if part.layout is torch.strided:
            yield part
        elif part.layout is torch.sparse_coo:
            yield from (part._indices(), part._values())
        else:
            columnar = part.layout in (torch.sparse_csc, torch.sparse_bsc)
            yield from (
                (part.ccol_indices(), part.row_indices()) if columnar else (part.crow_indices(), part.col_indices())
            )
            yield part.values()


def _checksum(tensor: Tensor) -> Tensor:
    return checksum(*_parts(tensor))
