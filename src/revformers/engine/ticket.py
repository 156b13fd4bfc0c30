"""Tickets, which autograd saves in place of tensors; the tensors are recomputed when they are needed."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from revformers.private_api import held_for_saved, version_of

InputSource = Callable[[], Tensor | None]
"""Returns the kept input of a step, (batch, tokens, width) in the compute dtype, or None if it was overwritten."""


def kept(hidden: Tensor) -> InputSource:
    """Return a source that holds the input itself; callers may have it too, as with `output_hidden_states`."""
    version = version_of(hidden)
    return lambda: hidden if version_of(hidden) == version else None


class Rebuilds(Protocol):
    """An object that recomputes the saved tensors of a step.

    Attributes:
        lock: held by the thread that does so; backward passes of one graph may run in several threads.

    """

    lock: AbstractContextManager[Any]

    def rebuild(self, step: int, source: InputSource | None = None) -> None:
        """Compute the tensors that step number `step` saved, and store them in its tickets."""


class Packed:
    """The object that autograd saves instead of a tensor: the evaluation that saved it, and its number in that."""

    __slots__ = ("evaluation", "number")

    def __init__(self, evaluation: object, number: int) -> None:
        self.evaluation = evaluation
        self.number = number


def packed_by(node: Any, name: str) -> Packed | None:
    """Return the `Packed` object that a node of the graph holds instead of the tensor that it saved under a name.

    None if it saved none, or if the hooks of another library packed it.
    """
    packed = held_for_saved(node, name)
    return packed if isinstance(packed, Packed) else None


class SavedTensor(Packed):
    """The ticket of one tensor: which step saved it, and its shape and dtype."""

    __slots__ = ("__weakref__", "dtype", "shape", "source", "step", "tape", "tensor", "version")

    def __init__(self, tape: Rebuilds, step: int, evaluation: object, number: int, tensor: Tensor) -> None:
        super().__init__(evaluation, number)
        self.tape = tape
        self.step = step
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.tensor: Tensor | None = None
        self.version: int | None = None
        self.source: InputSource | None = None

    def let_go(self) -> None:
        """Release the tensor; it is computed again when it is needed."""
        self.tensor = self.version = None

    def redeem(self) -> Tensor:
        """Return the tensor, after rebuilding it if necessary."""
        with self.tape.lock:
            if self.tensor is None:
                self.tape.rebuild(self.step, self.source)
            # Another thread may take both back as soon as the lock is free.
            tensor, version = self.tensor, self.version
        assert tensor is not None
        if version is not None and version_of(tensor) != version:
            raise RuntimeError(
                f"A tensor {list(self.shape)} that is needed for the gradient was modified in place after it had been "
                f"rebuilt; leave weights and activations unchanged between forward and backward."
            )
        return tensor
