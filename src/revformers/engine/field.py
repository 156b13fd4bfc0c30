"""The type of a field, which computes a layer's update of the residual stream."""

from collections.abc import Callable

from torch import Tensor

Field = Callable[[Tensor], Tensor]
"""f_l: maps p[l], (batch, tokens, width) in the compute dtype, to the update, of the same shape."""


class OtherEvaluationError(Exception):
    """Raised by a field whose second evaluation differs from the first; the message follows the name of the step."""
