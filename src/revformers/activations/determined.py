"""Which saved tensors need no comparison, as they are made of tensors that are compared, and in one way only.

PyTorch's elementwise kernels give the same bits for the same operands, on every device. So the product of two tensors
that are both compared is the same product, and the activation function of one that is compared is the same. In a block
of Llama that is half of what is saved: what the norms divide, scale and cast, and what the MLP multiplies.

Matrix products, attention, reductions and everything that is not known here are never left out.
"""

from typing import Any

from torch import Tensor

from revformers.activations.version import version_of

_SAVE_THEIR_INPUT = {"SiluBackward0", "GeluBackward0"}
"""Of one tensor, which they save."""

_MOVE_OR_CAST = {
    "ToCopyBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "TransposeBackward0",
    "TBackward0",
    "PermuteBackward0",
    "CloneBackward0",
}
"""The same values, in another place, shape or dtype."""


class Determined:
    """The tensors of one evaluation of a field that follow from others.

    Args:
        hidden: the input of the field, which the tape proves to be right, or which is kept.

    """

    def __init__(self, hidden: Tensor) -> None:
        self._known: set[Any] = {hidden.grad_fn}
        self._input = id(hidden)
        self._memory = hidden.untyped_storage()._cdata
        self._version = version_of(hidden)

    def is_so(self, tensor: Tensor) -> bool:
        """Whether a saved tensor follows from tensors that are compared; one that does not is taken to be compared now.

        Nothing follows for what was written to in place, which is no longer what the operation made.
        """
        node: Any = tensor.grad_fn
        if node is None:
            return id(tensor) == self._input
        if version_of(tensor) != (self._version if tensor.untyped_storage()._cdata == self._memory else 0):
            return False
        while node not in self._known:
            name, inputs = node.name(), node.next_functions
            if name in _SAVE_THEIR_INPUT:
                return True
            if name == "MulBackward0" and inputs[0][0] is not None and inputs[1][0] is not None:
                return True  # it saves each factor for the gradient of the other
            if name not in _MOVE_OR_CAST or inputs[0][0] is None:
                self._known.add(node)
                return False
            node = inputs[0][0]
        return True
