"""The type of what a layer adds to the stream."""

from collections.abc import Callable

from torch import Tensor

Field = Callable[[Tensor], Tensor]
"""f_l: maps p[l], (batch, tokens, width) in the compute dtype, to the update, of the same shape."""


class OtherEvaluationError(Exception):
    """Raised by a field whose second evaluation is not its first; the message follows the name of the step."""
