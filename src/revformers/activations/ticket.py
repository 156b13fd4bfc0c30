"""What autograd holds in the place of a tensor that is computed again when it is needed."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

InputSource = Callable[[], Tensor]
"""Returns the input of a step, (batch, tokens, width) in the compute dtype, which it keeps somewhere."""


def kept(hidden: Tensor) -> InputSource:
    """Return a source that holds the input itself."""
    return lambda: hidden


class Rebuilds(Protocol):
    """What computes the tensors of a step again."""

    def rebuild(self, step: int, source: InputSource | None = None) -> None:
        """Hand the tensors that step number `step` saved to its tickets."""


class SavedTensor:
    """The ticket of one tensor: which step saved it, and its shape and dtype."""

    __slots__ = ("__weakref__", "dtype", "shape", "source", "step", "tape", "tensor", "version")

    def __init__(self, tape: Rebuilds, step: int, tensor: Tensor) -> None:
        self.tape: Rebuilds | None = tape
        self.step = step
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.tensor: Tensor | None = None
        self.version: int | None = None
        self.source: InputSource | None = None

    def hold(self, tensor: Tensor) -> None:
        """Keep the tensor itself, as ordinary autograd does."""
        # detach: a ticket that held its own step's result would keep its own graph alive.
        self.tensor = tensor.detach()
        self.version = tensor._version

    def let_go(self) -> None:
        """Keep the tensor no longer; it is computed again when it is asked for."""
        self.tensor = self.version = None

    def redeem(self) -> Tensor:
        """Return the tensor, rebuilt if it is not there."""
        if self.tensor is None:
            assert self.tape is not None
            self.tape.rebuild(self.step, self.source)
        assert self.tensor is not None
        if self.version is not None and self.tensor._version != self.version:
            raise RuntimeError(
                f"A tensor {list(self.shape)} that is needed for the gradient was modified in place after it had been "
                f"stored or rebuilt; leave weights and activations unchanged between forward and backward."
            )
        return self.tensor
