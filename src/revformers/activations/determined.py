"""Which saved tensors need no comparison, as they are made of tensors that are compared, and in one way only.

Multiplication and casts round in one way, on every device, so the product of two tensors that are both compared is the
same product; and PyTorch has one SiLU a device. In a block of Llama that is half of what is saved: what the norms
divide, scale and cast, and what the MLP multiplies. How such a tensor is made is compared in its place, since a hook or
another activation function may make it otherwise the second time.

Matrix products, attention, reductions, what was made outside of the layer and everything that is not known here are
never left out. Nor is what is made of a weight, unless that is small enough for its bits to be compared: other weights
are compared by their version, which does not count what is written through `.data`.
"""

from typing import Any

import torch
from torch import Tensor

from revformers.activations.version import version_of
from revformers.exact.checksum import layout_of

SMALL_WEIGHT = 2**14
"""Elements up to which a weight is compared by its bits: those of norms."""

SAVE_WHAT_THEY_ARE_MADE_OF = ("MulBackward0", "SiluBackward0")
"""Each factor is saved for the gradient of the other."""

_CAST = "ToCopyBackward0"
_MOVES = {
    **dict.fromkeys(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"), "reshape"),
    **{name: name for name in ("TransposeBackward0", "TBackward0", "PermuteBackward0", "CloneBackward0")},
}
"""The same values, in another place or shape, and what such an operation is called in a recipe."""

Recipe = tuple[Any, ...]


class Determined:
    """How the tensors of one evaluation of a field follow from others; made when the evaluation begins.

    Args:
        hidden: the input of the field, which the tape proves to be right, or which is kept.

    """

    def __init__(self, hidden: Tensor) -> None:
        self._input = id(hidden)
        self._memory = hidden.untyped_storage()._cdata
        self._version = version_of(hidden)
        # What is compared, or given, by the output of its node, with a number that both evaluations give it.
        self._compared: dict[tuple[Any, int], int] = {}
        self._number = 0
        if hidden.grad_fn is not None:
            self._compared[hidden.grad_fn, hidden.output_nr] = 0
        # Autograd numbers its nodes as they are made.
        self._first_node = torch._C._autograd._get_sequence_nr()
        self._made_by: list[int] = []

    @property
    def order(self) -> list[int]:
        """In which order the operations ran that tensors follow from: the places of these tensors in it."""
        return sorted(range(len(self._made_by)), key=self._made_by.__getitem__)

    def forget(self) -> None:
        """Let go of the graph."""
        self._compared.clear()

    def recipe(self, tensor: Tensor) -> Recipe | None:
        """Return how a saved tensor follows from compared ones; None for one that does not, and is compared now.

        Nothing follows for what was written to in place, which is no longer what the operation made.
        """
        if id(tensor) == self._input:
            return (0, 0)
        source: tuple[Any, int] = tensor.grad_fn, tensor.output_nr
        if source[0] is None or tensor.layout is not torch.strided:
            return None
        own = tensor.untyped_storage()._cdata == self._memory
        recipe = self._walk(source) if version_of(tensor) == (self._version if own else 0) else None
        return None if recipe is None else (layout_of(tensor), *recipe)

    def _walk(self, source: tuple[Any, int]) -> Recipe | None:
        names: list[str] = []
        while True:
            node = source[0]
            if source in self._compared:
                return (*names, self._compared[source])
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) == self._input:
                return (*names, 0)
            if leaf is None and node._sequence_nr() >= self._first_node:
                name, inputs = node.name(), node.next_functions
                if name in SAVE_WHAT_THEY_ARE_MADE_OF and all(self._is_compared(one) for one, _ in inputs):
                    self._made_by.append(node._sequence_nr())
                    return (*names, name)
                # Two casts may go through a dtype that is not seen.
                if inputs[0][0] is not None and (name in _MOVES or (name == _CAST and _CAST not in names)):
                    names.append(_MOVES.get(name, name))
                    source = inputs[0]
                    continue
            self._number += 1
            self._compared[source] = self._number
            return None

    def _is_compared(self, node: Any) -> bool:
        """Whether what a node makes is compared by its bits where an operation on it saves it."""
        leaf = getattr(node, "variable", None)
        return node is not None and (leaf is None or leaf.numel() <= SMALL_WEIGHT or id(leaf) == self._input)
