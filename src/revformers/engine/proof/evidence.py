"""Evidence of what one evaluation of a field saved for its gradient; a later evaluation is compared with it.

A gradient depends only on the graph and on the tensors that autograd saved in it. The graph is always that of the
forward pass. So a backward pass is exact to the bit if every tensor that it receives has the bits of the tensor that
was saved. There are two kinds of saved tensors:

* Leaves, most of which are weights, are compared by their memory and by their version, which PyTorch increments when a
  tensor is written to. Autograd checks stored activations in the same way. If a later evaluation uses another tensor
  instead of a leaf, as `torch.func.functional_call` does, the bits of the two are compared.
* All other tensors are read, in both evaluations, and one `checksum` is taken of them. Tensors that follow from others
  (`Determined`) need not be read. Three kinds of weights are read as well: small ones, from which other tensors follow,
  frozen ones that belong to no module and may be gone by the time of the backward pass, and those of ZeRO-3, which are
  gathered into other memory for every evaluation.

The comparison does not rely on the output of the layer: an error that is multiplied by zero shows in a saved tensor.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from revformers.engine.proof.checksum import FEW, checksum_of, checksum_of_all, condensed, layout_of
from revformers.engine.proof.determined import INPUT, Derivation, Determined, last_tokens
from revformers.engine.proof.situation import Situation
from revformers.engine.proof.unwritten import may_be_unwritten
from revformers.engine.tensors import parts_in_memory
from revformers.engine.ticket import Packed
from revformers.private_api import StorageWeakRef, base_of, is_partitioned, storage_number, version_of

SMALL_WEIGHT = 2**14
"""Largest weight, in elements, that is also compared by its bits: those of norms, from which others follow."""

WORDS_OF_LAST_TOKENS = 2**12
"""Most words of the last tokens of a tensor that enter the checksum uncondensed."""

_Checksum = tuple[Tensor, tuple[Any, ...]]
"""What `_Words.checksum` returns."""


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
        parts = () if is_partitioned(leaf) else parts_in_memory(leaf)
        # A weak reference, like a strong one, keeps the number of a block from being given to another.
        self._storages = [StorageWeakRef(part.untyped_storage()) for part in parts]
        self._place = _place_in_memory(tensor)

    def is_unchanged(self) -> bool:
        """Whether the leaf has the same memory and was not written to; a leaf that no longer exists is unchanged."""
        leaf = self.reference()
        return leaf is None or (
            version_of(leaf) == self._version
            and (
                is_partitioned(leaf)
                or [storage_number(part.untyped_storage()) for part in parts_in_memory(leaf)]
                == [known.cdata for known in self._storages]
            )
        )

    def equals(self, tensor: Tensor) -> bool | Tensor:
        """Whether `tensor` is the saved one, or another tensor with the same bits: bool, or bool[] on its device."""
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
        return checksum_of_all(saved) == checksum_of_all(tensor).to(saved.device)


@dataclass(frozen=True)
class Saved:
    """How one saved tensor is compared.

    Attributes:
        leaf: the leaf, if it is one; otherwise None.
        derivation: how it follows from others, or None; of such a tensor only the last token of each sequence is read.
        is_read: whether all of it, or the written part, is read.
        written: number of written elements in the last dimension; None for all.

    """

    leaf: Leaf | None = None
    derivation: Derivation | None = None
    is_read: bool = False
    written: int | None = None

    @property
    def sources(self) -> tuple[int, ...]:
        """The numbers of the tensors that it follows from."""
        return () if self.derivation is None else self.derivation.sources

    @property
    def is_compared(self) -> bool:
        """Whether it is compared by its bits or those of others, not only by its version."""
        return self.derivation is not None or (self.is_read and self.written is None)


class Evidence:
    """The tensors that the first evaluation of a field saved, in order.

    Args:
        hidden: the input of the field.
        situation: the modules of the field.

    Attributes:
        evaluation: the identity of the evaluation in its `Packed` objects.

    """

    def __init__(self, hidden: Tensor, situation: Situation) -> None:
        self._situation = situation
        self._saved: list[Saved] = []
        self._determined = Determined(hidden)
        self._device = hidden.device
        self.evaluation = self._determined.evaluation
        self._words = _Words()
        self._deferred: dict[int, Tensor] = {}
        self._checksum: _Checksum | None = None

    def add(self, tensor: Tensor) -> None:
        """Read the next tensor that autograd saves, which is freed while the layer runs."""
        leaf = _leaf_of(tensor)
        # Frozen weights may be copied to the device again for every evaluation.
        if leaf is not None and not leaf.requires_grad and not self._situation.owns(leaf):
            leaf = None
        derivation = self._derivation(tensor)
        by_memory = leaf is not None and leaf.numel() > SMALL_WEIGHT and not is_partitioned(leaf)
        is_read = derivation is None and not by_memory
        saved = Saved(None if leaf is None else Leaf(tensor, leaf), derivation, is_read)
        number = len(self._saved)
        self._saved.append(saved)
        if may_be_unwritten(tensor, self._device):
            self._deferred[number] = tensor.detach()
        else:
            self._words.add(number, saved, tensor)

    def _derivation(self, tensor: Tensor) -> Derivation | None:
        derivation = self._determined.derivation(tensor)
        return derivation if derivation is not None and self._are_compared(derivation.sources) else None

    def _are_compared(self, sources: Iterable[int]) -> bool:
        """Whether these tensors are compared, so that others may follow from them."""
        return all(source == INPUT or self._saved[source].is_compared for source in sources)

    def finish(self, written: Mapping[int, int], gone: Callable[[], Set[int]] = frozenset) -> None:
        """End the first evaluation; from then on only numbers are kept, no tensors.

        Args:
            written: number of written elements in the last dimension, for tensors that are not fully written.
            gone: returns the numbers of tensors that autograd has already released, such as those computed only for a
                hook's output; they do not affect a gradient.

        """
        self._determined.forget()
        del self._situation
        # Only after `forget`, which releases the graph.
        let_go = gone()
        needed = set(range(len(self._saved))) - let_go
        for number in reversed(range(len(self._saved))):
            if number in needed:
                needed.update(self._saved[number].sources)
        for number in let_go - needed:
            self._saved[number] = Saved()
            self._deferred.pop(number, None)
            self._words.drop(number)
        for number, elements in written.items():
            self._saved[number] = replace(self._saved[number], written=elements)
        for number, tensor in self._deferred.items():
            self._words.add(number, self._saved[number], tensor)
        self._deferred.clear()
        self._checksum = self._words.checksum()
        self._words = _Words()

    def leaves(self) -> Iterator[Leaf]:
        """Yield the leaves that were saved."""
        return (saved.leaf for saved in self._saved if saved.leaf is not None)

    def again(self, hidden: Tensor) -> "LaterEvidence":
        """Return the object that compares a later evaluation at `hidden` with this one."""
        return LaterEvidence(self._saved, self._checksum, hidden)


class LaterEvidence:
    """Compares the tensors that a later evaluation saves with the first ones; made when the evaluation begins.

    Args:
        first: the saved tensors of the first evaluation.
        expected: the checksum of everything that the first evaluation read.
        hidden: the input of the field.

    Attributes:
        other_leaf: the first tensor that was used instead of a leaf and has other bits.
        is_made_otherwise: whether a tensor that follows from others was computed in another way.

    """

    def __init__(self, first: list[Saved], expected: _Checksum | None, hidden: Tensor) -> None:
        self._first = first
        self._expected = expected
        self._determined = Determined(hidden)
        self._number = 0
        self.is_made_otherwise = False
        self._words = _Words()
        self._equal: list[Tensor] = []
        self.other_leaf: Tensor | None = None

    def add(self, tensor: Tensor) -> Packed:
        """Compare the next tensor that autograd would save; return the object that it saves instead."""
        number, self._number = self._number, self._number + 1
        first = self._first[number] if number < len(self._first) else Saved()
        if first.leaf is not None:
            equal = first.leaf.equals(tensor)
            if isinstance(equal, Tensor):
                self._equal.append(equal)
            elif not equal and self.other_leaf is None:
                self.other_leaf = tensor
        derivation = self._determined.derivation(tensor)  # for every tensor, because others may follow from it
        if first.derivation is not None and derivation != first.derivation:
            self.is_made_otherwise = True
        self._words.add(number, first, tensor)
        return Packed(self._determined.evaluation, number)

    def finish(self) -> None:
        """End the evaluation. The nodes of its graph hold the hooks, so the hooks must not hold the nodes."""
        self._determined.forget()

    def equal(self) -> Tensor | None:
        """Return whether everything that was read is equal, bool[] on the tensors' device; None if nothing was read."""
        found = self._words.checksum()
        if found is not None and self._expected is not None:
            same = found[0] == self._expected[0]
            self._equal.append(same if found[1] == self._expected[1] else torch.zeros_like(same))
        if len(self._equal) < 2:
            return self._equal[0] if self._equal else None
        return torch.stack([equal.to(self._equal[0].device) for equal in self._equal]).all()


class _Words:
    """The checksum of many tensors, in order. Each is read when it is added, because autograd frees it soon after."""

    def __init__(self) -> None:
        self._words: dict[int, Tensor] = {}
        self._layouts: dict[int, tuple[int, ...]] = {}

    def add(self, number: int, saved: Saved, tensor: Tensor) -> None:
        """Read the parts of a saved tensor that are compared."""
        few = FEW
        if saved.derivation is not None:
            tensor, few = last_tokens(tensor, saved.derivation), WORDS_OF_LAST_TOKENS
        elif not saved.is_read or saved.written == 0:
            return
        elif saved.written is not None:
            tensor = tensor[..., : saved.written]
        parts = list(parts_in_memory(tensor))
        words = [condensed(part, few) for part in parts]
        self._words[number] = words[0] if len(words) == 1 else torch.cat(words)
        self._layouts[number] = tuple(map(layout_of, parts))

    def drop(self, number: int) -> None:
        """Discard what was read of a saved tensor."""
        self._words.pop(number, None)
        self._layouts.pop(number, None)

    def checksum(self) -> _Checksum | None:
        """Return the checksum of all added tensors, int64[], and what is compared beside it; None if there are none.

        Beside it are the hash of all layouts and, if other tensors are on a device, the words of those on the CPU.
        """
        if not self._words:
            return None
        numbers = sorted(self._words)
        devices = [self._words[number].device for number in numbers]
        device = next((one for one in devices if one.type != "cpu"), devices[0])
        apart: list[tuple[int, ...]] = []
        if device.type != "cpu":
            # Attention kernels of GPUs save numbers on the CPU. A copy of them to the device would wait for it.
            on_cpu = [number for number in numbers if self._words[number].device.type == "cpu"]
            apart = [(number, *self._words[number].tolist()) for number in on_cpu]
            numbers = sorted(set(numbers) - set(on_cpu))
        together = checksum_of(self._words[number].to(device) for number in numbers)
        # The words themselves and no hash of them: that of -1 is that of -2.
        return together, (hash(tuple(self._layouts[number] for number in sorted(self._words))), *apart)


def _leaf_of(tensor: Tensor) -> Tensor | None:
    """Return the leaf that a saved tensor is, or is a view of; None for a computed tensor."""
    base = base_of(tensor)
    origin = tensor if base is None else base
    if isinstance(origin, nn.Parameter):
        return origin
    # One without elements has nothing to compare; `checkpoint` of PyTorch 2.11 makes and saves such a leaf each time.
    return origin if origin.requires_grad and origin.is_leaf and origin.numel() else None


def _place_in_memory(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return the shape, strides and offset of a view; None for a tensor that is not a view."""
    return None if base_of(tensor) is None else (tensor.shape, tensor.stride(), tensor.storage_offset())
