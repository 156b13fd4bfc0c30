"""Detection of saved tensors that need not be read, because they follow from others that are read.

A product of real numbers has the same bits whenever its factors have the same bits, and autograd saves the factors. If
a product is saved too, it is enough to compare the factors, and to check that the later evaluation made it from them as
well. A tensor that is saved twice, such as the result of an attention kernel, is read once. In a block of Llama, the
tensors that the norms scale and that the MLP multiplies need not be read. For a SiLU this holds only if every element
is computed in the same way. On a CPU, the last elements of each thread take another code path than the others, so the
bits depend on the number of threads.

This no longer holds if something writes to the result. If PyTorch counts the write, the whole tensor is read. A write
through `.data` is not counted; to detect it, the last token of each sequence is always read.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from revformers.engine.tensors import is_plain
from revformers.engine.ticket import packed_by
from revformers.private_api import (
    NODES_THAT_DEPEND_ON_THREADS,
    NODES_THAT_SAVE_THEIR_FACTORS,
    base_of,
    storage_number,
    version_of,
)

INPUT = -1
"""The number of the field's input, among the numbers of saved tensors."""


@dataclass(frozen=True)
class Derivation:
    """How a saved tensor follows from others.

    Attributes:
        operation: the name of its node in the graph; "" if it equals one of the others.
        sources: the numbers of the saved tensors that it follows from.
        place: shape and strides of the result, and shape, strides and offset of the part of it that was saved.

    """

    operation: str
    sources: tuple[int, ...]
    place: tuple[Any, ...]


class Determined:
    """Finds which saved tensors of one evaluation of a field follow from others; made when the evaluation begins.

    Args:
        hidden: the input of the field, which the tape proves to be right, or which is kept.

    Attributes:
        evaluation: the identity of the evaluation in its `Packed` objects.

    """

    def __init__(self, hidden: Tensor) -> None:
        self.evaluation = object()
        self._input: Tensor | None = hidden  # so that no other tensor takes its memory
        memory = hidden.untyped_storage()
        # Modes of PyTorch may make other objects of the input.
        self._memory = storage_number(memory) if memory.nbytes() == hidden.nbytes else None
        self._version = version_of(hidden)
        self._number = 0
        # What was saved whole, by the output of its node.
        self._known: dict[tuple[Any, int], int] = {}

    def forget(self) -> None:
        """Release the input and the graph."""
        self._input = None
        self._known.clear()

    def derivation(self, tensor: Tensor) -> Derivation | None:
        """Return how the next saved tensor follows from others; None if it does not, and has to be read."""
        number, self._number = self._number, self._number + 1
        base = base_of(tensor)
        whole = tensor if base is None else base
        if not is_plain(whole):
            return None
        place = (whole.shape, whole.stride(), tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)
        if storage_number(whole.untyped_storage()) == self._memory and self._input is not None:
            # Not by the shape of the base: the input is a view in one evaluation and not in another, as in MLP tiles.
            place = (self._input.shape, self._input.stride(), *place[2:])
            return Derivation("", (INPUT,), place) if version_of(whole) == self._version else None
        node = whole.grad_fn
        if node is None or version_of(whole):
            return None
        known = self._known.get((node, whole.output_nr))
        if known is not None:
            return Derivation("", (known,), place)
        operation = node.name()
        if whole.is_complex() or (whole.device.type == "cpu" and operation in NODES_THAT_DEPEND_ON_THREADS):
            operation = ""
        sources = tuple(self._number_of(node, name) for name in NODES_THAT_SAVE_THEIR_FACTORS.get(operation, ()))
        if sources and None not in sources:
            return Derivation(operation, sources, place)
        # A view of as many elements may have some of them twice, and others not.
        if tensor.numel() == whole.numel() and (tensor.is_contiguous() or tensor.stride() == whole.stride()):
            self._known[node, whole.output_nr] = number
        return None

    def _number_of(self, node: Any, name: str) -> Any:
        """Return the number of a tensor that a node saved; None if it saved none, or hooks not ours packed it."""
        packed = packed_by(node, name)
        return packed.number if packed is not None and packed.evaluation is self.evaluation else None


def last_tokens(tensor: Tensor, derivation: Derivation) -> Tensor:
    """Return the last row of every matrix in a tensor that was saved, a view of it without its graph.

    Linear layers save their input as one matrix, whose rows are tokens of several sequences.
    """
    whole, tensor = derivation.place[0], tensor.detach()
    if tensor.is_contiguous() and tensor.numel() == whole.numel():
        tensor = tensor.view(whole)
    return tensor[..., -1, :] if tensor.dim() > 1 and tensor.shape[-2] else tensor
